"""Secrets that must show up nowhere: make them, use them in every way, then look for any part of them."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from infra.embedded.postgres import programs

_PART = 12
"""So many letters of a secret in a row are a leak; a hint shows its prefix and last four."""

_RUN = re.compile(rb"[0-9A-Za-z]{%d,}" % _PART)


class Leak(NamedTuple):
    """Where something of a canary was found."""

    where: str
    around: str


class Canaries:
    """Secrets, by the letters that only they have."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.secrets: list[str] = []
        self._parts: set[bytes] = set()

    def add(self, secret: str) -> None:
        """Look for this one too."""
        body = secret.removeprefix(self._prefix)
        # Not the last four, which a hint may show.
        for start in range(0, len(body) - 4 - _PART + 1, _PART):
            self._parts.add(body[start : start + _PART].encode())
        for text in (body.encode().hex().encode(), base64.b64encode(secret.encode())):
            self._parts |= {run[:_PART] for run in _RUN.findall(text[16:48])}
        self.secrets.append(secret)

    def leaks(self, where: str, data: bytes) -> list[Leak]:
        """Every part of a canary that stands in the data."""
        found: list[Leak] = []
        # Letters and digits in a row, each such run once: most of a log is ids that come again.
        for run in set(_RUN.findall(data)):
            for start in range(len(run) - _PART + 1):
                if run[start : start + _PART] in self._parts:
                    at = data.find(run)
                    around = data[max(0, at - 120) : at + 60].decode("utf-8", "replace")
                    found.append(Leak(where, around))
                    break
        return found

    def leaks_in_files(self, paths: Iterable[Path]) -> list[Leak]:
        """Logs, say."""
        return [leak for path in paths if path.is_file() for leak in self.leaks(path.name, path.read_bytes())]

    def leaks_in_database(self, conninfo: str) -> list[Leak]:
        """All tables of a database, as pg_dump writes them: text as it is, bytes as hex."""
        dump = subprocess.run(
            [str(programs() / "pg_dump"), "--inserts", "--no-owner", "-d", conninfo],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        found = self.leaks("tables", dump)
        literals = [literal.partition(b"'")[0] for literal in dump.split(b"'\\x")[1:]]
        return found + self.leaks("tables (bytes)", bytes.fromhex(b"00".join(literals).decode()))
