"""What an edge writes down, in shared memory: it outlives a SIGKILL, and ten million lines cost nothing."""

from __future__ import annotations

import mmap
import struct
from enum import IntEnum
from pathlib import Path
from typing import Self

import msgspec

_WORD = 8


class Figure(IntEnum):
    """What an edge counts."""

    VERIFICATIONS = 0
    ACCEPTS = 1
    FROM_MEMORY = 2
    UNREACHABLE = 3
    READY = 4
    SLOWEST_NS = 5


class Slot(msgspec.Struct, frozen=True):
    """A secret and the one use of it that is verified; once refused, it must stay refused."""

    secret: str
    permission: str | None = None
    project_id: str | None = None
    model: str | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an edge process is to do."""

    url: str
    key: str
    keyspace_id: str
    slots: list[Slot]
    book: str
    control: str
    capacity: int = 1_000_000
    serve_stale_ms: int = 0
    mutant: str = ""


class _Words:
    """Signed 64 bit numbers in a file that processes share."""

    def __init__(self, path: Path, count: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.truncate(count * _WORD)
            self._map = mmap.mmap(file.fileno(), count * _WORD)
        self.words = memoryview(self._map).cast("q")

    def close(self) -> None:
        self.words.release()
        self._map.close()


class Book(_Words):
    """One life of one edge: for each slot, when the last use arrived that was accepted (boottime)."""

    def __init__(self, path: Path, slots: int) -> None:
        super().__init__(path, len(Figure) + 2 * slots)
        self.path = path
        self.figures = self.words[: len(Figure)]
        self.arrivals = self.words[len(Figure) : len(Figure) + slots]
        self.as_of = self.words[len(Figure) + slots :]

    @classmethod
    def read(cls, path: Path) -> Self:
        """As it was left."""
        words = path.stat().st_size // _WORD
        return cls(path, (words - len(Figure)) // 2)

    def close(self) -> None:
        for part in (self.figures, self.arrivals, self.as_of):
            part.release()
        super().close()


class Control(_Words):
    """What all edges are told: which slots to verify, and when to stop."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 3)

    @property
    def window(self) -> tuple[int, int]:
        return self.words[0], self.words[1]

    @window.setter
    def window(self, window: tuple[int, int]) -> None:
        # One write for both: an edge may read at any moment.
        struct.pack_into("qq", self._map, 0, *window)

    @property
    def stopping(self) -> bool:
        return bool(self.words[2])

    def stop(self) -> None:
        self.words[2] = 1
