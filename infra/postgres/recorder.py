"""The one way to the events' tables: the eventsourcing library's recorder, with what was measured replaced.

As the library has it: `max_notification_id`, and what its `Application`, its event store and its
projections do with a recorder. Replaced, for the reasons and figures in docs/decisions/frame.md: the
statement that inserts, those that select, and `subscribe`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from uuid import UUID
from weakref import WeakSet

from eventsourcing.persistence import (
    ApplicationRecorder,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    StoredEvent,
    Subscription,
)
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore
from psycopg import Connection
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8

from domain.instants import Instant
from domain.ports import (
    ClaimTakenError,
    HeadMovedError,
    HistoryPoint,
    LogUnavailableError,
    NewClaim,
    NewDataKey,
    NewEvent,
    NotOwnerError,
    OutcomeUnknownError,
)
from infra.clock import SystemClock
from infra.postgres.arrays import BigintArray, TextArray
from infra.postgres.connections import ADVISORY_CLASS
from infra.postgres.data_keys import DataKeys
from infra.postgres.datastore import LEDGER_SCHEMA, PooledDatastore, SessionDatastore
from infra.postgres.insertion import PackedGroup, PendingInsert, pack_group, prepare_append, send_group
from infra.postgres.notifications import COLUMNS, EventData, LoggedEvent, select
from infra.postgres.subscription import LedgerSubscription

_TAKE_LOCK: Final = "SELECT pg_try_advisory_xact_lock(%s, %s) AS locked"
_LAST: Final = 2**63 - 1


def events_table(partition: int) -> str:
    """The name of a partition's table, without its schema."""
    return f"events_p{partition}"


def sql_head(partition: int) -> str:
    """An expression for statements that ask other things, too: the position of the last event."""
    return f"(SELECT coalesce(max(notification_id), 0) FROM {LEDGER_SCHEMA}.{events_table(partition)})"


def sql_has_event(partition: int) -> str:
    """An expression for the same: is the event `%(position)s` in the log, with the mark `%(mark)s`?"""
    return (
        f"EXISTS (SELECT FROM {LEDGER_SCHEMA}.{events_table(partition)}"
        " WHERE notification_id = %(position)s AND mark = %(mark)s)"
    )


