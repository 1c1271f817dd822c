"""Where a projection keeps its tables: the library's tracking recorders, which also store the log's history.

A view's change and its tracking are one transaction, so that every event counts exactly once, no matter
when the process ends. The log's history (its id, epoch, and the event's mark) is stored in the same row: a
number alone would not distinguish a restored log from the one that was followed.

Transactions here do not wait for the disk: if the view's own database crashes, the last of them may be lost
as a whole, and their events are then read again. Nothing in the ledger depends on them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, Final

from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.sqlite import SQLiteCursor, SQLiteDatastore, SQLiteTrackingRecorder
from eventsourcing.utils import retry
from psycopg import Cursor
from psycopg.sql import SQL, Composed, Identifier

from keyledger_reading.positions import LogPosition

_HISTORY: Final = ("log_id", "epoch", "mark")
_ONE_ROW: Final = "A view tracks the log in one row: do not change SINGLE_ROW_TRACKING."


class TrackedView(TrackingRecorder):
    """A projection's tables in either database: combine it with PostgresView or SQLiteView."""

    tables: ClassVar[Sequence[str]] = ()
    """Statements that create the tables if they are missing (IF NOT EXISTS)."""
    parameter: ClassVar[str]
    """The placeholder for a parameter of a statement in this database."""

    @abstractmethod
    def counting(self, tracking: Tracking) -> AbstractContextManager[Any]:
        """A transaction that counts the event once: it commits what is written in it, and the tracking.

        Yields the cursor. Raises the library's IntegrityError if the event was counted before: then
        another process keeps this view, too.
        """


class PostgresView(TrackedView, PostgresTrackingRecorder):
    """Tables of a projection in PostgreSQL."""

    parameter = "%s"

    def __init__(self, datastore: PostgresDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        if not datastore.single_row_tracking:
            raise NotSupportedError(_ONE_ROW)
        table = SQL("{}.{}").format(Identifier(self.datastore.schema), Identifier(self.tracking_table_name))
        self.sql_create_statements += [
            SQL(
                "ALTER TABLE {} ADD COLUMN IF NOT EXISTS log_id text,"
                " ADD COLUMN IF NOT EXISTS epoch integer, ADD COLUMN IF NOT EXISTS mark bigint"
            ).format(table),
            *(Composed([SQL(one)]) for one in self.tables),  # pyright: ignore[reportArgumentType] - the author's own
        ]
        self._track = SQL(
            "INSERT INTO {0} AS t VALUES (%s, %s, %s, %s, %s) ON CONFLICT (application_name) DO UPDATE"
            " SET notification_id = excluded.notification_id, log_id = excluded.log_id,"
            " epoch = excluded.epoch, mark = excluded.mark"
            " WHERE t.notification_id < excluded.notification_id"
            " RETURNING set_config('synchronous_commit', 'off', true)"
        ).format(table)
        self._select_tracked = SQL(
            "SELECT notification_id, log_id, epoch, mark FROM {} WHERE application_name = %s"
        ).format(table)

    @contextmanager
    def counting(self, tracking: Tracking) -> Generator[Cursor[Any]]:
        """As in every view; the transaction is one of the server."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            yield cursor

    @retry((InterfaceError, OperationalError), max_attempts=10, wait=0.2)
    def max_tracking_id(self, application_name: str) -> int | None:
        """The last event that was counted, a LogPosition; None if none was."""
        if application_name == self.table_migration_identifier:
            migrated: int | None = super().max_tracking_id(application_name)
            return migrated
        with self.datastore.get_connection() as connection, connection.cursor() as cursor:
            cursor.execute(self._select_tracked, (application_name,))
            return _position(cursor.fetchone())

    def _insert_tracking(self, curs: Cursor[Any], tracking: Tracking) -> None:
        if not isinstance(tracking.notification_id, LogPosition):
            super()._insert_tracking(curs, tracking)
            return
        curs.execute(self._track, _row(tracking), prepare=True)
        if curs.fetchone() is None:
            raise _counted_before(tracking)


class SQLiteView(TrackedView, SQLiteTrackingRecorder):
    """Tables of a projection in SQLite."""

    parameter = "?"

    _TRACK: Final = (
        "INSERT INTO tracking VALUES (?, ?, ?, ?, ?) ON CONFLICT (application_name) DO UPDATE"
        " SET notification_id = excluded.notification_id, log_id = excluded.log_id,"
        " epoch = excluded.epoch, mark = excluded.mark"
        " WHERE tracking.notification_id < excluded.notification_id RETURNING notification_id"
    )
    _SELECT_TRACKED: Final = (
        "SELECT notification_id, log_id, epoch, mark FROM tracking WHERE application_name = ?"
    )

    def __init__(self, datastore: SQLiteDatastore, **kwargs: Any) -> None:
        super().__init__(datastore, **kwargs)
        if not datastore.single_row_tracking:
            raise NotSupportedError(_ONE_ROW)
        self.create_table_statements += self.tables
        # The library's statement names no columns, and the table has more than its two.
        self.insert_tracking_statement = self.insert_tracking_statement.replace(
            "INSERT INTO tracking VALUES", "INSERT INTO tracking (application_name, notification_id) VALUES"
        )

    def _create_table(self, c: SQLiteCursor) -> None:
        super()._create_table(c)
        c.execute("SELECT name FROM pragma_table_info('tracking')")
        there = {row["name"] for row in c.fetchall()}
        for column in _HISTORY:
            if column not in there:
                c.execute(f"ALTER TABLE tracking ADD COLUMN {column}")

    @contextmanager
    def counting(self, tracking: Tracking) -> Generator[SQLiteCursor]:
        """As in every view; only one process writes at a time."""
        with self.datastore.get_connection(commit=True) as connection:
            connection.cursor().execute("PRAGMA synchronous = NORMAL")
            with connection.transaction(commit=True) as cursor:
                self._insert_tracking(cursor, tracking)
                yield cursor

    def max_tracking_id(self, application_name: str) -> int | None:
        """The last event that was counted, a LogPosition; None if none was."""
        if application_name == self.table_migration_identifier:
            return super().max_tracking_id(application_name)
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(self._SELECT_TRACKED, (application_name,))
            return _position(cursor.fetchone())

    def _insert_tracking(self, c: SQLiteCursor, tracking: Tracking) -> None:
        if not isinstance(tracking.notification_id, LogPosition):
            super()._insert_tracking(c, tracking)
            return
        c.execute(self._TRACK, _row(tracking))
        if c.fetchone() is None:
            raise _counted_before(tracking)


def _row(tracking: Tracking) -> tuple[str, int, str, int, int]:
    position = tracking.notification_id
    assert isinstance(position, LogPosition), "the caller has checked it"
    return tracking.application_name, int(position), position.log_id, position.epoch, position.mark


def _position(row: Mapping[str, Any] | None) -> int | None:
    if row is None:
        return None
    position: int = row["notification_id"]
    if row["log_id"] is None:
        return position
    return LogPosition(position, log_id=row["log_id"], epoch=row["epoch"], mark=row["mark"])


def _counted_before(tracking: Tracking) -> IntegrityError:
    return IntegrityError(
        f"Event {tracking.notification_id} was counted already: another process keeps this view, too."
    )
