"""Examples of requests and of what was answered; `make examples` takes them from a ledger that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = Path(__file__).with_name("examples.json")


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, and its answer."""

    body: Any = None
    """None: it has none."""
    status: int
    answer: Any = None
    """None: it has no body, or none that is JSON."""
    texts: dict[str, str] = {}
    """Answers that are not JSON, by media type."""


def examples() -> dict[str, Example]:
    """By the ids of operations."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Example])
