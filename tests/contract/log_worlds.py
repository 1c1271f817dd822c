"""The two worlds that a log lives in, with the same faults."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Literal, Protocol

import psycopg

from domain.ports import Log
from infra.embedded.postgres import DATABASE
from infra.memory.clock import FixedClock
from infra.memory.log import MemoryLog, MemoryStorage
from infra.owners import LogIdentity, Owner
from infra.postgres.connections import connect
from infra.postgres.log import PostgresLog
from tests.contract.cable import Cable
from tests.replicas import Replicas

BrokenOff = Literal["terminated", "cancelled", "cut"]


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
        # Wake-ups would travel over the same cable, and take the fault meant for the append.
        log = PostgresLog(self._cable.conninfo, clock=self.clock, readers=1, wakeups=False)
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


class StandbyWorld(Protocol):
    """Sessions on a storage whose standby must have every commit, and may be away."""

    def session(self) -> OwnedLog: ...
    async def lose_standby(self) -> None: ...
    async def return_standby(self) -> None: ...
    async def until_an_append_waits(self, log: Log) -> None: ...
    async def break_off(self, log: Log, how: BrokenOff) -> None:
        """End the append's wait for the standby: by an operator, or because the connection breaks."""
        ...

    async def lose_lock(self, log: Log) -> None: ...


class MemoryStandbyWorld:
    def __init__(self) -> None:
        self.storage = MemoryStorage()

    def session(self) -> OwnedLog:
        return MemoryLog(self.storage)

    async def lose_standby(self) -> None:
        self.storage.lose_standby()

    async def return_standby(self) -> None:
        self.storage.return_standby()

    async def until_an_append_waits(self, log: Log) -> None:
        while not await log.waits_for_standby():
            await asyncio.sleep(0)

    async def break_off(self, log: Log, how: BrokenOff) -> None:
        assert isinstance(log, MemoryLog)
        log.break_off("cancelled" if how == "cancelled" else "terminated")

    async def lose_lock(self, log: Log) -> None:
        assert isinstance(log, MemoryLog)
        log.cut_off()

    async def close(self) -> None:
        self.storage.return_standby()


class PostgresStandbyWorld:
    """A primary and its synchronous standby; the log's sessions go through a cable of their own."""

    def __init__(self, replicas: Replicas, database: str = DATABASE) -> None:
        self.replicas = replicas
        self.primary = replicas.a.conninfo(database)
        self._cable = Cable(self.primary)
        self._sessions: list[PostgresLog] = []

    def session(self) -> PostgresLog:
        log = PostgresLog(self._cable.conninfo, readers=1, wakeups=False)
        self._sessions.append(log)
        return log

    async def lose_standby(self) -> None:
        self.replicas.isolate()
        await self._until("NOT EXISTS (SELECT FROM pg_stat_replication)")

    async def return_standby(self) -> None:
        self.replicas.reconnect()

    async def until_an_append_waits(self, log: Log) -> None:
        assert isinstance(log, PostgresLog)
        await self._until(f"EXISTS ({self.waiting(_pid_of(log))})")

    async def break_off(self, log: Log, how: BrokenOff) -> None:
        assert isinstance(log, PostgresLog)
        if how == "cut":
            self._cable.pull()
            self._cable.plug()
            return
        verb = {"terminated": "pg_terminate_backend", "cancelled": "pg_cancel_backend"}[how]
        await self._until(f"{verb}({_pid_of(log)})")

    async def lose_lock(self, log: Log) -> None:
        assert isinstance(log, PostgresLog)
        await self.break_off(log, "terminated")
        await self._until(f"NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {_pid_of(log)})")

    @staticmethod
    def waiting(pid: int | None = None) -> str:
        """Sessions that wait for the standby, as a query."""
        one = "" if pid is None else f" AND pid = {pid}"
        return f"SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'{one}"

    async def ask(self, query: str) -> list[int]:
        """The first column."""
        with psycopg.connect(self.primary, autocommit=True) as administrator:
            return [row[0] for row in administrator.execute(query.encode()).fetchall()]

    async def _until(self, condition: str) -> None:
        await eventually(lambda: self.ask(f"SELECT 1 WHERE {condition}"), condition)

    async def close(self) -> None:
        self.replicas.reconnect()
        for session in self._sessions:
            await asyncio.wait_for(session.close(), 20)
        self._cable.close()


async def eventually(true: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not await true():
        assert time.monotonic() < deadline, f"never: {what}"
        await asyncio.sleep(0.02)


def _pid_of(log: PostgresLog) -> int:
    assert log._writer is not None
    return log._writer.info.backend_pid
