"""Metadata: a caller's own JSON beside the ledger's fields, flat enough to be stored for ever."""

from __future__ import annotations

from typing import Any, Final

MAX_METADATA_DEPTH: Final = 32
"""The most levels of objects and lists, with the outermost. Encoders fail at some hundreds of levels."""

TOO_DEEP: Final = "(nested too deep to be shown)"
"""Shown in place of deeper values in old events, which are from before this bound."""


def is_deeper(value: Any, most: int = MAX_METADATA_DEPTH) -> bool:
    """Whether the value is nested deeper than `most` levels. Never looks deeper than that."""
    if isinstance(value, dict):
        return most == 0 or any(is_deeper(inner, most - 1) for inner in value.values())
    if isinstance(value, list | tuple):
        return most == 0 or any(is_deeper(inner, most - 1) for inner in value)
    return False


def cut(value: Any, most: int = MAX_METADATA_DEPTH) -> Any:
    """The value down to `most` levels, with a note in place of everything deeper."""
    if not isinstance(value, dict | list | tuple):
        return value
    if most == 0:
        return TOO_DEEP
    if isinstance(value, dict):
        return {name: cut(inner, most - 1) for name, inner in value.items()}
    return [cut(inner, most - 1) for inner in value]
