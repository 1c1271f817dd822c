"""UTC calendar windows: days, ISO weeks, months, and all time."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from keyledger_language.instants import DAY, Instant

Window = Literal["day", "week", "month", "total"]
WINDOWS: tuple[Window, ...] = ("day", "week", "month", "total")

_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; ISO weeks begin on Monday.


def window_start(window: Window, at: Instant) -> int:
    """The day (counted from 1970-01-01) on which the window that contains `at` began."""
    day = at // DAY
    match window:
        case "day":
            return day
        case "week":
            return day - (day + _EPOCH_WEEKDAY) % 7
        case "month":
            return _month_start(day)
        case "total":
            return 0


@lru_cache(maxsize=64)  # nearly always today
def window_starts(day: int) -> tuple[int, int, int, int]:
    """The starts of all four windows that contain a day, in the order of WINDOWS."""
    return day, day - (day + _EPOCH_WEEKDAY) % 7, _month_start(day), 0


def window_end(window: Window, start: int) -> Instant | None:
    """When the window that began on day `start` is over; None for all time."""
    match window:
        case "day":
            return (start + 1) * DAY
        case "week":
            return (start + 7) * DAY
        case "month":
            return _month_start(start + 31) * DAY
        case "total":
            return None


def _month_start(day: int) -> int:
    date = datetime.fromtimestamp(day * 86_400, UTC).date()
    return day - (date.day - 1)
