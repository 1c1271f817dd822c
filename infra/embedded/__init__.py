"""PostgreSQL and NATS from their wheels, supervised by the ledger."""

from infra.embedded.errors import DataFolderBusyError, DataFolderError, EmbeddedError, ServerFailedError
from infra.embedded.folder import DataFolder
from infra.embedded.nats import EmbeddedNats
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.servers import EmbeddedServers

__all__ = [
    "DataFolder",
    "DataFolderBusyError",
    "DataFolderError",
    "EmbeddedError",
    "EmbeddedNats",
    "EmbeddedPostgres",
    "EmbeddedServers",
    "ServerFailedError",
]
