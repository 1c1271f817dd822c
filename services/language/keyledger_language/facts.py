"""What a verifier knows of a key."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language.rate_limits import RateLimit
from keyledger_language.scopes import Allowed, Scopes


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One secret's key, as far as a verdict without money needs it.

    Times are microseconds since the Unix epoch, UTC.
    """

    key_id: str
    """The key."""
    keyspace_id: str
    """The keyspace that the key is in."""
    organization_id: str | None
    """The customer; null for a key without one."""
    kind: Literal["solo", "client", "platform"]
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    generation: int
    """Which of the key's secrets it is: 1 for the first."""
    secret_ends_at: int | None = None
    """From then on this secret is `rotated`; None while it is the newest."""
    revoked: bool = False
    """Is it stopped for good?"""
    disabled: bool = False
    """Does it rest?"""
    expires_at: int | None = None
    """From then on it is expired, microseconds since 1970 in UTC; null: never."""
    organization_suspended: bool = False
    """Do none of the customer's keys work?"""
    scopes: Scopes
    """What the key may be used for."""
    plan_models: Allowed = "*"
    """The models that the plan allows, or `*` for all."""
    projects: frozenset[str] = frozenset()
    """The organization's projects that can be used; an archived one is not among them."""
    required_dimensions: tuple[str, ...] = ()
    """What every use of a key must name."""
    require_balance: bool = False
    """A use without cost is refused too when wallet or quota are at zero: ask the ledger."""
    allowed_ips: tuple[str, ...] = ()
    """Networks that it may be used from; empty: all."""
    rate_limits: tuple[RateLimit, ...] = ()
    """Requests per seconds."""
    name: str | None = None
    """What people call the key."""
    owner_id: str | None = None
    """Your own id of whoever owns the key; null if none was given."""
    environment: str | None = None
    """Such as `production`; null if none was given."""
    plan_id: str | None = None
    """The plan that the platform gave to the key; null: none."""
    metadata: dict[str, Any] | None = None
    """The customer's own, as it was given."""
    as_of: int = 0
    """The log position up to which these facts are known to be true."""
