"""The log in PostgreSQL: one writer session per partition holds its lock, other sessions read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any, Final, TypeVar, cast

import psycopg
import structlog
from psycopg import Connection

from domain.ports import Clock, Group, LogUnavailableError, NotOwnerError, OutcomeUnknownError, TakenClaim
from infra.clock import SystemClock
from infra.owners import LogIdentity, Owner
from infra.postgres.arrays import UuidArray
from infra.postgres.confirming import Confirmations, WriterSession
from infra.postgres.connections import (
    ADVISORY_CLASS,
    connect,
    refuse_unsafe_settings,
    wait_for_standby,
    waits_for_standby,
)
from infra.postgres.data_keys import select_data_keys
from infra.postgres.insertion import PackedGroup, pack_group
from infra.postgres.recorder import LedgerRecorder
from infra.postgres.sessions import Sessions
from infra.postgres.wakeups import WakeupSender
from keyledger_language.history import HistoryPoint, RecordedEvent
from keyledger_language.instants import Instant, to_datetime
from keyledger_reading.connections import hang_up
from keyledger_reading.datastore import SessionDatastore
from keyledger_reading.notifications import LoggedEvent

_END_SILENT_OWNER: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND state = 'idle' AND state_change < clock_timestamp() - make_interval(secs => %s)
"""

log = structlog.get_logger()

T = TypeVar("T")
_Connection = Connection[tuple[Any, ...]]

_HEARD_SECONDS: Final = 1.0
"""The writer's session is used at least this often: else a process on standby would end it as silent."""
_LAST_APPEND_SECONDS: Final = 5.0
"""How long a process that stops waits for an append in progress."""
# Queried with each read, because a reload of the server's settings may change it.
_NAMES_STANDBY: Final = "SELECT current_setting('synchronous_standby_names') <> ''"
_HOLDS_LOCK: Final = """
    SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND classid = %s AND objid = %s)
"""
_TAKE_LOCK: Final = """
    SELECT pg_try_advisory_lock(%s, %s) AND pg_try_advisory_lock(%s::bigint), pg_backend_pid()
"""
_ANNOUNCE: Final = """
    INSERT INTO ledger.owners AS o (partition, address, incarnation, pid) VALUES (%s, %s, %s, %s)
    ON CONFLICT (partition) DO UPDATE SET address = excluded.address,
        incarnation = excluded.incarnation, pid = excluded.pid, since = now()
"""


