"""The embedded servers together: one folder, one lock, started in parallel, stopped in order."""

from pathlib import Path
from types import TracebackType
from typing import Self

from infra.embedded.folder import DataFolder
from infra.embedded.nats import EmbeddedNats
from infra.embedded.postgres import EmbeddedPostgres


class EmbeddedServers:
    """The servers that the operator does not provide, for the duration of the `with` block."""

    def __init__(
        self, path: Path | str, *, postgres: bool = True, nats: bool = True, nats_port: int | None = None
    ) -> None:
        self.folder = DataFolder(path)
        self._postgres = EmbeddedPostgres(self.folder) if postgres else None
        self._nats = EmbeddedNats(self.folder, port=nats_port) if nats else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def postgres(self) -> EmbeddedPostgres:
        """The database, if it is embedded."""
        if self._postgres is None:
            raise LookupError("this keyledger uses its operator's PostgreSQL")
        return self._postgres

    @property
    def nats(self) -> EmbeddedNats:
        """The message server, if it is embedded."""
        if self._nats is None:
            raise LookupError("this keyledger uses its operator's NATS")
        return self._nats

    def start(self) -> None:
        """Lock the folder and start all servers; if one fails, stop the others."""
        self.folder.open()
        try:
            for server in self._servers():
                server.spawn()
            for server in self._servers():
                server.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the servers, NATS first, and release the folder."""
        try:
            for server in reversed(self._servers()):
                server.stop()
        finally:
            self.folder.close()

    def revive(self) -> list[str]:
        """Begin to restart the servers that ended by themselves, without waiting; their names.

        For the main thread only.
        """
        ended = [server for server in self._servers() if not server.alive]
        for server in ended:
            server.spawn()
        return ["nats" if isinstance(server, EmbeddedNats) else "postgres" for server in ended]

    def _servers(self) -> list[EmbeddedPostgres | EmbeddedNats]:
        return [server for server in (self._postgres, self._nats) if server is not None]
