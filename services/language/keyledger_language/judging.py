"""Whether a key may be used in a certain way now. Pure: facts, a use and a time in, a code out."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from keyledger_language.codes import (
    DISABLED,
    EXPIRED,
    IP_DENIED,
    MODEL_DENIED,
    ORGANIZATION_SUSPENDED,
    PERMISSION_DENIED,
    PROJECT_DENIED,
    REVOKED,
    ROTATED,
    TENANT_DENIED,
    UNUSABLE,
    UNUSABLE_FROM_THERE,
    VALID,
)
from keyledger_language.facts import KeyFacts
from keyledger_language.scopes import Allowed
from keyledger_language.uses import NO_USE, Tenant, Use


def judge(facts: KeyFacts, use: Use, now: int) -> str:  # noqa: PLR0911 - one line per reason
    """Whether the key may be used like this at `now` (microseconds, UTC). The first reason wins.

    Rate limits, quotas and the wallet are checked after this; they have state of their own.
    """
    if facts.revoked:
        return REVOKED
    if facts.expires_at is not None and now >= facts.expires_at:
        return EXPIRED
    if facts.secret_ends_at is not None and now >= facts.secret_ends_at:
        return ROTATED
    if facts.disabled:
        return DISABLED
    if facts.organization_suspended:
        return ORGANIZATION_SUSPENDED
    if facts.allowed_ips and not ip_allowed(facts.allowed_ips, use.ip):
        return IP_DENIED
    return judge_use(facts, use)


def judge_use(facts: KeyFacts, use: Use) -> str:
    """Whether a key that works allows this use. It does not depend on the time."""
    required = facts.required_dimensions
    if use is NO_USE and not required and facts.kind == "solo":
        return VALID
    scopes = facts.scopes
    if (
        required and "permission" in required
        if not use.permissions
        else scopes.permissions != "*" and not _all_in(use.permissions, scopes.permissions)
    ):
        return PERMISSION_DENIED
    if (
        required and "project" in required
        if use.project_id is None
        else use.project_id not in facts.projects or not _allows(scopes.projects, use.project_id)
    ):
        return PROJECT_DENIED
    if (
        required and "model" in required
        if use.model is None
        else not (_allows(scopes.models, use.model) and _allows(facts.plan_models, use.model))
    ):
        return MODEL_DENIED
    if (
        required and "tenant" in required
        if use.tenant is None and facts.kind == "solo"
        else not _tenant_allowed(facts, use.tenant)
    ):
        return TENANT_DENIED
    return VALID


# The reasons that concern a use come last. So if the key cannot be used at all, the first reason that
# `judge` finds is why, and no reason has to be written twice.


def judge_key(facts: KeyFacts, ip: str | None, now: int) -> str:
    """Whether the key can be used at all at `now` from this address, for any use."""
    code = judge(facts, Use(ip=ip) if facts.allowed_ips else NO_USE, now)
    return code if code in UNUSABLE_FROM_THERE else VALID


def state_of(facts: KeyFacts, now: int) -> str | None:
    """Why the key cannot be used at all at `now`, for any use and from any address; None if it can."""
    code = judge(facts, NO_USE, now)
    return code if code in UNUSABLE else None


def is_easy(facts: KeyFacts) -> bool:
    """Whether a use that names nothing is valid at any time."""
    return (
        not facts.rate_limits
        and facts.expires_at is None
        and facts.secret_ends_at is None
        and facts.kind == "solo"
        and not facts.allowed_ips
        and not facts.required_dimensions
        and not facts.require_balance
        and judge(facts, NO_USE, 0) == VALID
    )


def _all_in(asked: tuple[str, ...], allowed: Allowed) -> bool:
    return all(one in allowed for one in asked)


def _allows(allowed: Allowed, one: str) -> bool:
    return allowed == "*" or one in allowed


def _tenant_allowed(facts: KeyFacts, tenant: Tenant | None) -> bool:
    org_id = tenant.org_id if tenant else None
    user_id = tenant.user_id if tenant else None
    if facts.kind == "platform" and (org_id is None or user_id is None):
        return False
    if facts.kind == "client" and user_id is None:
        return False
    if org_id is None and user_id is None:
        return "tenant" not in facts.required_dimensions
    return _tenant_listed(facts.scopes.tenants, org_id, user_id)


def _tenant_listed(allowed: Allowed, org_id: str | None, user_id: str | None) -> bool:
    """A list may name companies (`acme`), users of a company (`acme/ada`), or plain users."""
    if allowed == "*":
        return True
    if org_id is None:
        return user_id in allowed
    return org_id in allowed or f"{org_id}/{user_id}" in allowed


def ip_allowed(networks: tuple[str, ...], ip: str | None) -> bool:
    """Whether the address is in one of the networks. A missing or malformed address is in none."""
    if ip is None:
        return False
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    candidate = mapped or address
    return any(candidate in network for network in _parsed(networks))


@lru_cache(maxsize=4096)
def _parsed(networks: tuple[str, ...]) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(one, strict=False) for one in networks)
