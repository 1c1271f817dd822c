"""Text without secrets: what could be one, and what this process has learned to take out of its logs."""

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
"""Secrets hold 128 bits and more: that many base62 digits in a row at least."""
_LONG_RUN: Final = re.compile(rf"[0-9A-Za-z]{{{SHORTEST_SECRET}}}")
_ID_OR_LONG_RUN: Final = re.compile(rf"({ID_PATTERN})(?![0-9A-Za-z])|[0-9A-Za-z]{{{SHORTEST_SECRET},}}")
_SHIPPED: Final = (
    *(SecretShape(prefix=one["prefix"], format=one["secret_format"]) for one in PRESETS.values()),
    ROOT_SHAPE,
)

_learned: list[Redaction] = []


def may_hold_secret(text: str) -> bool:
    """Is it long enough for a secret? Most texts are not, and are cleared by this one look."""
    return _LONG_RUN.search(text) is not None


def without_long_runs(text: str) -> str:
    """The text without whatever could be a secret of any keyspace; our ids stay."""
    return _ID_OR_LONG_RUN.sub(lambda found: found[1] or "[redacted]", text)


def for_the_log(text: str) -> str:
    """The text without secrets of the shipped shapes, and without those that this process has learned of."""
    if not may_hold_secret(text):
        return text
    for redaction in (_without_shipped, *_learned):
        text = redaction(text)
    return text


@contextmanager
def kept_out_of_logs(redaction: Redaction) -> Generator[None]:
    """For as long as this lasts, every line is also redacted so. Called from any thread."""
    _learned.append(redaction)
    try:
        yield
    finally:
        _learned.remove(redaction)


def _without_shipped(text: str) -> str:
    return redact(text, _SHIPPED)
