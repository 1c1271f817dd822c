"""The embedded servers together: one folder, one lock, started side by side, ended in order."""

from pathlib import Path
from types import TracebackType
from typing import Self

from infra.embedded.folder import DataFolder
from infra.embedded.nats import EmbeddedNats
from infra.embedded.postgres import EmbeddedPostgres


class EmbeddedServers:
    """The servers that are not configured elsewhere, for as long as the `with` lasts."""

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
        """The database, where it was asked for."""
        if self._postgres is None:
            raise LookupError("this keyledger uses a PostgreSQL of its operator's")
        return self._postgres

    @property
    def nats(self) -> EmbeddedNats:
        """The message server, where it was asked for."""
        if self._nats is None:
            raise LookupError("this keyledger uses a NATS of its operator's")
        return self._nats

    def start(self) -> None:
        """Take the folder and have all servers ready; leave none behind if one fails."""
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
        """End the servers, messages first, and give the folder back."""
        try:
            for server in reversed(self._servers()):
                server.stop()
        finally:
            self.folder.close()

    def revive(self) -> list[str]:
        """Begin to start again whatever ended by itself, without waiting; name it. For the main thread."""
        ended = [server for server in self._servers() if not server.alive]
        for server in ended:
            server.spawn()
        return ["nats" if isinstance(server, EmbeddedNats) else "postgres" for server in ended]

    def _servers(self) -> list[EmbeddedPostgres | EmbeddedNats]:
        return [server for server in (self._postgres, self._nats) if server is not None]
