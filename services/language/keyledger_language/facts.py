"""What a verifier knows of a key."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language.rate_limits import RateLimit
from keyledger_language.scopes import Allowed, Scopes


class KeyFacts(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One secret and its key, as far as a verdict that involves no money needs them.

    Times are microseconds since the Unix epoch, UTC.
    """

    key_id: str
    """The key."""
    keyspace_id: str
    """The keyspace that the key is in."""
    organization_id: str | None
    """The organization; null for a key without one."""
    kind: Literal["solo", "client", "platform"]
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    generation: int
    """The number of this secret among the key's secrets: 1 for the first."""
    secret_ends_at: int | None = None
    """From then on this secret is `rotated`; None while it is the newest."""
    revoked: bool = False
    """Whether the key is stopped for good."""
    disabled: bool = False
    """Whether the key is stopped until it is enabled again."""
    expires_at: int | None = None
    """From then on the key is expired, microseconds since 1970 in UTC; null: never."""
    organization_suspended: bool = False
    """Whether the organization is suspended: then none of its keys works."""
    scopes: Scopes
    """What the key may be used for."""
    plan_models: Allowed = "*"
    """The models that the plan allows, or `*` for all."""
    projects: frozenset[str] = frozenset()
    """The organization's projects that can be used; an archived one is not among them."""
    required_dimensions: tuple[str, ...] = ()
    """What every use of a key must name."""
    require_balance: bool = False
    """Whether a use without a cost is also refused when a quota or the wallet is at zero: ask the ledger."""
    allowed_ips: tuple[str, ...] = ()
    """Networks that the key may be used from; empty: all."""
    rate_limits: tuple[RateLimit, ...] = ()
    """Requests per number of seconds."""
    name: str | None = None
    """The key's name, for people."""
    owner_id: str | None = None
    """Your own id of the key's owner; null if none was given."""
    environment: str | None = None
    """Such as `production`; null if none was given."""
    plan_id: str | None = None
    """The plan that the platform gave to the key; null: none."""
    metadata: dict[str, Any] | None = None
    """The key's metadata, as they were given."""
    as_of: int = 0
    """The log position up to which these facts are known to be true."""
