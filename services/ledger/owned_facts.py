"""The owner's committed state as a verifier reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from domain.ports import FenceClock
from keyledger_edge import UNKNOWN, Unknown
from keyledger_language import KeyFacts


class OwnedUntil(Protocol):
    """Knows until when this process is the partition's owner."""

    @property
    def owner_until_ns(self) -> int:
        """Until then (boottime) it may verify, fill, grant and answer fences."""
        ...


class OwnedFacts:
    """The owner's committed state as a verifier reads it: it stops when the lock is in doubt (rule 9)."""

    def __init__(
        self,
        ownership: OwnedUntil,
        facts_of: Callable[[bytes], KeyFacts | None],
        clock: FenceClock,
    ) -> None:
        self.at = 0
        self._ownership = ownership
        self._facts_of = facts_of
        self._boottime_ns = clock.boottime_ns
        self._now = clock.now

    def facts_of(self, digest: bytes, /) -> KeyFacts | Unknown | None:
        """The facts as committed, or UNKNOWN if another process may own the partition by now."""
        if self._boottime_ns() >= self._ownership.owner_until_ns:
            return UNKNOWN
        facts = self._facts_of(digest)
        if facts is not None:
            self.at = self._now()
        return facts
