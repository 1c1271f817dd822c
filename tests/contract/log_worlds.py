"""The two worlds that a log lives in, with the same faults."""

import asyncio
from typing import Protocol

import psycopg

from domain.ports import Log
from infra.memory.clock import FixedClock
from infra.memory.log import MemoryLog, MemoryStorage
from infra.owners import LogIdentity, Owner
from infra.postgres.connections import connect
from infra.postgres.log import PostgresLog
from tests.contract.cable import Cable


class OwnedLog(Log, Protocol):
    """A log that says who owns it, and which log it is."""

    async def announce(self, address: str, incarnation: str) -> None: ...
    async def owner(self) -> Owner | None: ...
    async def identity(self) -> LogIdentity: ...


class LogWorld(Protocol):
    """Sessions on one storage, and what may happen to them."""

    clock: FixedClock

    def session(self) -> OwnedLog: ...
    async def end(self, log: Log) -> None:
        """The session's process dies."""
        ...

    def lose_acknowledgement(self, log: Log, *, committed: bool) -> None: ...
    def go_down(self) -> None: ...
    def come_up(self) -> None: ...
    def raise_epoch(self) -> None: ...


class MemoryWorld:
    def __init__(self) -> None:
        self.clock = FixedClock()
        self._storage = MemoryStorage()

    def session(self) -> OwnedLog:
        return MemoryLog(self._storage, clock=self.clock)

    async def end(self, log: Log) -> None:
        assert isinstance(log, MemoryLog)
        log.cut_off()

    def lose_acknowledgement(self, log: Log, *, committed: bool) -> None:
        assert isinstance(log, MemoryLog)
        log.lose_next_acknowledgement(committed=committed)

    def go_down(self) -> None:
        self._storage.up = False

    def come_up(self) -> None:
        self._storage.up = True

    def raise_epoch(self) -> None:
        self._storage.raise_epoch()

    async def close(self) -> None:
        pass


class PostgresWorld:
    def __init__(self, database: str) -> None:
        self.clock = FixedClock()
        self.database = database
        self._cable = Cable(database)
        self._sessions: list[PostgresLog] = []

    def session(self) -> PostgresLog:
        # Hints would travel over the same cable, and take the fault meant for the append.
        log = PostgresLog(self._cable.conninfo, clock=self.clock, readers=1, hints=False)
        self._sessions.append(log)
        return log

    async def end(self, log: Log) -> None:
        assert isinstance(log, PostgresLog)
        self.kill_backend(log)

    def kill_backend(self, log: PostgresLog) -> None:
        assert log._writer is not None
        pid = log._writer.info.backend_pid
        with psycopg.connect(self.database, autocommit=True) as administrator:
            administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))

    def lose_acknowledgement(self, log: Log, *, committed: bool) -> None:
        self._cable.fault = "lose_answer" if committed else "lose_question"

    def go_down(self) -> None:
        self._cable.pull()

    def come_up(self) -> None:
        self._cable.plug()

    def raise_epoch(self) -> None:
        with connect(self.database, "test") as connection:
            connection.execute("SELECT ledger.raise_epoch(1, 0)")

    async def close(self) -> None:
        for session in self._sessions:
            await asyncio.wait_for(session.close(), 10)
        self._cable.close()
