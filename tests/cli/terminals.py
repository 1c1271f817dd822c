"""The program on a terminal of its own: what it asks, how wide it writes, which colours it uses."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
from collections.abc import Sequence
from typing import NamedTuple

from tests.e2e.ledgers import PROGRAM, Place

_PATIENCE_SECONDS = 60


class Shown(NamedTuple):
    """What came."""

    exit_code: int
    terminal: str
    piped: str
    """Standard output, where only standard error is the terminal."""


def on_terminal(
    ledger: Place,
    words: Sequence[str],
    *,
    typed: str = "",
    columns: int = 80,
    stdout_piped: bool = False,
    **environment: str,
) -> Shown:
    """Carry out a command on a terminal, typing this."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    inherited = {name: value for name, value in ledger.environment.items() if name != "COLUMNS"}
    with subprocess.Popen(
        [*PROGRAM, *words],
        stdin=theirs,
        stdout=subprocess.PIPE if stdout_piped else theirs,
        stderr=theirs,
        env=inherited | {"TERM": "xterm-256color"} | environment,
        cwd=ledger.folder,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        written: list[bytes] = []
        reading = threading.Thread(target=_read_all, args=(ours, written))
        reading.start()
        piped = process.stdout.read() if process.stdout is not None else b""
        exit_code = process.wait(_PATIENCE_SECONDS)
        reading.join(_PATIENCE_SECONDS)
    os.close(ours)
    return Shown(exit_code, b"".join(written).decode().replace("\r\n", "\n"), piped.decode())


def _read_all(descriptor: int, into: list[bytes]) -> None:
    while True:
        try:
            part = os.read(descriptor, 65_536)
        except OSError:  # Linux says so when the other side has hung up
            return
        if not part:
            return
        into.append(part)
