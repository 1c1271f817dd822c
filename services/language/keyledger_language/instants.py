"""Points in time: integers inside, RFC 3339 outside."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

Instant = int
"""Microseconds since 1970-01-01T00:00:00Z. An int compares, adds and packs at no cost."""

SECOND: Instant = 1_000_000
DAY: Instant = 86_400 * SECOND

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(at: Instant) -> datetime:
    """The same point in time as an aware datetime in UTC."""
    return _EPOCH + timedelta(microseconds=at)


def from_datetime(moment: datetime) -> Instant:
    """The instant of an aware datetime; a naive one is a programming error."""
    assert moment.tzinfo is not None, "an instant needs a time zone"
    return (moment - _EPOCH) // timedelta(microseconds=1)


def to_text(at: Instant) -> str:
    """RFC 3339 in UTC, such as `2026-11-21T02:44:15.123456Z`."""
    return to_datetime(at).isoformat(timespec="microseconds").replace("+00:00", "Z")
