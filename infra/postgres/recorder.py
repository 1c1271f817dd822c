"""Appending to the log with the eventsourcing library's recorder: adds writing to the one that reads.

The statement that inserts is our own, and it is never sent twice: docs/decisions/frame.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from eventsourcing.persistence import IntegrityError, NotSupportedError, OperationalError, StoredEvent
from eventsourcing.postgres import PostgresDatastore
from psycopg import Connection

from domain.ports import (
    ClaimTakenError,
    HeadMovedError,
    LogUnavailableError,
    NewClaim,
    NewDataKey,
    NewEvent,
    NotOwnerError,
    OutcomeUnknownError,
)
from infra.clock import SystemClock
from infra.postgres.connections import ADVISORY_CLASS
from infra.postgres.data_keys import DataKeys
from infra.postgres.insertion import PackedGroup, PendingInsert, pack_group, prepare_append, send_group
from keyledger_language.history import HistoryPoint
from keyledger_language.instants import Instant
from keyledger_reading.datastore import LEDGER_SCHEMA, PooledDatastore
from keyledger_reading.recorder import ReadingRecorder, events_table

_TAKE_LOCK: Final = "SELECT pg_try_advisory_xact_lock(%s, %s) AS locked"


def sql_head(partition: int) -> str:
    """An expression for use in larger statements: the position of the last event."""
    return f"(SELECT coalesce(max(notification_id), 0) FROM {LEDGER_SCHEMA}.{events_table(partition)})"


def sql_has_event(partition: int) -> str:
    """An expression, likewise: whether the event `%(position)s` with the mark `%(mark)s` is in the log."""
    return (
        f"EXISTS (SELECT FROM {LEDGER_SCHEMA}.{events_table(partition)}"
        " WHERE notification_id = %(position)s AND mark = %(mark)s)"
    )


class LedgerRecorder(ReadingRecorder):
    """One partition's events, on the sessions that its datastore provides.

    `data_keys`: in which an `Application`'s mapper creates the data keys that are saved with its events.
    """

    def __init__(
        self, datastore: PostgresDatastore, *, partition: int = 0, data_keys: DataKeys | None = None
    ) -> None:
        super().__init__(datastore, partition=partition)
        self._data_keys = DataKeys() if data_keys is None else data_keys
        self._prepared_on = WeakSet[Connection[Any]]()
        """The sessions on which the append's statement is prepared."""

    def begin_insert(self, group: PackedGroup) -> PendingInsert:
        """Send a group that `pack_group` has packed; its answer is awaited later, on the same session.

        It is only written if it names the current end of the log, and is never sent twice. Raises
        LogUnavailableError, or OutcomeUnknownError if the session broke; completing it raises the rest.
        """
        if isinstance(self.datastore, PooledDatastore):
            raise NotSupportedError("A pool takes its connection back before the answer has arrived.")
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
        """`begin_insert` and a wait: returns the positions of the events.

        `behind`: the end of the log that the events were decided on. Without it they are appended at the
        current end, only if no owner holds the partition: this is how an `Application` saves. Raises the
        library's IntegrityError if nothing was written because of what is in the log, otherwise its
        OperationalError; neither is retried.
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
                # One connection from sending to the answer: a pool would lend it to others in between.
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


def _new_event(stored: StoredEvent | NewEvent) -> NewEvent:
    if isinstance(stored, NewEvent):
        return stored
    return NewEvent(str(stored.originator_id), stored.originator_version, stored.topic, stored.state)
