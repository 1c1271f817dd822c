"""Amounts, limits and times as people write and read them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Final

MICROS: Final = 1_000_000
_MOST_MICROS: Final = 2**63 - 1
_SECONDS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_QUOTA: Final = re.compile(
    r"(?P<unit>money|micros|requests)/(?P<window>day|week|month|total)=(?P<limit>[0-9.]+)(@(?P<alerts>[0-9,]+))?"
)
_RATE: Final = re.compile(
    r"((?P<name>[\w.-]+)=)?(?P<limit>\d+)/(?P<window>\d*[smhd]?)(@(?P<provider>[\w.-]+))?"
)


def micros_of(text: str) -> int:
    """`12.50` as micros; ValueError if the text is not an amount."""
    try:
        amount = Decimal(text.replace("_", "").replace(",", "")) * MICROS
    except InvalidOperation:
        raise ValueError(f"{text} is not an amount such as 12.50") from None
    if not amount.is_finite() or amount != amount.to_integral_value() or abs(amount) > _MOST_MICROS:
        raise ValueError(f"{text} is not an amount with up to six decimal places, such as 12.50")
    return int(amount)


def money(micros: int | None) -> str:
    """Micros as people read them: `12.50`, with more than two decimal places only if they are needed."""
    if micros is None:
        return "no limit"
    whole, fraction = divmod(abs(micros), MICROS)
    places = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micros < 0 else ''}{whole:,}.{places}"


def quota_of(text: str) -> dict[str, Any]:
    """`money/month=25.00@80,100` or `requests/day=1000` as the API takes it."""
    found = _QUOTA.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is not a quota such as money/month=25.00@80,100 or requests/day=1000")
    unit = "requests" if found["unit"] == "requests" else "micros"
    limit = micros_of(found["limit"]) if found["unit"] == "money" else _whole(found["limit"])
    quota: dict[str, Any] = {"unit": unit, "window": found["window"], "limit": limit}
    if found["alerts"]:
        quota["alert_percents"] = [int(one) for one in found["alerts"].split(",") if one]
    return quota


def rate_limit_of(text: str) -> dict[str, Any]:
    """`100/60s` or `burst=10/s@openai` as the API takes it."""
    found = _RATE.fullmatch(text)
    if found is None or not found["window"]:
        raise ValueError(f"{text} is not a rate limit such as 100/60s or burst=10/s@openai")
    window = found["window"]
    seconds = seconds_of(window if window[0].isdigit() else f"1{window}")
    limit: dict[str, Any] = {
        "name": found["name"] or f"per-{window}",
        "limit": int(found["limit"]),
        "window_seconds": seconds,
    }
    if found["provider"]:
        limit["provider"] = found["provider"]
    return limit


def seconds_of(text: str) -> int:
    """`90`, `90s`, `15m`, `24h`, `30d` or `2w` in seconds."""
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", text.strip())
    if found is None:
        raise ValueError(f"{text} is not a span of time such as 90s, 15m, 24h or 30d")
    return int(found[1]) * _SECONDS[found[2] or "s"]


def time_of(text: str, now: datetime | None = None) -> str:
    """A time in RFC 3339, from such a time, a date, or a span from now (`30d`; `-1h` is an hour ago)."""
    try:
        if re.fullmatch(r"[+-]?\d+[smhdw]", text):
            span = timedelta(seconds=seconds_of(text.lstrip("+-")))
            moment = (now or datetime.now(UTC)) + (-span if text.startswith("-") else span)
        else:
            moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text} is not a time such as 2027-01-31, 2027-01-31T12:00:00Z, or 30d from now"
        ) from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def clock_time(text: str | None) -> str:
    """A time of the API as people read it, in UTC: `2026-11-21 03:30:53`."""
    return "-" if text is None else text[:19].replace("T", " ")


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{text} is not a whole number")
    return int(text)
