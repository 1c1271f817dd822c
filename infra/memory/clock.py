"""Clocks that stand still until they are moved."""

from __future__ import annotations

from keyledger_language.instants import DAY, Instant

_START: Instant = 20_000 * DAY  # 2024-10-04, a Friday


class FixedClock:
    """The time is what the test says; the time since the machine's start is moved by itself."""

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
        """Let the time of day pass."""
        self._now += microseconds

    def boottime_ns(self) -> int:
        """The time since the machine's start."""
        return self.boottime_us * 1_000
