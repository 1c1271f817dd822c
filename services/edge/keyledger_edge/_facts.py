"""What a verifier knows of a key, and of the use it is asked about."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Allowed = tuple[str, ...] | Literal["*"]
"""A list of what is allowed, or `"*"` for everything."""


class Scopes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may be used for."""

    permissions: Allowed = "*"
    projects: Allowed = "*"
    models: Allowed = "*"
    tenants: Allowed = "*"


class RateLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests per seconds; with a provider, only uses that name it are counted."""

    name: str
    limit: int
    window_seconds: int
    provider: str | None = None


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One secret's key, as far as a verdict without money needs it.

    Times are microseconds since the Unix epoch, UTC.
    """

    key_id: str
    keyspace_id: str
    organization_id: str | None
    kind: Literal["solo", "client", "platform"]
    generation: int
    secret_ends_at: int | None = None
    """From then on this secret is `rotated`; None while it is the newest."""
    revoked: bool = False
    disabled: bool = False
    expires_at: int | None = None
    organization_suspended: bool = False
    scopes: Scopes
    plan_models: Allowed = "*"
    projects: frozenset[str] = frozenset()
    """The organization's projects that can be used; an archived one is not among them."""
    required_dimensions: tuple[str, ...] = ()
    require_balance: bool = False
    """A use without cost is refused too when wallet or quota are at zero: ask the ledger."""
    allowed_ips: tuple[str, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    name: str | None = None
    owner_id: str | None = None
    environment: str | None = None
    plan_id: str | None = None
    metadata: dict[str, Any] | None = None
    as_of: int = 0
    """The log position up to which these facts are known to be true."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose work the use is, inside the customer's own product."""

    org_id: str | None = None
    user_id: str | None = None


class Use(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What somebody wants to do with a key."""

    permissions: tuple[str, ...] = ()
    project_id: str | None = None
    model: str | None = None
    provider: str | None = None
    tenant: Tenant | None = None
    ip: str | None = None


NO_USE = Use()
