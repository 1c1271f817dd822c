"""Times in answers: RFC 3339 in UTC."""

from __future__ import annotations

from functools import lru_cache

from keyledger_language.instants import SECOND, Instant
from keyledger_language.instants import to_text as _to_text


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return _to_text(second * SECOND)[:20]


def to_text(at: Instant) -> str:
    """An instant as text; most times of one answer share their second, whose text is cached."""
    second, micros = divmod(at, SECOND)
    return f"{_second(second)}{micros:06d}Z"


def time_of(at: Instant | None) -> str | None:
    """An instant as text, if there is one."""
    return None if at is None else to_text(at)
