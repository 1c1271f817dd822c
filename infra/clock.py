"""The time of day, from the machine."""

from __future__ import annotations

import time

from domain.instants import Instant


class SystemClock:
    """The machine's clock, in microseconds UTC."""

    def now(self) -> Instant:
        """Now."""
        return time.time_ns() // 1_000
