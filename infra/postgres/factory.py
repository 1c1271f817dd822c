"""The eventsourcing library's factory: a stock `Application` reads the log, and saves if it has no owner.

Application(env={"PERSISTENCE_MODULE": "infra.postgres.factory", "KEYLEDGER_DATABASE_URL": ...})
"""

from __future__ import annotations

from typing import Any, get_args

import msgspec
from eventsourcing.persistence import Mapper
from eventsourcing.utils import Environment, EnvType, resolve_topic

from infra.postgres.data_keys import DataKeys, select_data_keys
from infra.postgres.datastore import AppendingDatastore
from infra.postgres.mapper import EventMapper
from infra.postgres.recorder import LedgerRecorder
from keyledger_reading import factory as reading


class LedgerFactory(reading.ReadingFactory):
    """Constructs recorder and mapper for the library: those that also write, and decrypt personal fields."""

    MASTER_KEY = "KEYLEDGER_MASTER_KEY"
    EVENT_TYPES_TOPIC = "EVENT_TYPES_TOPIC"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        master_key = self.env.get(self.MASTER_KEY)
        self._data_keys = DataKeys(bytes.fromhex(master_key) if master_key else None)

    def _datastore(self, conninfo: str) -> AppendingDatastore:
        return AppendingDatastore(conninfo)

    def mapper(self, *_: Any, **__: Any) -> Mapper[Any]:
        """A mapper of the Structs that the topic names, by default the ledger's events."""
        types = resolve_topic(self.env.get(self.EVENT_TYPES_TOPIC) or "keyledger_language.events:LedgerEvent")
        mapper: EventMapper[msgspec.Struct] = EventMapper(
            get_args(types), data_keys=self._data_keys, find_data_keys=self._stored_data_keys
        )
        return mapper

    def _stored_data_keys(self, subject: str) -> dict[str, bytes]:
        with self.datastore.get_connection() as connection:
            return select_data_keys(connection, [subject])

    def application_recorder(self) -> LedgerRecorder:
        """A recorder of the log's partition 0."""
        return LedgerRecorder(self.datastore, data_keys=self._data_keys)
