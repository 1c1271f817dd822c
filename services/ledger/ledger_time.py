"""The time that a ledger uses."""

from __future__ import annotations

from domain.ports import Clock, FenceClock
from domain.state import Books
from keyledger_language.instants import Instant


class LedgerTime:
    """Two clocks: one for leases, which never steps, and the time of day, never behind what is committed."""

    def __init__(self, clock: Clock, fence_clock: FenceClock, books: Books) -> None:
        self._now = clock.now
        self._books = books
        self.boottime_ns = fence_clock.boottime_ns
        """Nanoseconds; never steps, continues while the machine sleeps."""

    def now(self) -> Instant:
        """The time of day, microseconds."""
        now, at = self._now(), self._books.at
        return max(at, now)
