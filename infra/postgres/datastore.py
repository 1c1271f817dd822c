"""The pool of a stock `Application` that may also save; not on the hot path."""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import SERVICE_ROLE
from keyledger_reading.datastore import PooledDatastore


class AppendingDatastore(PooledDatastore):
    """Connections that act in the service's role and can send packed arrays."""

    def __init__(self, conninfo: str) -> None:
        super().__init__(conninfo, role=SERVICE_ROLE)

    def _prepare(self, connection: Connection[Any]) -> None:
        super()._prepare(connection)
        register_packed_arrays(connection)
