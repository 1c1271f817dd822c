"""A server's process: it ends with this one, is stopped cleanly, and is found again after a crash."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from infra.embedded.errors import ServerFailedError
from infra.embedded.identity import Identity

LAUNCHER = Path(__file__).with_name("launcher.py")
LOG_KEPT_BYTES = 10_000_000
POLL_SECONDS = 0.01


class Process:
    """One run of a server's program."""

    def __init__(
        self,
        argv: list[str],
        *,
        name: str,
        identity: Identity,
        folder: Path,
        log: Path,
        farewell: signal.Signals,
    ) -> None:
        self.name = name
        self.log = log
        self.farewell = farewell
        self._log_start = log.stat().st_size if log.exists() else 0
        self._child = _spawn(argv, identity=identity, folder=folder, log=log, farewell=farewell)

    @property
    def pid(self) -> int:
        """The server's own pid."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._child.poll() is None

    def last_words(self) -> str:
        """The most telling last line that this run logged, for a message to the operator."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read()[-20_000:].decode("utf-8", "replace").splitlines()
        # A full disk first: its consequences log more prominent lines.
        for telling in (("No space left",), ("FATAL", "PANIC", "[FTL]"), ("",)):
            if found := [line for line in lines if any(word in line for word in telling)]:
                return found[-1].strip()
        return "it logged nothing"

    def wait_until(self, ready: Callable[[], bool], *, seconds: float) -> None:
        """Wait until it is ready; ServerFailedError says why it is not."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive:
                raise ServerFailedError(
                    f"{self.name} did not start: {self.last_words()} (more in {self.log})."
                )
            if time.monotonic() > deadline:
                raise ServerFailedError(
                    f"{self.name} was not ready after {seconds:g} s (more in {self.log})."
                )
            time.sleep(POLL_SECONDS)

    def stop(self, *, seconds: float) -> None:
        """Ask it to end, and kill it if it does not."""
        for farewell, patience in ((self.farewell, seconds), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            if self._child.poll() is None:
                self._child.send_signal(farewell)
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(patience)


def run_once(argv: list[str], *, name: str, identity: Identity, folder: Path, log: Path) -> None:
    """Run a program to its end; ServerFailedError if it fails."""
    process = Process(argv, name=name, identity=identity, folder=folder, log=log, farewell=signal.SIGTERM)
    while process.alive:
        time.sleep(POLL_SECONDS)
    if process._child.returncode != 0:  # noqa: SLF001 - our own class
        raise ServerFailedError(f"{name} failed: {process.last_words()} (more in {log}).")


def end_stray(pid: int, *, farewell: signal.Signals, seconds: float) -> None:
    """End a server that an earlier keyledger left behind; it is not a child of this process."""
    for ask, patience in ((farewell, seconds), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        deadline = time.monotonic() + patience
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, ask)
        while running(pid):
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
        else:
            return
    raise ServerFailedError(f"An earlier server, pid {pid}, does not stop: end it by hand.")


def running(pid: int) -> bool:
    """Whether such a process exists and is not a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with suppress(OSError):
        return (
            Path(f"/proc/{pid}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rsplit(")", 1)[1]
            .split()[0]
            != "Z"
        )
    return True


def command_of(pid: int) -> str:
    """The command line of a process; empty if it cannot be read."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    if (ps := shutil.which("ps")) is not None:
        found = subprocess.run(
            [ps, "-ww", "-o", "command=", "-p", str(pid)], capture_output=True, check=False
        )
        return found.stdout.decode("utf-8", "replace")
    return ""


def _spawn(
    argv: list[str], *, identity: Identity, folder: Path, log: Path, farewell: signal.Signals
) -> subprocess.Popen[bytes]:
    # The kernel sends the parent-death signal when the thread that forked ends, not the process.
    if threading.current_thread() is not threading.main_thread():
        raise ServerFailedError("Embedded servers are started from the main thread only.")
    job = {
        "parent": os.getpid(),
        "uid": identity.uid,
        "gid": identity.gid,
        "drops": identity.drops,
        "signal": int(farewell),
        "folder": str(folder),
        "argv": argv,
    }
    try:
        _trim(log)
        with log.open("ab") as output:
            log.chmod(0o600)
            return subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                # Ctrl-C on the terminal goes to this process only: it stops the servers after its last write.
                start_new_session=True,
            )
    except OSError as error:
        raise ServerFailedError(f"{argv[0]} cannot be started: {error.strerror}.") from error


def _environment() -> dict[str, str]:
    # Without PGDATA, PGPORT and similar ones, a locale that the machine lacks, and the ledger's settings.
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _trim(log: Path) -> None:
    if log.exists() and log.stat().st_size > LOG_KEPT_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
