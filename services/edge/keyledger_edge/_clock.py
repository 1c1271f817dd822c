"""The clock that measures leases."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)

# CLOCK_BOOTTIME continues while the machine sleeps; Linux's CLOCK_MONOTONIC does not, so a lease
# would last through a laptop's sleep. macOS has no BOOTTIME, but its MONOTONIC continues.
boottime_ns: Callable[[], int] = (
    time.monotonic_ns if _BOOTTIME is None else partial(time.clock_gettime_ns, _BOOTTIME)
)
"""Nanoseconds since a fixed point in this machine's past; never steps, and continues during sleep."""
