"""Values as people read them, not as JSON or Python writes them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

from services.cli.amounts import clock_time, money

DIMENSIONS: Final = ("permissions", "projects", "models", "tenants")


def words(value: Any, name: str = "") -> str:
    """A field's value in words; the field's name determines how a number or a text is shown."""
    if value is None or value is True or value is False:
        return _PLAIN[value]
    if name in _SPECIAL:
        return _SPECIAL[name](value)
    if isinstance(value, dict):
        return ", ".join(f"{field}: {_inside(one, field)}" for field, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(_inside(one, "") for one in value) or "none"
    if isinstance(value, int):
        return money(value) if name.endswith("_micros") else f"{value:,}"
    return clock_time(str(value)) if name.endswith("_at") else str(value)


def scopes_text(scopes: Mapping[str, Any]) -> str:
    """`models: gpt-5, claude`, or `everything`."""
    limited = [f"{name}: {words(scopes[name])}" for name in DIMENSIONS if scopes.get(name, "*") != "*"]
    return "; ".join(limited) or "everything"


def quota_text(quota: Mapping[str, Any]) -> str:
    """`12.50 of 25.00 a month`."""
    written = money if quota["unit"] == "micros" else _count
    spent = written(quota["spent"]) if "spent" in quota else None
    window = "in total" if quota["window"] == "total" else f"a {quota['window']}"
    unit = "" if quota["unit"] == "micros" else " requests"
    return f"{f'{spent} of ' if spent else ''}{written(quota['limit'])}{unit} {window}"


def quotas_text(quotas: Iterable[Mapping[str, Any]]) -> str:
    """All quotas, in one line."""
    return "; ".join(quota_text(one) for one in quotas) or "none"


def rate_limit_text(one: Mapping[str, Any]) -> str:
    """`100 per 60 s (per-60s)`."""
    provider = f" to {one['provider']}" if one.get("provider") else ""
    return f"{one['limit']} per {one['window_seconds']} s{provider} ({one['name']})"


def rate_limits_text(limits: Iterable[Mapping[str, Any]]) -> str:
    """All rate limits, in one line."""
    return "; ".join(rate_limit_text(one) for one in limits) or "none"


def wrapped(line: str, width: int) -> Iterator[str]:
    """A text wrapped to as many lines as it needs; all but the first are indented further."""
    indent = len(line) - len(line.lstrip())
    yield from textwrap.wrap(line, width, subsequent_indent=" " * (indent + 2), break_on_hyphens=False)


def _inside(value: Any, name: str) -> str:
    text = words(value, name)
    return f"({text})" if value and isinstance(value, dict) else text


def _count(number: int | None) -> str:
    return f"{number:,}"


_PLAIN: Final = {None: "none", True: "yes", False: "no"}

_SPECIAL: Final[dict[str, Callable[[Any], str]]] = {
    "scopes": scopes_text,
    "quotas": quotas_text,
    "rate_limits": rate_limits_text,
    "price_multiplier": str,
}
