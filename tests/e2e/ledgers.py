"""Real `keyledger` processes: started in a folder, looked after, and nothing of them left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import start_with_us
from tests.servers import initialised

PROGRAM = [sys.executable, "-P", "-c", "from keyledger_boot import main; main()"]
PATIENCE_SECONDS = 30.0


class Place:
    """A folder with a ledger's data, and the processes that a test runs on it."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        ours = {name: value for name, value in os.environ.items() if not name.startswith("KEYLEDGER_")}
        self.environment = (
            ours | {"KEYLEDGER_DATA_DIR": str(folder / "data"), "KEYLEDGER_PORT": "0"} | environment
        )
        self.processes: list[subprocess.Popen[str]] = []
        self.told: dict[str, Any] = {}

    def start(self, *arguments: str, by_itself: bool = False) -> subprocess.Popen[str]:
        """Start `keyledger up` (or another command that stays) and wait until it is ready.

        A PostgreSQL that it would make finds its files; `by_itself`: it has to make them, too.
        """
        words = list(arguments) or ["up"]
        data = self.folder / self.environment["KEYLEDGER_DATA_DIR"]
        if words[0] == "up" and not (
            by_itself or "KEYLEDGER_DATABASE_URL" in self.environment or (data / "postgres").exists()
        ):
            initialised(data)
        with (self.folder / "log").open("a") as log:
            process = start_with_us(
                [*PROGRAM, *words, "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment,
                cwd=self.folder,
            )
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"it did not start: {self.log()[-2000:]}"
        self.told = json.loads(line)
        if "api" in self.told:
            self.environment["KEYLEDGER_URL"] = self.told["api"]
        return process

    def run(
        self, *arguments: str, given: str | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Carry out a command that ends."""
        return subprocess.run(
            [*PROGRAM, *arguments],
            capture_output=True,
            text=True,
            check=False,
            input=given or "",
            env=self.environment | environment,
            cwd=self.folder,
            timeout=60,
        )

    def ask(self, *arguments: str, given: str | None = None) -> dict[str, Any]:
        """Carry out a command that must succeed; its JSON."""
        done = self.run(*arguments, "--json", given=given)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def log(self) -> str:
        """What the processes wrote about themselves."""
        return (self.folder / "log").read_text()

    def left(self) -> list[str]:
        """Processes whose command line or folder is of this place."""
        found = []
        for proc in Path("/proc").iterdir():
            if not proc.name.isdecimal() or int(proc.name) == os.getpid():
                continue
            try:
                command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                where = str((proc / "cwd").readlink())
                ours = str(self.folder) in command or where.startswith(str(self.folder))
                if ours and (proc / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found.append(f"{proc.name} {command}")
            except (OSError, UnicodeDecodeError):
                continue
        return found

    def end(self) -> None:
        """Stop whatever still runs."""
        for process in self.processes:
            stop(process)


def stop(process: subprocess.Popen[str], how: int = signal.SIGTERM) -> int:
    """Ask it to end, and wait for that."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()
    return process.returncode


def until(true: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait until this is true, and return it; fail when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, "it did not become true in time"
        time.sleep(0.05)
    return found


@contextmanager
def place(name: str = "", **environment: str) -> Generator[Place]:
    """A fresh place, gone afterwards."""
    # Not below pytest's own folder: as root, the servers' user must be able to enter.
    root = Path(tempfile.mkdtemp(prefix="keyledger-e2e-"))
    root.chmod(0o711)
    folder = root / name if name else root
    folder.mkdir(exist_ok=True, mode=0o711)
    made = Place(folder, **environment)
    try:
        yield made
    finally:
        made.end()
        shutil.rmtree(root, ignore_errors=True)
