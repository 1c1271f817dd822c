"""What callers note beside our own fields: JSON of their own, small and flat enough to be kept for ever."""

from __future__ import annotations

from typing import Any, Final

MAX_METADATA_DEPTH: Final = 32
"""Objects and lists within each other, the outermost counted. Beyond some hundreds no encoder goes."""

TOO_DEEP: Final = "(nested too deep to be shown)"
"""Stands in old events where something deeper was kept before there was a bound."""


def is_deeper(value: Any, most: int = MAX_METADATA_DEPTH) -> bool:
    """Is it nested more than so deep? Never looks further down than that."""
    if isinstance(value, dict):
        return most == 0 or any(is_deeper(inner, most - 1) for inner in value.values())
    if isinstance(value, list | tuple):
        return most == 0 or any(is_deeper(inner, most - 1) for inner in value)
    return False


def cut(value: Any, most: int = MAX_METADATA_DEPTH) -> Any:
    """The value down to so deep, and a note in place of what is below."""
    if not isinstance(value, dict | list | tuple):
        return value
    if most == 0:
        return TOO_DEEP
    if isinstance(value, dict):
        return {name: cut(inner, most - 1) for name, inner in value.items()}
    return [cut(inner, most - 1) for inner in value]
