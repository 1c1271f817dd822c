"""Notifications of PostgreSQL (NOTIFY), each of which carries a position of the log."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from psycopg import Connection
from psycopg.pq.abc import PGconn

_LAST_POSITION: Final = 2**63 - 1
_KEPT: Final = 1_000
"""The latest positions; any login may send notifications by the million."""

Hear = Callable[[int], None]


def channel(partition: int) -> str:
    """The NOTIFY channel on which a partition's commits are announced."""
    return f"ledger_p{partition}"


class Listener:
    """A synchronous connection that listens on one channel, and waits for its notifications.

    `waking`: a file descriptor that ends the wait as soon as there is something to read from it.
    """

    def __init__(self, connection: Connection[Any], channel: str, *, waking: int | None = None) -> None:
        self._pgconn = connection.pgconn
        self._told = deque[int](maxlen=_KEPT)
        connection.add_notify_handler(lambda notice: tell(notice.payload, self._told.append))
        connection.execute(f'LISTEN "{channel}"'.encode())
        self._ready = select.poll()
        self._ready.register(self._pgconn.socket, select.POLLIN)
        if waking is not None:
            self._ready.register(waking, select.POLLIN)

    def wait(self, seconds: float) -> list[int]:
        """The positions received since the last call; if there are none, the next ones within the time.

        Empty after a timeout, when it was woken, or when what was received is not a position. Raises
        psycopg.OperationalError when the connection breaks.
        """
        if not self._told and self._ready.poll(seconds * 1_000):
            for payload in arrived(self._pgconn):
                tell(payload, self._told.append)
        told = list(self._told)
        self._told.clear()
        return told


def arrived(pgconn: PGconn) -> Iterator[str]:
    """The payloads of the notifications that have arrived on the socket."""
    pgconn.consume_input()
    while (notice := pgconn.notifies()) is not None:
        yield notice.extra.decode(errors="replace")


def tell(payload: str, hear: Hear) -> None:
    """Pass on the position in a payload, if it is one: any user that may log in can send anything."""
    try:
        position = int(payload)
    except ValueError:
        return
    if 0 <= position <= _LAST_POSITION:
        hear(position)
