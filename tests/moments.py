"""Times as the tests write them."""

from datetime import datetime

from keyledger_language.instants import Instant, from_datetime


def from_text(text: str) -> Instant:
    """Read RFC 3339."""
    return from_datetime(datetime.fromisoformat(text))
