"""Wake-ups: other processes are notified of a commit at once, and poll in case the wake-up is lost."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncConnection
from psycopg.pq.abc import PGconn

from infra.postgres.notices import hear_for, listen
from infra.postgres.recorder import sql_head
from infra.wakeups import LocalWakeups
from keyledger_reading.connections import ledger_conninfo
from keyledger_reading.notices import channel

_POLL_SECONDS: Final = 0.05
_RECONNECT_SECONDS: Final = 0.2


class WakeupSender:
    """Sends the newest position on a side connection, with at most one message in flight.

    Not in the append's transaction: NOTIFY takes a lock of the whole database until its commit,
    which made four partitions as slow as one. A lost wake-up costs a listener one poll.

    On the event loop, and with libpq's own calls: a thread that runs a statement through psycopg
    waits for the interpreter as long as a group of charges takes to be committed.
    """

    def __init__(self, conninfo: str, partition: int) -> None:
        self._conninfo = conninfo
        self._partition = partition
        self._connection: AsyncConnection[Any] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._socket = -1
        self._position = 0
        self._sent = 0
        self._under_way = False
        self._closed = False

    def send(self, position: int) -> None:
        """Send a position, soon; never waits. A lower one than before means that the log lost events."""
        self._position = position
        if self._connection is not None:
            self._send_newest(self._connection.pgconn)
        elif self._connecting is None and not self._closed:
            self._connecting = asyncio.create_task(self._connect(), name=f"wake-ups of p{self._partition}")

    async def close(self) -> None:
        """Close the side connection."""
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait({self._connecting})
        self._hang_up()

    async def _connect(self) -> None:
        try:
            self._connection = await self._prepared()
        except (psycopg.Error, OSError):
            await asyncio.sleep(_RECONNECT_SECONDS)
        finally:
            self._connecting = None
        if self._connection is not None:
            pgconn = self._connection.pgconn
            self._socket = pgconn.socket  # no longer available once the connection is lost
            asyncio.get_running_loop().add_reader(self._socket, self._take, pgconn)
            self._send_newest(pgconn)

    async def _prepared(self) -> AsyncConnection[Any]:
        conninfo = ledger_conninfo(self._conninfo, f"keyledger p{self._partition} wake-ups")
        connection = await AsyncConnection.connect(conninfo, autocommit=True)
        try:
            # A NOTIFY has a commit of its own, which need not wait for the disk.
            await connection.execute("SET synchronous_commit = off")
            tell = f"PREPARE tell (text) AS SELECT pg_notify('{channel(self._partition)}', $1)"
            await connection.execute(tell.encode())
        except BaseException:
            await connection.close()
            raise
        return connection

    def _send_newest(self, pgconn: PGconn) -> None:
        if self._under_way or self._position == self._sent:
            return
        try:
            pgconn.send_query_prepared(b"tell", [b"%d" % self._position])
        except psycopg.Error:
            self._hang_up()
        else:
            self._under_way, self._sent = True, self._position

    def _take(self, pgconn: PGconn) -> None:
        """Read the answer, which only means that the next wake-up may be sent."""
        try:
            pgconn.consume_input()
            while self._under_way and not pgconn.is_busy():
                self._under_way = pgconn.get_result() is not None
        except psycopg.Error:
            self._hang_up()
        else:
            self._send_newest(pgconn)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        self._under_way = False
        if connection is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            connection.pgconn.finish()


class WakeupListener(LocalWakeups):
    """Listens for commits of one partition. Wakes within milliseconds, and after a poll at worst.

    Use as `async with WakeupListener(conninfo) as wakeups: head = await wakeups.wait_beyond(position)`.
    """

    def __init__(self, conninfo: str, partition: int = 0, *, poll_seconds: float = _POLL_SECONDS) -> None:
        super().__init__()
        self._conninfo = conninfo
        self._partition = partition
        self._poll_seconds = poll_seconds
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen(), name=f"wake-ups p{self._partition}")
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
        """Wait until it listens: from then on no commit stays unnoticed for longer than a poll."""
        await self._listening.wait()

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._listen_on_a_connection()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen_on_a_connection(self) -> None:
        conninfo = ledger_conninfo(self._conninfo, f"keyledger p{self._partition} listener")
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            # A fail-over may have lost events of which it was notified before.
            head = await self._poll(connection)
            self.head = min(self.head, head)
            await listen(connection, channel(self._partition), self.hear)
            self._listening.set()
            while True:
                self.hear(await self._poll(connection))
                await hear_for(connection, self.hear, self._poll_seconds)

    async def _poll(self, connection: AsyncConnection[Any]) -> int:
        select = f"SELECT {sql_head(self._partition)}"
        row = await (await connection.execute(select.encode(), prepare=True)).fetchone()
        return int(row[0]) if row else 0
