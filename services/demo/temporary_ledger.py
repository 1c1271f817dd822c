"""The demo's own ledger: real processes in a temporary folder, which is deleted afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

PROGRAM: Final = (sys.executable, "-P", "-c", "from keyledger_boot import main; main()")
_STOP_SECONDS: Final = 20.0


class DemoError(Exception):
    """The demo cannot start; the sentence says why."""


class TemporaryLedger(NamedTuple):
    """The address of a ledger, its root key, its folder, and the environment for commands."""

    url: str
    root_key: str
    folder: Path
    environment: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on it, as an operator would."""
        return subprocess.run(  # noqa: S603 - this very program
            [*PROGRAM, *arguments], capture_output=True, text=True, check=False, env=self.environment
        )

    def written(self) -> Generator[tuple[str, bytes]]:
        """Everything that it has written to disk so far, file by file."""
        for path in self.folder.rglob("*"):
            if path.is_file() and path.name not in {"root-key", "lock"}:
                yield str(path.relative_to(self.folder)), path.read_bytes()


@contextmanager
def temporary_ledger() -> Generator[TemporaryLedger]:
    """`keyledger up` in a folder of its own, on a free port."""
    folder = Path(tempfile.mkdtemp(prefix="keyledger-demo-"))
    folder.chmod(0o711)  # as root, the servers' own user must reach its folders inside
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KEYLEDGER_")}
    environment = ours | {"KEYLEDGER_DATA_DIR": str(folder / "data"), "KEYLEDGER_PORT": "0"}
    log = folder / "ledger.log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603 - this very program
                [*PROGRAM, "up", "--json"],
                stdout=subprocess.PIPE,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=environment,
                cwd=folder,
                start_new_session=True,  # Ctrl-C is for the demo, which then stops the ledger
            )
        try:
            assert process.stdout is not None, "it was asked for"
            line = process.stdout.readline()
            if not line:
                last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise DemoError(f"The demo's ledger did not start: {''.join(last)}")
            told = json.loads(line)
            root_key = Path(told["root_key_file"]).read_text(encoding="utf-8").strip()
            environment |= {"KEYLEDGER_URL": told["api"], "KEYLEDGER_API_KEY": root_key}
            yield TemporaryLedger(told["api"], root_key, folder, environment)
        finally:
            _stop(process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for ask in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(ask)
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    if process.stdout is not None:
        process.stdout.close()
