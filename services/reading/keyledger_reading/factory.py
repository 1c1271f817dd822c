"""The eventsourcing library's factory: recorder and mapper for reading a log.

A stock `Application` uses it with PERSISTENCE_MODULE=keyledger_reading.factory; `KeyledgerLog` sets that.
"""

from __future__ import annotations

from typing import Any, NoReturn, get_args

from eventsourcing.persistence import InfrastructureFactory, Mapper, NotSupportedError, PersistenceError
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.utils import Environment, EnvType

from keyledger_language.events import LedgerEvent
from keyledger_reading.datastore import PooledDatastore
from keyledger_reading.mapper import ReadingMapper
from keyledger_reading.recorder import ReadingRecorder


class ReadingFactory(InfrastructureFactory[PostgresTrackingRecorder]):
    """Constructs recorder and mapper for the library."""

    DATABASE_URL = "KEYLEDGER_DATABASE_URL"
    EPOCH = "KEYLEDGER_EPOCH"

    def __init__(self, env: Environment | EnvType | None) -> None:
        super().__init__(env)
        self.datastore = self._datastore(self._setting(self.DATABASE_URL, "the database of the log"))

    def _setting(self, name: str, what: str) -> str:
        value = self.env.get(name, "")
        if not value:
            raise PersistenceError(f"Set {name} to {what}, as a URL or libpq conninfo.")
        return value

    def _datastore(self, conninfo: str) -> PooledDatastore:
        return PooledDatastore(conninfo)

    def mapper(self, *_: Any, **__: Any) -> Mapper[Any]:
        """A mapper of the ledger's events."""
        mapper: ReadingMapper[Any] = ReadingMapper(get_args(LedgerEvent))
        return mapper

    def application_recorder(self) -> ReadingRecorder:
        """A recorder of the log's partition 0."""
        epoch = self.env.get(self.EPOCH)
        if epoch and not epoch.isdecimal():
            raise PersistenceError(f"{self.EPOCH} must be the number of an epoch of the log, such as 2.")
        return ReadingRecorder(self.datastore, epoch=int(epoch) if epoch else None)

    def aggregate_recorder(self, purpose: str = "events") -> ReadingRecorder:
        """The same recorder: there are no snapshots, which would need a table of their own."""
        assert purpose == "events", "the ledger keeps state rows instead of snapshots"
        return self.application_recorder()

    def tracking_recorder(self, *_: Any, **__: Any) -> NoReturn:
        """Not supported: a projection tracks the log in a database of its own."""
        raise NotSupportedError("A projection tracks the log in its own database, not in the ledger's.")

    def process_recorder(self) -> NoReturn:
        """Not supported, likewise."""
        self.tracking_recorder()

    def close(self) -> None:
        """Close the connections."""
        self.datastore.close()
