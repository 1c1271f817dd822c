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
from typing import Any, ClassVar, Final, cast

from eventsourcing.persistence import (
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    OperationalError,
    PersistenceError,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.sqlite import SQLiteCursor, SQLiteDatastore, SQLiteTrackingRecorder
from eventsourcing.utils import retry
from psycopg import Cursor
from psycopg.pq import TransactionStatus
from psycopg.sql import SQL, Composed, Identifier

from keyledger_reading.positions import LogPosition

_COLUMNS: Final = ("notification_id", "log_id", "epoch", "mark", "topics", "view")
"""Of the tracking row, behind `application_name`."""
_ONE_ROW: Final = "A view tracks the log in one row: do not change SINGLE_ROW_TRACKING."
_SWALLOWED: Final = (
    "A statement inside `counting` failed, and its error was caught there: the database has given up the"
    " transaction. Let the error through, or use a savepoint."
)


class TrackedView(TrackingRecorder):
    """A projection's tables in either database: combine it with PostgresView or SQLiteView."""

    tables: ClassVar[Sequence[str]] = ()
    """Statements that create the tables if they are missing (IF NOT EXISTS)."""
    parameter: ClassVar[str]
    """The placeholder for a parameter of a statement in this database."""

    _counted: LogPosition | None = None
    """The last event that was counted, as far as this process knows; None if none was."""
    _has_looked: bool = False
    """Whether `_counted` was read: once, before events are counted; then this process knows it best."""

    @abstractmethod
    def counting(self, tracking: Tracking) -> AbstractContextManager[Any]:
        """A transaction that counts the event once: it commits what is written in it, and the tracking.

        Yields the cursor. Raises the library's IntegrityError if the tracking table is not at the event
        that this process counted last: then another process keeps this view, too, or has changed it.
        """

    def _values(self, tracking: Tracking) -> list[Any]:
        """A tracking row without its name, then the position and the mark that it has until now."""
        position = tracking.notification_id
        if not isinstance(position, LogPosition):
            raise NotSupportedError("A view follows a KeyledgerLog, whose positions carry their history.")
        history = [position.log_id, position.epoch, position.mark, position.topics]
        before = self._counted
        known = [] if before is None else [int(before), before.mark]
        return [int(position), *history, type(self).__name__, tracking.application_name, *known]

    def _read(self, row: Mapping[str, Any] | None) -> int | None:
        """The position of a tracking row. Raises PersistenceError for the row of another view."""
        first, self._has_looked = not self._has_looked, True
        if row is None:
            return None
        position: int = row["notification_id"]
        if row["log_id"] is None:
            return position
        name = type(self).__name__
        if row["view"] != name:
            raise PersistenceError(
                f"This tracking table is the one of {row['view']}, not of {name}: use a database (in"
                " PostgreSQL: a projection name) of its own for each view. If the class was renamed, set"
                " the column `view`."
            )
        found = LogPosition(position, **{column: row[column] for column in _COLUMNS[1:5]})
        if first:
            self._counted = found
        return found

    def _refuse_to_track(self, tracking: Tracking) -> IntegrityError:
        before = "at its beginning" if self._counted is None else f"at event {self._counted}"
        return IntegrityError(
            f"Event {tracking.notification_id} cannot be counted: the tracking table is not {before} any"
            " more. Another process keeps this view, too, or its tables were emptied or restored meanwhile."
        )


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
                "ALTER TABLE {} ADD COLUMN IF NOT EXISTS log_id text, ADD COLUMN IF NOT EXISTS epoch integer,"
                " ADD COLUMN IF NOT EXISTS mark bigint, ADD COLUMN IF NOT EXISTS topics text,"
                " ADD COLUMN IF NOT EXISTS view text"
            ).format(table),
            *(Composed([SQL(one)]) for one in self.tables),  # pyright: ignore[reportArgumentType] - the author's own
        ]
        columns = SQL(", ".join(_COLUMNS))
        returning = SQL("RETURNING set_config('synchronous_commit', 'off', true)")
        self._track_first = SQL(
            "INSERT INTO {} ({}, application_name) VALUES (%s, %s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING {}"
        ).format(table, columns, returning)
        self._track_next = SQL(
            "UPDATE {} SET ({}) = (%s, %s, %s, %s, %s, %s)"
            " WHERE application_name = %s AND notification_id = %s AND mark = %s {}"
        ).format(table, columns, returning)
        self._select_tracked = SQL("SELECT {} FROM {} WHERE application_name = %s").format(columns, table)

    @contextmanager
    def counting(self, tracking: Tracking) -> Generator[Cursor[Any]]:
        """As in every view; the transaction is one of the server."""
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            yield cursor
            if cursor.connection.info.transaction_status != TransactionStatus.INTRANS:
                raise PersistenceError(_SWALLOWED)
        self._counted = cast("LogPosition", tracking.notification_id)

    def max_tracking_id(self, application_name: str) -> int | None:
        """The last event that was counted, a LogPosition; None if none was."""
        if application_name == self.table_migration_identifier:
            migrated: int | None = super().max_tracking_id(application_name)
            return migrated
        tracked: int | None = self._tracked(application_name)
        return tracked

    @retry((InterfaceError, OperationalError), max_attempts=3, wait=0.2)
    def _tracked(self, application_name: str) -> int | None:
        with self.datastore.get_connection() as connection, connection.cursor() as cursor:
            cursor.execute(self._select_tracked, (application_name,))
            return self._read(cursor.fetchone())

    def _insert_tracking(self, curs: Cursor[Any], tracking: Tracking) -> None:
        if tracking.application_name == self.table_migration_identifier:
            super()._insert_tracking(curs, tracking)
            return
        statement = self._track_first if self._counted is None else self._track_next
        curs.execute(statement, self._values(tracking), prepare=True)
        if curs.fetchone() is None:
            raise self._refuse_to_track(tracking)


class SQLiteView(TrackedView, SQLiteTrackingRecorder):
    """Tables of a projection in SQLite."""

    parameter = "?"

    _TRACK_FIRST: Final = (
        f"INSERT INTO tracking ({', '.join(_COLUMNS)}, application_name) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING notification_id"
    )
    _TRACK_NEXT: Final = (
        f"UPDATE tracking SET ({', '.join(_COLUMNS)}) = (?, ?, ?, ?, ?, ?)"
        " WHERE application_name = ? AND notification_id = ? AND mark = ? RETURNING notification_id"
    )
    _SELECT_TRACKED: Final = f"SELECT {', '.join(_COLUMNS)} FROM tracking WHERE application_name = ?"

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
        for column in _COLUMNS:
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
                if not connection._sqlite_conn.in_transaction:  # noqa: SLF001 - the library shows it nowhere
                    raise PersistenceError(_SWALLOWED)
        self._counted = cast("LogPosition", tracking.notification_id)

    def max_tracking_id(self, application_name: str) -> int | None:
        """The last event that was counted, a LogPosition; None if none was."""
        if application_name == self.table_migration_identifier:
            return super().max_tracking_id(application_name)
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute(self._SELECT_TRACKED, (application_name,))
            return self._read(cursor.fetchone())

    def _insert_tracking(self, c: SQLiteCursor, tracking: Tracking) -> None:
        if tracking.application_name == self.table_migration_identifier:
            super()._insert_tracking(c, tracking)
            return
        c.execute(self._TRACK_FIRST if self._counted is None else self._TRACK_NEXT, self._values(tracking))
        if c.fetchone() is None:
            raise self._refuse_to_track(tracking)
