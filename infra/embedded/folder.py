"""The data folder: its lock, and the ledger's files in it."""

import fcntl
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from infra.embedded.errors import DataFolderBusyError, DataFolderError
from infra.embedded.identity import Identity

PRIVATE = 0o700
TRAVERSABLE = 0o711  # as root: the servers' own user must reach its folders inside
SECRET_FILE = 0o600
# sun_path is 108 bytes with its NUL on Linux and 104 on macOS.
SOCKET_PATH_LIMIT = 103
SOCKET_NAME = ".s.PGSQL.5432.lock"


class DataFolder:
    """A folder that one keyledger uses at a time, until the end of the `with` block or of the process."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._lock: int | None = None
        self._identity: Identity | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def identity(self) -> Identity:
        """The user that the servers run as; stored, because it owns their files."""
        if self._identity is None:
            self._identity = Identity.choose(owned=[self.path / "postgres", self.path / "nats"])
        return self._identity

    def open(self) -> None:
        """Create the folder if it is missing, and lock it against every other keyledger."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=PRIVATE)
            if stat.S_IMODE(self.path.stat().st_mode) != self._mode():
                self.path.chmod(self._mode())
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, SECRET_FILE)
        except OSError as error:
            message = f"The data folder {self.path} cannot be used: {error.strerror}."
            raise DataFolderError(message) from error
        self._take(lock)

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def make(self, name: str) -> Path:
        """A private folder inside, owned by the user that the servers run as."""
        try:
            return self.own(self.path / name)
        except OSError as error:
            message = f"{name} cannot be created in the data folder {self.path}: {error.strerror}."
            raise DataFolderError(message) from error

    def own(self, folder: Path) -> Path:
        """Make this folder private to the user that the servers run as."""
        folder.mkdir(mode=PRIVATE, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), self.identity.uid}:
            raise DataFolderError(f"{folder} belongs to another user: remove it.")
        if found.st_uid != self.identity.uid:
            os.chown(folder, self.identity.uid, self.identity.gid)
        folder.chmod(PRIVATE)
        return folder

    def recall(self, name: str) -> str | None:
        """The text that an earlier run stored under this name."""
        try:
            return (self.path / name).read_text(encoding="utf-8").strip() or None
        except FileNotFoundError:
            return None
        except OSError as error:
            message = f"{self.path / name} cannot be read: {error.strerror}."
            raise DataFolderError(message) from error

    def remember(self, name: str, text: str, *, readable_by_servers: bool = False) -> Path:
        """Store this text, whole or not at all, readable by its owner only."""
        target = self.path / name
        try:
            handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(SECRET_FILE)
            if readable_by_servers and self.identity.drops:
                os.chown(temporary, self.identity.uid, self.identity.gid)
            Path(temporary).replace(target)
        except OSError as error:
            message = f"{target} cannot be written: {error.strerror}."
            raise DataFolderError(message) from error
        return target

    def socket_folder(self) -> Path:
        """The folder of the database's socket: inside if that path is short enough, else a short one."""
        inside = self.path / "run"
        if _fits(inside):
            return self.make("run")
        if (remembered := self.recall("socket-folder")) is not None:
            with suppress(OSError):
                return self.own(Path(remembered))
        chosen = self._short_folder()
        self.remember("socket-folder", str(chosen))
        return chosen

    def _short_folder(self) -> Path:
        name = f"keyledger-{hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]}"
        for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - owner checked
            if base and _fits(Path(base) / name):
                try:
                    return self.own(Path(base) / name)
                except OSError:
                    continue
        raise DataFolderError(
            f"There is no short folder for the database's socket: the path {self.path} is too long, and "
            "neither XDG_RUNTIME_DIR nor /tmp can be written."
        )

    def _mode(self) -> int:
        return TRAVERSABLE if self.identity.drops else PRIVATE

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise DataFolderBusyError(self.path, int(holder) if holder.isdecimal() else None) from error
        except OSError as error:
            os.close(lock)
            raise DataFolderError(f"{self.path} cannot be locked: {error.strerror}.") from error
        # This reports a full disk before a server runs into it.
        try:
            os.pwrite(lock, f"{os.getpid():<19}\n".encode(), 0)
        except OSError as error:
            os.close(lock)
            raise DataFolderError(f"{self.path} cannot be written: {error.strerror}.") from error
        self._lock = lock


def _fits(folder: Path) -> bool:
    path = os.fsencode(folder / SOCKET_NAME)
    # libpq takes a comma in a host as a separator between two hosts.
    return len(path) <= SOCKET_PATH_LIMIT and b"," not in path