class PostgresLog:
    """One partition of the log.

    `wakeups`: notify listeners in other processes of each commit, on a side connection.
    """

    def __init__(
        self,
        conninfo: str,
        *,
        partition: int = 0,
        clock: Clock | None = None,
        readers: int = 3,
        wakeups: bool = True,
    ) -> None:
        self.partition = partition
        self._conninfo = conninfo
        self._clock = SystemClock() if clock is None else clock
        self._writer: _Connection | None = None
        self._owned = False
        self._session: WriterSession | None = None
        """Of the writer while it holds the lock, as far as is known."""
        self._noticed: str | None = None
        """The notice that PostgreSQL sent in the writer's session since the last append."""
        self._appending = False
        self._heard_at = 0.0
        self._speaking = False
        # One thread, because the lock belongs to one connection and appends have one order.
        self._writing = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"ledger p{partition} writer")
        self._readers = Sessions(conninfo, f"keyledger p{partition} reader", most=readers)
        self._confirming = Confirmations(conninfo, partition)
        # In the login role, not the service's: only the same user may see sessions, and end them.
        self._watching = Sessions(conninfo, f"keyledger p{partition} watch", most=1, role="")
        self._wakeups = WakeupSender(conninfo, partition) if wakeups else None
        self._recorder = LedgerRecorder(SessionDatastore(self._readers.session), partition=partition)
        # Appends go through the session that holds the lock, and no other.
        self._appender = LedgerRecorder(SessionDatastore(self._writer_session), partition=partition)
        self._proven: tuple[int, int] | None = None
        """Position and mark of the last event that was read and that is known to be durable."""
        self._select_claims = (
            f"SELECT uuid_send(digest), position, answer FROM ledger.claims_p{partition}"
            " WHERE digest = ANY(%s) AND (expires_at IS NULL OR expires_at > %s)"
        ).encode()

    # -- owning ---------------------------------------------------------------------------------

    async def acquire(self) -> bool:
        """Become the owner, if no other process is; reconnects if the connection was lost."""
        if self._appending:
            raise LogUnavailableError("PostgreSQL has not answered an append yet")
        return await self._write(self._acquire)

    async def confirm(self) -> bool:
        """Whether the writer's session holds the lock, on a server whose standby, if named, still follows.

        Proved by a commit on a session of its own, so it waits while that standby is disconnected, and
        an append may be in progress meanwhile. The answer is about the moment of the call.
        """
        session = self._session
        if session is None:
            return False
        return await self._until_confirmed(self._confirming.confirm(session))

    async def _until_confirmed(self, asked: Future[bool]) -> bool:
        confirming = asyncio.wrap_future(asked)
        # Retrieves the exception in case the result is no longer awaited.
        confirming.add_done_callback(lambda done: done.cancelled() or done.exception())
        while not confirming.done():
            self._speak()
            await asyncio.wait({confirming}, timeout=_HEARD_SECONDS)
        return confirming.result()

    async def waits_for_standby(self) -> bool:
        """Whether a commit has been waiting for a synchronous standby for a while."""
        return await self._watching.run(waits_for_standby)

    async def release(self) -> None:
        """Stop being the owner: the session ends, and its lock with it."""
        dropping = self._write(self._drop_writer)
        await asyncio.wait({dropping}, timeout=_LAST_APPEND_SECONDS)
        if not dropping.done() and self._writer is not None:
            hang_up(self._writer)
        await dropping

    async def announce(self, address: str, incarnation: str) -> None:
        """Store the address at which the owner answers; only the owner can."""
        await self._write(lambda: self._announce(address, incarnation))

    async def owner(self) -> Owner | None:
        """The process that announced itself last; it may have ended since."""
        select = b"SELECT address, incarnation, pid FROM ledger.owners WHERE partition = %s"
        rows = await self._readers.run(lambda c: c.execute(select, (self.partition,)).fetchall())
        return Owner(*rows[0]) if rows else None

    async def identity(self) -> LogIdentity:
        """Which log this is, and its epoch."""
        select = b"SELECT log_id::text, epoch FROM ledger.identity"
        rows = await self._readers.run(lambda c: c.execute(select).fetchall())
        return LogIdentity(*rows[0])

    async def end_silent_owner(self, silent_seconds: float) -> None:
        """End the session that holds the lock if its process has been silent for that long.

        An owner confirms its lock several times a second. One that is frozen (SIGSTOP, a machine
        that sleeps) still has an open connection, and would hold the partition for ever.
        """
        await self._watching.run(lambda connection: self._end_silent_owner(connection, silent_seconds))

    async def close(self) -> None:
        """End all sessions."""
        await self.release()
        self._writing.shutdown(wait=False)
        await self._confirming.close()
        await self._watching.close()
        await self._readers.close()
        if self._wakeups is not None:
            await self._wakeups.close()

    # -- writing --------------------------------------------------------------------------------

    def append(self, group: Group) -> Awaitable[int]:
        """Write the group; returns the new head, once durable. It is sent even before it is awaited."""
        # Packed here: the writer's thread would have to wait for the interpreter to do it.
        packed = pack_group(
            group.events,
            group_id=group.group_id,
            behind=group.behind,
            claims=group.claims,
            data_keys=group.data_keys,
            decided_at=self._clock.now(),
        )
        appending = self._write(lambda: self._append(group, packed))
        appending.add_done_callback(self._tell)
        return appending

    def _tell(self, appended: asyncio.Future[int]) -> None:
        if self._wakeups is not None and not appended.cancelled() and appended.exception() is None:
            self._wakeups.send(appended.result())

    async def committed(self, group: Group) -> bool | None:
        """Whether the group was written, durably; False if it never will be, None if it may be in progress.

        Answered after a confirming commit, so it waits while a synchronous standby is disconnected.
        """
        asking = self._confirming.committed(group.group_id, group.behind.position, self._session)
        return await asyncio.wrap_future(asking)

    async def prune(self, *, groups_before: Instant, claims_before: Instant, most: int = 10_000) -> int:
        """Delete groups and expired claims from before these times; returns how many, up to `most` of each.

        Not near the present: the outcome of a group whose answer was lost is looked up in its row.
        """
        select = f"SELECT ledger.prune_p{self.partition}(%s, %s, %s)".encode()
        before = to_datetime(groups_before), to_datetime(claims_before)
        return int((await self._rows(select, (*before, most)))[0][0])

    # -- reading --------------------------------------------------------------------------------

    async def head(self) -> int:
        """The position of the last event."""
        return await self._readers.run(lambda _: self._recorder.max_notification_id() or 0)

    async def end(self) -> HistoryPoint:
        """Where the log ends, with its mark and epoch."""
        return await self._readers.run(lambda _: self._recorder.end())

    async def claims(self, digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        """Those of the claims that are taken and not expired."""
        if not digests:
            return {}
        now = to_datetime(self._clock.now())
        rows = await self._rows(self._select_claims, (UuidArray(digests), now))
        return {digest: TakenClaim(position, answer) for digest, position, answer in rows}

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Up to `limit` events after the position `after`, in order."""
        return await self._readers.run(lambda _: self._behind(after, limit))

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        """Like `read`, but returns once a synchronous standby, if one is named, has what was read.

        Proved by a confirming commit that is sent afterwards, and only if something new was read.
        """

        def work(connection: _Connection) -> tuple[list[RecordedEvent], bool]:
            found = self._behind(after, limit)
            named = connection.execute(_NAMES_STANDBY, prepare=True).fetchone() if found else None
            return found, bool(named and named[0])

        found, standby_named = await self._readers.run(work)
        if standby_named:
            await self._prove(found[-1])
        return found

    def _behind(self, after: int, limit: int) -> list[RecordedEvent]:
        return _recorded(self._recorder.select_notifications(after, limit, inclusive_of_start=False))

    async def _prove(self, last: RecordedEvent) -> None:
        event = (last.position, last.mark)
        if event == self._proven:
            return
        if not await self._until_confirmed(self._confirming.has(*event)):
            # One of the two sessions is connected to a deposed server, or there was a fail-over meanwhile.
            self._readers.renew()
            self._confirming.renew()
            raise LogUnavailableError(f"event {last.position}, which was read, is not on the primary")
        self._proven = event

    async def read_at(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at these positions, in order."""
        return await self._readers.run(lambda _: _recorded(self._recorder.select_at(positions)))

    async def data_keys(self, subjects: Sequence[str] | None = None) -> dict[str, bytes]:
        """All data keys, or those of some subjects."""
        return await self._readers.run(lambda connection: select_data_keys(connection, subjects))

    async def _rows(self, select: bytes, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return await self._readers.run(
            lambda connection: connection.execute(select, parameters, prepare=True, binary=True).fetchall()
        )

    # -- on the writer's thread -----------------------------------------------------------------

    def _write(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._writing, work)

    def _acquire(self) -> bool:
        if self._holds_lock():
            return True
        token = secrets.randbits(63) | 1
        try:
            self._writer = self._connect_writer()
            row = self._writer.execute(_TAKE_LOCK, (ADVISORY_CLASS, self.partition, token)).fetchone()
        except psycopg.Error as error:
            self._drop_writer()
            raise LogUnavailableError(f"PostgreSQL: {error}") from error
        assert row is not None, "the statement returns one row"
        self._owned = bool(row[0])
        self._session = WriterSession(row[1], token) if self._owned else None
        return self._owned

    def _connect_writer(self) -> _Connection:
        if self._writer is not None and not self._writer.closed:
            return self._writer
        connection = connect(self._conninfo, f"keyledger p{self.partition} writer")
        try:
            refuse_unsafe_settings(connection)
            wait_for_standby(connection)
            connection.add_notice_handler(self._note)
        except BaseException:
            connection.close()
            raise
        return connection

    def _note(self, remark: psycopg.errors.Diagnostic) -> None:
        self._noticed = remark.message_primary or "a notice without a text"

    def _holds_lock(self) -> bool:
        if not self._owned or self._writer is None:
            return False
        try:
            row = self._writer.execute(_HOLDS_LOCK, (ADVISORY_CLASS, self.partition), prepare=True).fetchone()
        except psycopg.Error:
            self._drop_writer()
            return False
        self._owned = bool(row and row[0])
        if not self._owned:
            self._session = None
        return self._owned

    def _drop_writer(self) -> None:
        self._owned = False
        self._session = self._noticed = None
        writer, self._writer = self._writer, None
        if writer is None:
            return
        with contextlib.suppress(psycopg.Error):
            # Closing releases it as well, but only once the server has noticed.
            writer.execute("SELECT pg_advisory_unlock_all()")
        writer.close()

    def _speak(self) -> None:
        """Use the writer's session if it was silent: this shows that the process is not frozen."""
        now = monotonic()
        if self._speaking or now - self._heard_at < _HEARD_SECONDS:
            return
        self._speaking, self._heard_at = True, now
        self._write(self._spoken)

    def _spoken(self) -> None:
        self._speaking = False
        if self._writer is not None:
            try:
                self._writer.execute("SELECT")
            except psycopg.Error:
                self._drop_writer()

    def _writer_session(self) -> _Connection:
        assert self._writer is not None, "there is a writer while the partition is held"
        return self._writer

    def _append(self, group: Group, packed: PackedGroup) -> int:
        if not self._owned or self._writer is None:
            raise NotOwnerError("this process does not hold the partition")
        if self._writer.closed:
            self._drop_writer()
            raise LogUnavailableError("the writer's connection is closed; nothing was sent")
        self._appending = True
        try:
            head = self._appender.begin_insert(packed).complete()
            if self._noticed is not None:
                self._make_sure(group)
        except (NotOwnerError, OutcomeUnknownError):
            self._drop_writer()
            raise
        finally:
            self._appending = False
        self._heard_at = monotonic()
        return head

    def _make_sure(self, group: Group) -> None:
        """PostgreSQL sent a notice: that is all it does when a wait for the standby is cancelled.

        The group is then in this server's log only. When a later commit of our own is on the standby,
        so is everything before it.
        """
        log.warning("append.remarked", remark=self._noticed)
        self._noticed = None
        try:
            written = self._confirming.committed(
                group.group_id, group.behind.position, self._session
            ).result()
        except LogUnavailableError as error:
            raise OutcomeUnknownError(str(error)) from error
        if not written:
            raise OutcomeUnknownError("the group is not in the log to which it was written")

    def _end_silent_owner(self, connection: _Connection, silent_seconds: float) -> None:
        # For a session of another user, its keepalives must suffice.
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            connection.execute(_END_SILENT_OWNER, (ADVISORY_CLASS, self.partition, silent_seconds))

    def _announce(self, address: str, incarnation: str) -> None:
        if not self._owned or self._writer is None:
            raise NotOwnerError("this process does not hold the partition")
        try:
            self._writer.execute(_ANNOUNCE, (self.partition, address, incarnation, os.getpid()))
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error


def _recorded(found: list[LoggedEvent]) -> list[RecordedEvent]:
    """The same list; for a type checker it is of another type, because lists are mutable."""
    return cast(list[RecordedEvent], found)
