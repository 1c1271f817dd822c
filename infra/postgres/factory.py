"""The eventsourcing library's factory: a stock `Application` reads the log, and saves where nobody owns it.

Application(env={"PERSISTENCE_MODULE": "infra.postgres.factory", "KEYLEDGER_DATABASE_URL": ...})
"""

from __future__ import annotations

from typing import Any, NoReturn, get_args

import msgspec
from eventsourcing.persistence import InfrastructureFactory, Mapper, NotSupportedError
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.utils import Environment, EnvType, resolve_topic

from infra.postgres.data_keys import DataKeys, select_data_keys
from infra.postgres.datastore import PooledDatastore
from infra.postgres.mapper import EventMapper
from infra.postgres.recorder import LedgerRecorder


class LedgerFactory(InfrastructureFactory[PostgresTrackingRecorder]):
    """Constructs recorder and mapper for the library."""

    DATABASE_URL = "KEYLEDGER_DATABASE_URL"
    MASTER_KEY = "KEYLEDGER_MASTER_KEY"
    EVENT_TYPES_TOPIC = "EVENT_TYPES_TOPIC"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        master_key = self.env.get(self.MASTER_KEY)
        self.datastore = PooledDatastore(self.env.get(self.DATABASE_URL, ""))
        self._data_keys = DataKeys(bytes.fromhex(master_key) if master_key else None)

    def mapper(self, *_: Any, **__: Any) -> Mapper[Any]:
        """Over the Structs that the topic names, by default the ledger's events."""
        types = resolve_topic(self.env.get(self.EVENT_TYPES_TOPIC) or "domain.events:LedgerEvent")
        mapper: EventMapper[msgspec.Struct] = EventMapper(
            get_args(types), data_keys=self._data_keys, find_data_keys=self._stored_data_keys
        )
        return mapper

    def _stored_data_keys(self, subject: str) -> dict[str, bytes]:
        with self.datastore.get_connection() as connection:
            return select_data_keys(connection, [subject])

    def application_recorder(self) -> LedgerRecorder:
        """The log's partition 0."""
        return LedgerRecorder(self.datastore, data_keys=self._data_keys)

    def aggregate_recorder(self, purpose: str = "events") -> LedgerRecorder:
        """The same: snapshots would need a table of their own."""
        assert purpose == "events", "the ledger keeps state rows instead of snapshots"
        return self.application_recorder()

    def tracking_recorder(self, *_: Any, **__: Any) -> NoReturn:
        """None: whoever follows the log tracks it in a database of their own."""
        raise NotSupportedError("A projection tracks the log in its own database, not in the ledger's.")

    def process_recorder(self) -> NoReturn:
        """None, likewise."""
        self.tracking_recorder()

    def close(self) -> None:
        """Close the connections."""
        self.datastore.close()
