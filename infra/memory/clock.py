"""A clock that stands still until a test moves it."""

from __future__ import annotations

from keyledger_language.instants import DAY, Instant

_START: Instant = 20_000 * DAY  # 2024-10-04, a Friday


class FixedClock:
    """The time of day that a test sets; the time since the machine's start is set separately."""

    def __init__(self, now: Instant = _START) -> None:
        self._now = now
        self.boottime_us = 1_000_000

    def now(self) -> Instant:
        """The time that was set."""
        return self._now

    def set(self, now: Instant) -> None:
        """Jump, also backwards, as real clocks do."""
        self._now = now

    def advance(self, microseconds: int) -> None:
        """Advance the time of day."""
        self._now += microseconds

    def boottime_ns(self) -> int:
        """The time since the machine's start."""
        return self.boottime_us * 1_000
