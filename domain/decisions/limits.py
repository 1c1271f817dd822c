"""Checks on what limits a key: quotas, rate limits, addresses, scopes."""

from __future__ import annotations

from ipaddress import ip_network
from typing import Any

import msgspec

from domain.commands import UNSET, NewScopes
from domain.errors import EmptyScopeError, InvalidError
from domain.metadata import MAX_METADATA_DEPTH, is_deeper
from domain.money import MAX_MICROS
from keyledger_language import Allowed, RateLimit, Scopes
from keyledger_language.events import Quota

SCOPE_DIMENSIONS = ("permissions", "projects", "models", "tenants")
_WHOLE = 100
_MAX_ENTRIES = 1_000
_MAX_RATE = 1_000_000_000
_MAX_RATE_SECONDS = 86_400
_MAX_ENTRY_LENGTH = 200


def check_quotas(quotas: tuple[Quota, ...]) -> None:
    """Refuse meaningless limits, and two for the same unit and window."""
    seen: set[tuple[str, str]] = set()
    for index, quota in enumerate(quotas):
        if not 0 <= quota.limit <= MAX_MICROS:
            raise InvalidError(f"quotas[{index}].limit", "from 0 to 2^63 - 1")
        if (quota.unit, quota.window) in seen:
            raise InvalidError(f"quotas[{index}]", f"a second quota of {quota.unit} per {quota.window}")
        seen.add((quota.unit, quota.window))
        for percent in quota.alert_percents:
            if not 1 <= percent <= _WHOLE:
                raise InvalidError(f"quotas[{index}].alert_percents", "each from 1 to 100")
        if len(set(quota.alert_percents)) < len(quota.alert_percents):
            raise InvalidError(f"quotas[{index}].alert_percents", "each percent once")


def lifts(before: tuple[Quota, ...], after: tuple[Quota, ...]) -> bool:
    """Whether some use would be allowed that was not before."""
    new = {(quota.unit, quota.window): quota.limit for quota in after}
    return any(new.get((quota.unit, quota.window), MAX_MICROS + 1) > quota.limit for quota in before)


def check_rate_limits(limits: tuple[RateLimit, ...]) -> None:
    """Refuse meaningless limits, and two with the same name."""
    names: set[str] = set()
    for index, limit in enumerate(limits):
        if not 1 <= limit.limit <= _MAX_RATE:
            raise InvalidError(f"rate_limits[{index}].limit", f"from 1 to {_MAX_RATE}")
        if not 1 <= limit.window_seconds <= _MAX_RATE_SECONDS:
            raise InvalidError(f"rate_limits[{index}].window_seconds", f"from 1 to {_MAX_RATE_SECONDS}")
        if not limit.name or limit.name in names:
            raise InvalidError(f"rate_limits[{index}].name", "a name that no other rate limit has")
        names.add(limit.name)


def check_metadata(metadata: dict[str, Any]) -> None:
    """Metadata are stored with an event, whose numbers have 64 bits, and are read with it for ever."""
    if is_deeper(metadata):
        raise InvalidError("metadata", f"nested at most {MAX_METADATA_DEPTH} deep")
    try:
        msgspec.msgpack.encode(metadata)
    except (OverflowError, TypeError, UnicodeEncodeError):
        raise InvalidError("metadata", "has a value that cannot be stored, such as a 65-bit number") from None


def check_addresses(networks: tuple[str, ...]) -> None:
    """Every entry must be an address or a network in CIDR form."""
    for index, network in enumerate(networks):
        try:
            ip_network(network, strict=False)
        except ValueError:
            raise InvalidError(
                f"allowed_ips[{index}]", "an address or a CIDR network such as 10.0.0.0/8"
            ) from None


def scopes_at_creation(given: NewScopes) -> Scopes:
    """A dimension left out means everything; so does an empty `models`, as in older gateways."""
    chosen: dict[str, Allowed] = {}
    for dimension in SCOPE_DIMENSIONS:
        value = getattr(given, dimension)
        if value is UNSET or (dimension == "models" and value == ()):
            continue
        chosen[dimension] = _checked(dimension, value)
    return Scopes(**chosen)


def edited_scopes(before: Scopes, given: NewScopes) -> Scopes:
    """A dimension left out stays; every empty list is refused."""
    chosen = {dimension: getattr(before, dimension) for dimension in SCOPE_DIMENSIONS}
    for dimension in SCOPE_DIMENSIONS:
        value = getattr(given, dimension)
        if value is not UNSET:
            chosen[dimension] = _checked(dimension, value)
    return Scopes(**chosen)


def _checked(dimension: str, value: Allowed) -> Allowed:
    if value == "*":
        return value
    if not value:
        raise EmptyScopeError(dimension)
    if len(value) > _MAX_ENTRIES:
        raise InvalidError(f"scopes.{dimension}", f"at most {_MAX_ENTRIES} entries")
    for entry in value:
        if not 1 <= len(entry) <= _MAX_ENTRY_LENGTH:
            raise InvalidError(f"scopes.{dimension}", f"entries of 1 to {_MAX_ENTRY_LENGTH} characters")
    return tuple(dict.fromkeys(value))
