"""Examples of requests and their answers; `make examples` records them from a running ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = Path(__file__).with_name("examples.json")


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request, and its answer."""

    body: Any = None
    """None: the request has no body."""
    status: int
    answer: Any = None
    """None: the answer has no body, or none in JSON."""
    texts: dict[str, str] = {}
    """Answers that are not JSON, by media type."""


def examples() -> dict[str, Example]:
    """The examples, by the ids of operations."""
    return msgspec.json.decode(FILE.read_bytes(), type=dict[str, Example])
