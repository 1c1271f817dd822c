"""Notifications of PostgreSQL (NOTIFY), each of which tells a position of the log.

psycopg's own `notifies()` makes a future, a timer and a registration with the event loop for each,
which took a tenth of the ledger's time while it was charged. Here they are taken from the socket.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable, Iterator
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.pq.abc import PGconn

_LAST_POSITION: Final = 2**63 - 1

Hear = Callable[[int], None]


def channel(partition: int) -> str:
    """The NOTIFY channel on which a partition's commits are told."""
    return f"ledger_p{partition}"


async def listen(connection: AsyncConnection[Any], channel: str, hear: Hear) -> None:
    """Listen on this channel, and tell `hear` of each position that comes with the answer to a statement."""
    connection.add_notify_handler(lambda notice: _tell(notice.payload, hear))
    await connection.execute(f'LISTEN "{channel}"'.encode())


async def hear_for(connection: AsyncConnection[Any], hear: Hear, seconds: float) -> None:
    """Tell `hear` of each position that comes within so many seconds.

    Nothing else may be asked of the connection meanwhile. Raises psycopg.OperationalError when the
    connection breaks.
    """
    loop = asyncio.get_running_loop()
    broken: asyncio.Future[psycopg.Error] = loop.create_future()
    pgconn = connection.pgconn

    def take() -> None:
        try:
            for payload in _taken(pgconn):
                _tell(payload, hear)
        except psycopg.Error as error:
            loop.remove_reader(socket)
            if not broken.done():
                broken.set_result(error)

    socket = pgconn.socket
    loop.add_reader(socket, take)
    try:
        take()  # what came with the last answer, behind it
        await asyncio.wait({broken}, timeout=seconds)
    finally:
        loop.remove_reader(socket)
    if broken.done():
        raise broken.result()


class Listener:
    """A synchronous connection that listens on one channel, and waits for what it tells.

    `waking`: a file descriptor that ends the wait as soon as there is something to read from it.
    """

    def __init__(self, connection: Connection[Any], channel: str, *, waking: int | None = None) -> None:
        self._pgconn = connection.pgconn
        self._told: list[int] = []
        connection.add_notify_handler(lambda notice: _tell(notice.payload, self._told.append))
        connection.execute(f'LISTEN "{channel}"'.encode())
        self._ready = select.poll()
        self._ready.register(self._pgconn.socket, select.POLLIN)
        if waking is not None:
            self._ready.register(waking, select.POLLIN)

    def wait(self, seconds: float) -> list[int]:
        """The positions that came since the last call; where none did, those that come first within the time.

        Empty when the time is over, when it was woken, or when what came was no position. Raises
        psycopg.OperationalError when the connection breaks.
        """
        if not self._told and self._ready.poll(seconds * 1_000):
            for payload in _taken(self._pgconn):
                _tell(payload, self._told.append)
        told, self._told[:] = self._told.copy(), ()
        return told


def _taken(pgconn: PGconn) -> Iterator[str]:
    pgconn.consume_input()
    while (notice := pgconn.notifies()) is not None:
        yield notice.extra.decode(errors="replace")


def _tell(payload: str, hear: Hear) -> None:
    # Whoever may log in to the database can send anything.
    try:
        position = int(payload)
    except ValueError:
        return
    if 0 <= position <= _LAST_POSITION:
        hear(position)
