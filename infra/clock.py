"""The clocks of this machine."""

from __future__ import annotations

import time

from keyledger_edge._clock import boottime_ns
from keyledger_language.instants import Instant


class SystemClock:
    """The time of day, and the clock that measures leases."""

    def now(self) -> Instant:
        """Now, in microseconds UTC."""
        return time.time_ns() // 1_000

    def boottime_ns(self) -> int:
        """Nanoseconds since the machine started; continues while it sleeps."""
        return boottime_ns()
