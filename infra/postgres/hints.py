"""Hints: other processes hear of a commit at once, and poll in case they did not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncConnection, Connection

from infra.hints import LocalHints
from infra.postgres.connections import connect, ledger_conninfo
from infra.postgres.notices import hear_for

_POLL_SECONDS: Final = 0.05
_RECONNECT_SECONDS: Final = 0.2


def channel(partition: int) -> str:
    """The NOTIFY channel of a partition."""
    return f"ledger_p{partition}"


class HintSender:
    """Tells of the newest position from a side connection, at most one message under way.

    Not in the append's transaction: NOTIFY takes a lock of the whole database until its commit,
    which made four partitions as slow as one. A hint that is lost costs a listener one poll.
    """

    def __init__(self, conninfo: str, partition: int) -> None:
        self._conninfo = conninfo
        self._partition = partition
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ledger p{partition} hints")
        self._lock = threading.Lock()
        self._position = 0
        self._sending = False
        self._connection: Connection[Any] | None = None

    def send(self, position: int) -> None:
        """Tell of a position, soon; never waits."""
        with self._lock:
            self._position = max(self._position, position)
            if self._sending:
                return
            self._sending = True
        self._thread.submit(self._send)

    async def close(self) -> None:
        """Send what is left, and close the side connection."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()

    def _send(self) -> None:
        sent = 0
        while True:
            with self._lock:
                position = self._position
                if position == sent:
                    self._sending = False
                    return
            with contextlib.suppress(psycopg.Error):
                self._notify(position)
            sent = position

    def _notify(self, position: int) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._conninfo, f"keyledger p{self._partition} hints")
            # A NOTIFY has a commit of its own, which need not wait for the disk.
            self._connection.execute("SET synchronous_commit = off")
        self._connection.execute("SELECT pg_notify(%s, %s)", (channel(self._partition), str(position)))


class Hints(LocalHints):
    """Listens for commits of one partition. Wakes within milliseconds, and after a poll at worst.

    Use as `async with Hints(conninfo) as hints: head = await hints.wait_beyond(position)`.
    """

    def __init__(self, conninfo: str, partition: int = 0, *, poll_seconds: float = _POLL_SECONDS) -> None:
        super().__init__()
        self._conninfo = conninfo
        self._partition = partition
        self._poll_seconds = poll_seconds
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name=f"hints p{self._partition}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def listening(self) -> None:
        """Wait until it listens: from then on no commit goes unheard for longer than a poll."""
        await self._listening.wait()

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._listen_on_a_connection()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen_on_a_connection(self) -> None:
        conninfo = ledger_conninfo(self._conninfo, f"keyledger p{self._partition} listener")
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await connection.execute(f'LISTEN "{channel(self._partition)}"'.encode())
            connection.add_notify_handler(lambda notice: self.hear(int(notice.payload)))
            self._listening.set()
            while True:
                self.hear(await self._poll(connection))
                await hear_for(connection, lambda told: self.hear(int(told)), self._poll_seconds)

    async def _poll(self, connection: AsyncConnection[Any]) -> int:
        select = f"SELECT coalesce(max(notification_id), 0) FROM ledger.events_p{self._partition}"
        row = await (await connection.execute(select.encode(), prepare=True)).fetchone()
        return int(row[0]) if row else 0
