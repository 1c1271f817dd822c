"""Commits that prove that this server is still the primary, and that its standby has all earlier ones."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.types.numeric import Int8

from domain.ports import LogUnavailableError
from infra.postgres.connections import ADVISORY_CLASS, connect, wait_for_standby
from infra.postgres.recorder import sql_has_event, sql_head
from keyledger_reading.connections import hang_up

CONFIRMING_CLASS: Final = ADVISORY_CLASS + 3
"""Of the lock that a confirming commit holds: one for each partition, whichever process owns it."""
READING_CLASS: Final = ADVISORY_CLASS + 4
"""The same for processes that only read: there may be many, and an owner's lease does not wait for them."""

_TURN_SECONDS: Final = 0.002
"""About the time that a commit takes: as long as none hangs, the next attempt gets the lock."""
_TURNS: Final = 50
_LONG_TURN_SECONDS: Final = 0.05
_HALF: Final = 2**32

# The emitted message is a few bytes of write-ahead log that nothing reads. It is transactional, so that
# the commit has a transaction id: only such a commit waits for the standby. The lock is released after
# that wait: a session that cannot get it knows that another such commit hangs, perhaps one of a dead
# process, and does not add its own. Materialized: each part is evaluated once, and in this order.
_COMMIT: Final = """
    turn AS MATERIALIZED (
        SELECT found.*, CASE
            WHEN current_setting('synchronous_standby_names') = '' OR NOT {wanted} THEN 'needless'
            WHEN pg_try_advisory_xact_lock(%(class)s, %(partition)s) THEN 'ours'
            ELSE 'another''s' END AS whose
        FROM found
    )
    SELECT turn.*, CASE whose WHEN 'ours' THEN pg_logical_emit_message(true, 'keyledger', '') END FROM turn
"""
# The session that holds both locks is the writer's and no other, on this server and no other: each
# session draws the second lock at random. No privilege is needed to see them.
_HELD: Final = """
    (SELECT count(*) = 2 FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = %(pid)s
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND ((objsubid = 2 AND classid = %(owning)s AND objid = %(partition)s)
            OR (objsubid = 1 AND classid = %(token_class)s AND objid = %(token_id)s)))
"""

T = TypeVar("T")
_Connection = Connection[tuple[Any, ...]]


class WriterSession(NamedTuple):
    """The session that holds the partition's lock, as another session can recognise it."""

    pid: int
    token: int
    """The number of a lock that no other session has: 63 random bits."""


_NOBODY: Final = WriterSession(0, 0)


class Confirmations:
    """A session whose commits must reach a synchronous standby; one at a time, and never cancelled.

    If no standby is named, reading is enough, and nothing is written. A commit that hangs is left
    alone until the standby is back: a cancelled wait would look like a success, and a new commit
    would hang as well.
    """

    def __init__(self, conninfo: str, partition: int) -> None:
        self._conninfo = conninfo
        self._partition = partition
        self._name = f"keyledger p{partition} confirm"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self._name)
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._noticed = False
        self._closing = False
        self._confirm = _statement(f"SELECT {_HELD} AS held", wanted="held")
        self._committed = _statement(
            f"SELECT EXISTS (SELECT FROM ledger.groups_p{partition} WHERE group_id = %(group)s) AS written,"
            f" {sql_head(partition)} > %(expected)s AS overtaken, {_HELD} AS held",
            wanted="true",
        )
        self._has = _statement(f"SELECT {sql_has_event(partition)} AS there", wanted="there")

    def confirm(self, writer: WriterSession) -> Future[bool]:
        """Whether this session holds the lock, on a server that is still the primary."""
        return self._run(lambda: bool(self._commit(self._confirm, writer)[0]))

    def committed(
        self, group_id: bytes, expected_head: int, writer: WriterSession | None
    ) -> Future[bool | None]:
        """Whether the group was written; False if it never can be, None if it may still be in progress."""
        more = {"group": UUID(bytes=group_id), "expected": Int8(expected_head)}

        def ask() -> bool | None:
            written, overtaken, held = self._commit(self._committed, writer or _NOBODY, **more)[:3]
            if written:
                return True
            return False if overtaken or held else None

        return self._run(ask)

    def has(self, position: int, mark: int) -> Future[bool]:
        """Whether a server that is still the primary has this event, and by its mark all before it."""
        event = {"position": Int8(position), "mark": Int8(mark), "class": READING_CLASS}
        return self._run(lambda: bool(self._commit(self._has, _NOBODY, **event)[0]))

    def renew(self) -> None:
        """Reconnect the next time: this session may be connected to another server than the others."""
        self._thread.submit(self._drop)

    async def close(self) -> None:
        """Close the connection, even while a commit waits."""
        self._closing = True
        with self._lock:
            if self._connection is not None:
                hang_up(self._connection)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        if self._connection is not None:
            self._connection.close()

    # -- on the session's thread

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _run(self, work: Callable[[], T]) -> Future[T]:
        return self._thread.submit(self._translated, work)

    @staticmethod
    def _translated(work: Callable[[], T]) -> T:
        try:
            return work()
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error

    def _commit(self, statement: bytes, writer: WriterSession, **more: Any) -> tuple[Any, ...]:
        parameters = {
            "class": CONFIRMING_CLASS,
            "owning": ADVISORY_CLASS,
            "partition": self._partition,
            "pid": writer.pid,
            "token_class": writer.token // _HALF,
            "token_id": writer.token % _HALF,
            **more,
        }
        turns = 0
        while True:
            row = self._ask(statement, parameters)
            if not self._noticed and row[-2] != "another's":
                return row
            # The wait for the standby was cancelled, or another commit is in progress, or hangs.
            if self._closing:
                raise LogUnavailableError("this process is stopping")
            time.sleep(_TURN_SECONDS if turns < _TURNS else _LONG_TURN_SECONDS)
            turns += 1

    def _ask(self, statement: bytes, parameters: dict[str, Any]) -> tuple[Any, ...]:
        connection = self._connected()
        try:
            return self._execute(connection, statement, parameters)
        except psycopg.OperationalError:
            if self._closing or not connection.closed:
                raise
        # The session was ended since its last use, or while it waited.
        return self._execute(self._connected(), statement, parameters)

    def _execute(
        self, connection: _Connection, statement: bytes, parameters: dict[str, Any]
    ) -> tuple[Any, ...]:
        self._noticed = False
        row = connection.execute(statement, parameters, prepare=True).fetchone()
        assert row is not None, "the statement returns one row"
        return row

    def _connected(self) -> _Connection:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = connect(self._conninfo, self._name)
        try:
            wait_for_standby(connection)
        except BaseException:
            connection.close()
            raise
        connection.add_notice_handler(self._note)
        with self._lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = connection
        return connection

    def _note(self, _: psycopg.errors.Diagnostic) -> None:
        self._noticed = True


def _statement(found: str, *, wanted: str) -> bytes:
    return f"WITH found AS MATERIALIZED ({found}), {_COMMIT.format(wanted=wanted)}".encode()
