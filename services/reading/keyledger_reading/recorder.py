"""Reading the log with the eventsourcing library's recorder, parts of which are replaced.

Unchanged: `max_notification_id`, and what the library's `Application`, event store and projections do with
a recorder. Replaced, for the reasons and figures in docs/decisions/frame.md: the SELECT statements, and
`subscribe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from eventsourcing.persistence import (
    ApplicationRecorder,
    NotSupportedError,
    PersistenceError,
    Subscription,
)
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege, UndefinedTable
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8

from keyledger_language.history import HistoryPoint
from keyledger_reading.connections import READER_ROLE
from keyledger_reading.datastore import LEDGER_SCHEMA, PooledDatastore, SessionDatastore
from keyledger_reading.notifications import COLUMNS, EventData, LoggedEvent, select
from keyledger_reading.subscription import LedgerSubscription

_LAST: Final = 2**63 - 1
_SELECT_LOG_ID: Final = f"SELECT log_id::text FROM {LEDGER_SCHEMA}.identity".encode()


def events_table(partition: int) -> str:
    """The name of a partition's table, without its schema."""
    return f"events_p{partition}"


class ReadingRecorder(PostgresApplicationRecorder):
    """One partition's events, on the sessions that its datastore provides. It appends nothing.

    `epoch`: subscriptions continue in this epoch, although they followed an earlier one.
    """

    def __init__(self, datastore: PostgresDatastore, *, partition: int = 0, epoch: int | None = None) -> None:
        super().__init__(datastore, events_table_name=events_table(partition))
        self.partition = partition
        self._accepted_epoch = epoch
        self._table = f"{LEDGER_SCHEMA}.{self.events_table_name}"
        self._select = f"SELECT {COLUMNS} FROM {self._table} WHERE"
        self._select_data = (
            f"SELECT last, states, (SELECT mark FROM {self._table} WHERE notification_id = last),"
            f" (SELECT mark FROM {self._table} WHERE notification_id = %s)"
            " FROM (SELECT coalesce(max(notification_id), 0) AS last,"
            " coalesce(array_agg(state), '{}') AS states"
            f" FROM (SELECT notification_id, state FROM {self._table}"
            " WHERE notification_id > %s ORDER BY notification_id LIMIT %s) AS e) AS r"
        )
        self._select_end = (
            "SELECT coalesce(last.notification_id, 0), coalesce(last.mark, 0), i.epoch"
            f" FROM {LEDGER_SCHEMA}.identity AS i LEFT JOIN LATERAL (SELECT notification_id, mark"
            f" FROM {self._table} ORDER BY notification_id DESC LIMIT 1) AS last ON true"
        )

    def create_table(self) -> None:
        """Does nothing: our migrations create the table."""

    def insert_events(self, *_: Any, **__: Any) -> Sequence[int] | None:
        """Raises NotSupportedError: a reader appends nothing."""
        raise NotSupportedError("The log is read-only here: only a ledger writes it.")

    def select_events(  # type: ignore[override]  # as below
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
        topics: Sequence[str] = (),
    ) -> list[LoggedEvent]:
        """One stream's events by version, each with its position; `topics`: only those of these types."""
        where, parameters = ["originator_id = %s"], list[Any]((str(originator_id),))
        if gt is not None:
            where.append("originator_version > %s")
            parameters.append(Int8(gt))
        if lte is not None:
            where.append("originator_version <= %s")
            parameters.append(Int8(lte))
        if topics:
            where.append("topic = ANY(%s::text[])")
            parameters.append(list(topics))
        parameters.append(Int8(_LAST if limit is None else limit))
        order = "DESC" if desc else "ASC"
        return self._found(f"{' AND '.join(where)} ORDER BY originator_version {order} LIMIT %s", parameters)

    def select_notifications(  # type: ignore[override]  # rows that look like the library's, and carry the mark
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
        containing: bytes | None = None,
    ) -> list[LoggedEvent]:
        """Up to `limit` events from position `start` (or after it) up to `stop`, in order.

        `topics`: only those of these types. `containing`: only those whose data contains these bytes.
        """
        where = ["notification_id >= %s" if inclusive_of_start else "notification_id > %s"]
        parameters: list[Any] = [Int8(0 if start is None else start)]
        if stop is not None:
            where.append("notification_id <= %s")
            parameters.append(Int8(stop))
        if topics:
            where.append("topic = ANY(%s::text[])")
            parameters.append(list(topics))
        if containing is not None:
            where.append("position(%s IN state) > 0")
            parameters.append(containing)
        parameters.append(Int8(limit))
        return self._found(f"{' AND '.join(where)} ORDER BY notification_id LIMIT %s", parameters)

    def select_at(self, positions: Sequence[int]) -> list[LoggedEvent]:
        """The events at these positions (those that exist), in order of position."""
        return self._found("notification_id = ANY(%s::bigint[]) ORDER BY notification_id", (list(positions),))

    def select_data(self, after: int, limit: int) -> EventData:
        """Like `select_notifications` after a position, for callers that need only the events' data.

        In one array instead of a row for each: a little more work for PostgreSQL, a lot less for this
        process (docs/decisions/frame.md).
        """
        with self.datastore.get_connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row, binary=True)
            row = cursor.execute(
                self._select_data.encode(), (Int8(after), Int8(after), Int8(limit)), prepare=True
            ).fetchone()
        assert row is not None, "an aggregate is a row"
        last, data, mark, mark_before = row
        return EventData(last, data, mark or 0, mark_before)

    def subscribe(
        self, gt: int | None = None, topics: Sequence[str] = ()
    ) -> Subscription[ApplicationRecorder]:
        """All events after position `gt` (of these types only), then new ones as they are committed.

        On a session of its own. A position above 0 has to be a `LogPosition`. Raises DifferentPastError
        if the log has no such event.
        """
        return LedgerSubscription(self, self.new_session, gt=gt, topics=topics, epoch=self._accepted_epoch)

    def new_session(self) -> tuple[Connection[Any], ReadingRecorder]:
        """A session like the pool's, and a recorder on it."""
        if not isinstance(self.datastore, PooledDatastore):
            raise NotSupportedError("A recorder on its caller's session cannot open another one.")
        session = self.datastore.new_session(f"keyledger p{self.partition} subscription")
        return session, ReadingRecorder(SessionDatastore(lambda: session), partition=self.partition)

    def log_id(self) -> str:
        """Which ledger's log it is. Raises PersistenceError where there is none, or it may not be read."""
        with self.datastore.get_connection() as connection:
            cursor = connection.cursor(row_factory=tuple_row)
            try:
                row = cursor.execute(_SELECT_LOG_ID).fetchone()
            except InsufficientPrivilege:
                raise PersistenceError(
                    f"The user {connection.info.user} may not read the log: GRANT {READER_ROLE} TO it. If"
                    " there is no such role, run `keyledger migrate` with this version."
                ) from None
            except UndefinedTable:
                raise PersistenceError(
                    f"The database {connection.info.dbname} has no ledger: KEYLEDGER_DATABASE_URL names the"
                    " wrong one."
                ) from None
        assert row is not None, "a log has an identity"
        return str(row[0])

    def end(self) -> HistoryPoint:
        """Where the log ends: the last event's position and mark, and the log's epoch, as of one moment."""
        with self.datastore.get_connection() as connection:
            return self._end_on(connection)

    def _end_on(self, connection: Connection[Any]) -> HistoryPoint:
        cursor = connection.cursor(row_factory=tuple_row, binary=True)
        row = cursor.execute(self._select_end.encode(), prepare=True).fetchone()
        assert row is not None, "a log has an identity"
        return HistoryPoint(*row)

    def _found(self, where: str, parameters: Sequence[Any]) -> list[LoggedEvent]:
        with self.datastore.get_connection() as connection:
            return select(connection, f"{self._select} {where}", parameters)
