"""A clock that stands still until it is moved."""

from __future__ import annotations

from domain.instants import DAY, Instant

_START: Instant = 20_000 * DAY  # 2024-10-04, a Friday


class FixedClock:
    """The time is what the test says."""

    def __init__(self, now: Instant = _START) -> None:
        self._now = now

    def now(self) -> Instant:
        """The time that was set."""
        return self._now

    def set(self, now: Instant) -> None:
        """Jump, also backwards, as real clocks do."""
        self._now = now

    def advance(self, microseconds: int) -> None:
        """Let time pass."""
        self._now += microseconds
