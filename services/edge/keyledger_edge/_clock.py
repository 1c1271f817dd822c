"""The clock that leases are measured with."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)

# CLOCK_BOOTTIME goes on while the machine sleeps; Linux's CLOCK_MONOTONIC does not, and a lease
# would outlive a suspended laptop. macOS has no BOOTTIME, and there MONOTONIC goes on.
boottime_ns: Callable[[], int] = (
    time.monotonic_ns if _BOOTTIME is None else partial(time.clock_gettime_ns, _BOOTTIME)
)
"""Nanoseconds since some fixed point in this machine's past; never steps, never sleeps."""
