"""The log behind the eventsourcing library: a stock `Application` reads our streams and notifications.

    Application(env={"PERSISTENCE_MODULE": "infra.postgres.recorder", "KEYLEDGER_DATABASE_URL": ...})

Reads are the library's own; its insert path is replaced by the append function, which needs no
table lock, leaves no holes, and is never retried blindly.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, get_args

import msgspec
from eventsourcing import postgres
from eventsourcing.persistence import (
    InfrastructureFactory,
    IntegrityError,
    JSONTranscoder,
    Mapper,
    OperationalError,
    StoredEvent,
)
from eventsourcing.utils import Environment, EnvType, resolve_topic
from psycopg import Connection
from psycopg.rows import dict_row, tuple_row

from domain.ports import (
    Group,
    HistoryPoint,
    LogUnavailableError,
    NewEvent,
    NotOwnerError,
    OutcomeUnknownError,
    RecordedEvent,
)
from infra.clock import SystemClock
from infra.postgres.appending import append_group
from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import ADVISORY_CLASS, ledger_conninfo, prepare_session
from infra.postgres.data_keys import DataKeys
from infra.postgres.log import select_end
from infra.postgres.mapper import EventMapper

_POOL_SIZE: Final = 4


class StreamEvent(NamedTuple):
    """What the library calls a domain event: ours, with its place in its stream."""

    originator_id: str
    originator_version: int
    event: Any


class LedgerDatastore(postgres.PostgresDatastore):
    """The library's datastore on our kind of connection."""

    def __init__(self, conninfo: str) -> None:
        super().__init__("", "", "", "", "", schema="ledger", originator_id_type="text")
        self.pool = postgres.ConnectionPool(
            ledger_conninfo(conninfo, "keyledger library"),
            connection_class=Connection[dict[str, Any]],
            kwargs={"row_factory": dict_row, "autocommit": True},
            min_size=1,
            max_size=_POOL_SIZE,
            open=False,
            configure=_configure,
            timeout=5.0,
        )

    def stored_data_keys(self, subject: str) -> dict[str, bytes]:
        """The data key of a subject, if it has one."""
        select = "SELECT material FROM ledger.data_keys WHERE subject = %s"
        with self.get_connection() as connection:
            row = connection.execute(select, (subject,)).fetchone()
        return {} if row is None else {subject: bytes(row["material"])}


class LedgerRecorder(postgres.PostgresApplicationRecorder):
    """Reads as the library does; inserts with the append function."""

    def __init__(
        self, datastore: LedgerDatastore, *, partition: int = 0, data_keys: DataKeys | None = None
    ) -> None:
        super().__init__(datastore, events_table_name=f"events_p{partition}")
        self._partition = partition
        self._data_keys = DataKeys() if data_keys is None else data_keys
        self._clock = SystemClock()

    def create_table(self) -> None:
        """Nothing: our migrations made it."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """Append as one group, where no owner holds the partition; never tried twice."""
        if not stored_events:
            return None
        events = [
            NewEvent(str(stored.originator_id), stored.originator_version, stored.topic, stored.state)
            for stored in stored_events
        ]
        keys = self._data_keys.take_new()
        try:
            with self.datastore.get_connection() as connection, connection.transaction():
                behind = self._locked_end(connection)
                group = Group(os.urandom(16), behind, events, (), keys)
                append_group(connection, self._partition, group, self._clock.now())
        except ValueError as error:
            self._data_keys.forget(key.subject for key in keys)
            raise IntegrityError(str(error)) from error
        except (NotOwnerError, LogUnavailableError, OutcomeUnknownError) as error:
            self._data_keys.forget(key.subject for key in keys)
            raise OperationalError(str(error)) from error
        first = behind.position + 1
        return range(first, first + len(events))

    def _locked_end(self, connection: Connection[Any]) -> HistoryPoint:
        lock = "SELECT pg_try_advisory_xact_lock(%s, %s) AS locked"
        row = connection.execute(lock, (ADVISORY_CLASS, self._partition)).fetchone()
        if not (row and row["locked"]):
            raise NotOwnerError(f"another session owns partition {self._partition}")
        end = connection.cursor(row_factory=tuple_row).execute(select_end(self._partition)).fetchone()
        assert end is not None, "a log has an identity"
        return HistoryPoint(*end)


class LedgerMapper(Mapper[str]):
    """The library's mapper over ours."""

    def __init__(
        self, mapper: EventMapper[Any], find_data_keys: Callable[[str], dict[str, bytes]] = lambda _: {}
    ) -> None:
        super().__init__(JSONTranscoder())
        self._mapper = mapper
        self._find_data_keys = find_data_keys

    def to_stored_event(self, domain_event: Any) -> StoredEvent:  # the library's protocol is looser
        """The bytes of a `StreamEvent`."""
        stream, version, event = domain_event
        new = self._mapper.new_event(stream, version, event)
        return StoredEvent(new.stream, new.version, new.type, new.data)

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """The `StreamEvent` of stored bytes; erased personal fields are None."""
        stream, version = str(stored_event.originator_id), stored_event.originator_version
        recorded = RecordedEvent(0, stream, version, stored_event.topic, stored_event.state)
        subject = self._mapper.subject_of(recorded)
        if subject is not None and not self._mapper.data_keys.knows(subject):
            self._mapper.data_keys.learn(self._find_data_keys(subject))
        return StreamEvent(stream, version, self._mapper.decode(recorded))


class LedgerFactory(InfrastructureFactory[postgres.PostgresTrackingRecorder]):
    """Constructs the above for a stock `Application`."""

    DATABASE_URL = "KEYLEDGER_DATABASE_URL"
    MASTER_KEY = "KEYLEDGER_MASTER_KEY"
    EVENT_TYPES_TOPIC = "EVENT_TYPES_TOPIC"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        master_key = self.env.get(self.MASTER_KEY)
        self.datastore = LedgerDatastore(self.env.get(self.DATABASE_URL, ""))
        self._data_keys = DataKeys(bytes.fromhex(master_key) if master_key else None)

    def mapper(self, *_: Any, **__: Any) -> Mapper[Any]:
        """Over the Structs that the topic names, by default the ledger's events."""
        types = resolve_topic(self.env.get(self.EVENT_TYPES_TOPIC) or "domain.events:LedgerEvent")
        mapper: EventMapper[msgspec.Struct] = EventMapper(get_args(types), data_keys=self._data_keys)
        return LedgerMapper(mapper, self.datastore.stored_data_keys)

    def application_recorder(self) -> LedgerRecorder:
        """The log's partition 0."""
        return LedgerRecorder(self.datastore, data_keys=self._data_keys)

    def aggregate_recorder(self, purpose: str = "events") -> LedgerRecorder:
        """The same: snapshots would need a table of their own."""
        assert purpose == "events", "the ledger keeps state rows instead of snapshots"
        return self.application_recorder()

    def tracking_recorder(self, *_: Any, **__: Any) -> Any:
        """None: projections keep their checkpoints in their own schema."""
        raise NotImplementedError("projections keep their checkpoints in their own schema")

    def process_recorder(self) -> Any:
        """None, likewise."""
        raise NotImplementedError("projections keep their checkpoints in their own schema")

    def close(self) -> None:
        """Close the connections."""
        self.datastore.close()


def _configure(connection: Connection[Any]) -> None:
    prepare_session(connection)
    register_packed_arrays(connection)
