"""A key: the lasting identity that outlives its secrets."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language import RateLimit, Scopes
from keyledger_language.events import Quota
from keyledger_language.instants import Instant

Status = Literal["active", "disabled", "revoked", "expired"]


class Secret(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One generation of a key's secret, by its fingerprint."""

    key_id: str
    fingerprint: bytes
    generation: int
    hint: str
    ends_at: Instant | None = None
    """From then on it is `rotated`; None for the newest."""
    retired: bool = False
    """Whether its end is recorded."""


class Key(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """The current state of one key, folded from its events.

    Saved as an array: with the names of its fields it took twice the space.
    """

    id: str
    keyspace_id: str
    organization_id: str | None
    name: str
    kind: Literal["solo", "client", "platform"] = "solo"
    owner_id: str | None = None
    environment: str | None = None
    plan_id: str | None = None
    scopes: Scopes = Scopes()
    quotas: tuple[Quota, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    allowed_ips: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    bound_keyspace_id: str | None = None
    expires_at: Instant | None = None
    expiry_recorded: bool = False
    disabled: bool = False
    deleted: bool = False
    revoked_at: Instant | None = None
    rotated_at: Instant | None = None
    created_at: Instant
    created_by: str
    imported: bool = False
    secrets: tuple[Secret, ...]
    """Oldest first; the last is the newest generation."""
    version: int = 1
    position: int = 0

    @property
    def newest(self) -> Secret:
        """The secret of the current generation."""
        return self.secrets[-1]

    @property
    def generation(self) -> int:
        """How many secrets the key has had."""
        return self.secrets[-1].generation

    def status(self, now: Instant) -> Status:
        """The key's status at `now`: computed from the time, independent of any timer."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at is not None and now >= self.expires_at:
            return "expired"
        return "disabled" if self.disabled else "active"