class LedgerRecorder(PostgresApplicationRecorder):
    """One partition's events, on the sessions that its datastore gives.

    `data_keys`: where an `Application`'s mapper makes the data keys that go with what it saves.
    """

    def __init__(
        self, datastore: PostgresDatastore, *, partition: int = 0, data_keys: DataKeys | None = None
    ) -> None:
        super().__init__(datastore, events_table_name=events_table(partition))
        self.partition = partition
        self._data_keys = DataKeys() if data_keys is None else data_keys
        self._table = f"{LEDGER_SCHEMA}.{self.events_table_name}"
        self._select = f"SELECT {COLUMNS} FROM {self._table} WHERE"
        self._prepared_on = WeakSet[Connection[Any]]()
        """The sessions that know the append's statement."""
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
        """Nothing: our migrations made it."""

    # -- appending

    def begin_insert(self, group: PackedGroup) -> PendingInsert:
        """Send a group that `pack_group` has packed; its answer is waited for later, on the same session.

        It goes where it names the end of the log, or nowhere, and is never sent twice. Raises
        LogUnavailableError, or OutcomeUnknownError when the session broke; completing it raises the rest.
        """
        if isinstance(self.datastore, PooledDatastore):
            raise NotSupportedError("A pool takes its connection back before the answer is there.")
        with self.datastore.get_connection() as connection:
            return self._send(connection, group)

    def insert_events(
        self,
        stored_events: Sequence[StoredEvent] | Sequence[NewEvent],
        *,
        group_id: bytes | None = None,
        behind: HistoryPoint | None = None,
        claims: Sequence[NewClaim] = (),
        data_keys: Sequence[NewDataKey] = (),
        decided_at: Instant | None = None,
        **_: Any,
    ) -> Sequence[int] | None:
        """`begin_insert` and a wait: the positions that the events have got.

        `behind`: the end of the log that the events were decided on. Without it they go behind whatever
        is there: only where no owner holds the partition, which is how an `Application` saves. Raises the
        library's IntegrityError where nothing was written because of what is in the log, else its
        OperationalError; neither is tried again.
        """
        if not stored_events:
            return None
        events = [_new_event(one) for one in stored_events]
        pack = partial(
            pack_group,
            events,
            group_id=os.urandom(16) if group_id is None else group_id,
            claims=claims,
            decided_at=SystemClock().now() if decided_at is None else decided_at,
        )
        try:
            if behind is None:
                head = self._insert_at_end(pack)
            else:
                # One connection from sending to the answer: a pool would hand it to somebody else between.
                with self.datastore.get_connection() as connection:
                    head = self._send(connection, pack(behind=behind, data_keys=data_keys)).complete()
        except (NotOwnerError, LogUnavailableError, OutcomeUnknownError) as error:
            raise OperationalError(str(error)) from error
        except (ValueError, ClaimTakenError, HeadMovedError) as error:
            raise IntegrityError(str(error)) from error
        return range(head - len(events) + 1, head + 1)

    def _insert_at_end(self, pack: Callable[..., PackedGroup]) -> int:
        keys = self._data_keys.take_new()
        try:
            with self.datastore.get_connection() as connection, connection.transaction():
                behind = self._locked_end(connection)
                return self._send(connection, pack(behind=behind, data_keys=keys)).complete()
        except BaseException:
            self._data_keys.forget(key.subject for key in keys)
            raise

    def _send(self, connection: Connection[Any], group: PackedGroup) -> PendingInsert:
        if connection not in self._prepared_on:
            prepare_append(connection, self.partition)
            self._prepared_on.add(connection)
        return send_group(connection, group)

    def _locked_end(self, connection: Connection[Any]) -> HistoryPoint:
        row = connection.execute(_TAKE_LOCK, (ADVISORY_CLASS, self.partition)).fetchone()
        if not (row and row["locked"]):
            raise NotOwnerError(f"another session owns partition {self.partition}")
        return self._end_on(connection)

    # -- reading

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
            where.append("topic = ANY(%s)")
            parameters.append(TextArray(topics))
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
        """Up to `limit` events from position `start` (or behind it) up to `stop`, in order.

        `topics`: only those of these types. `containing`: only those whose data holds these bytes.
        """
        where = ["notification_id >= %s" if inclusive_of_start else "notification_id > %s"]
        parameters: list[Any] = [Int8(0 if start is None else start)]
        if stop is not None:
            where.append("notification_id <= %s")
            parameters.append(Int8(stop))
        if topics:
            where.append("topic = ANY(%s)")
            parameters.append(TextArray(topics))
        if containing is not None:
            where.append("position(%s IN state) > 0")
            parameters.append(containing)
        parameters.append(Int8(limit))
        return self._found(f"{' AND '.join(where)} ORDER BY notification_id LIMIT %s", parameters)

    def select_at(self, positions: Sequence[int]) -> list[LoggedEvent]:
        """The events at these positions (those that exist), in order of position."""
        return self._found("notification_id = ANY(%s) ORDER BY notification_id", (BigintArray(positions),))

    def select_data(self, after: int, limit: int) -> EventData:
        """`select_notifications` behind a position for who looks at nothing but the events' data.

        In one array in place of a row for each: PostgreSQL works a little more, this process a lot less
        (docs/decisions/frame.md).
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
        """All events behind position `gt`, those of these types, then new ones as they are committed.

        On a session of its own. Raises OtherHistoryError where the log has no event `gt`.
        """
        if not isinstance(self.datastore, PooledDatastore):
            raise NotSupportedError("A recorder on somebody's session cannot open another one.")
        return LedgerSubscription(self, self._new_session, gt=gt, topics=topics)

    def _new_session(self) -> tuple[Connection[Any], LedgerRecorder]:
        """A session, and a recorder on it."""
        assert isinstance(self.datastore, PooledDatastore), "it subscribes"
        session = self.datastore.new_session(f"keyledger p{self.partition} subscription")
        return session, LedgerRecorder(SessionDatastore(lambda: session), partition=self.partition)

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


def _new_event(stored: StoredEvent | NewEvent) -> NewEvent:
    if isinstance(stored, NewEvent):
        return stored
    return NewEvent(str(stored.originator_id), stored.originator_version, stored.topic, stored.state)
