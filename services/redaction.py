"""Removes secrets from text: what could be one, and the shapes that this process has learned for its logs."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from domain.ids import ID_PATTERN
from domain.keyspaces import PRESETS, ROOT_SHAPE
from keyledger_language import SecretShape, redact

Redaction = Callable[[str], str]

SHORTEST_SECRET: Final = 22
"""Secrets have at least 128 bits, and so at least this many base62 digits in a row."""
_LONG_RUN: Final = re.compile(rf"[0-9A-Za-z]{{{SHORTEST_SECRET}}}")
_ID_OR_LONG_RUN: Final = re.compile(rf"({ID_PATTERN})(?![0-9A-Za-z])|[0-9A-Za-z]{{{SHORTEST_SECRET},}}")
_SHIPPED: Final = (
    *(SecretShape(prefix=one["prefix"], format=one["secret_format"]) for one in PRESETS.values()),
    ROOT_SHAPE,
)

_learned: list[Redaction] = []


def may_hold_secret(text: str) -> bool:
    """Whether the text has a run long enough for a secret; most texts have none, and need no other check."""
    return _LONG_RUN.search(text) is not None


def without_long_runs(text: str) -> str:
    """The text without anything that could be a secret of any keyspace; the ledger's ids stay."""
    return _ID_OR_LONG_RUN.sub(lambda found: found[1] or "[redacted]", text)


def for_the_log(text: str) -> str:
    """The text without secrets of the shipped shapes, and of the shapes that this process has learned."""
    if not may_hold_secret(text):
        return text
    for redaction in (_without_shipped, *_learned):
        text = redaction(text)
    return text


@contextmanager
def kept_out_of_logs(redaction: Redaction) -> Generator[None]:
    """While the context lasts, every line of the log is also redacted with this. Called from any thread."""
    _learned.append(redaction)
    try:
        yield
    finally:
        _learned.remove(redaction)


def _without_shipped(text: str) -> str:
    return redact(text, _SHIPPED)
