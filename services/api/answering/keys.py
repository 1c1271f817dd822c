"""Keys as JSON: as their holders see them, and as management sees them."""

from __future__ import annotations

from typing import Any, Literal

from domain.ids import format_position
from domain.keys import Key, Secret
from domain.state import Books
from keyledger_language import RateLimit, Scopes
from keyledger_language.instants import Instant
from services.api.answering.quotas import QuotaView, quotas_of
from services.api.answering.times import time_of, to_text
from services.api.answering.views import Position, Time, View


class SecretView(View, frozen=True, kw_only=True):
    """One generation of a key's secret, for people: never the secret, never its fingerprint."""

    generation: int
    """1 for the first secret, then one more with each rotation."""
    hint: str
    """Its prefix and last four characters."""
    ends_at: Time | None
    """From when on it is `rotated`; null for the newest."""


class OwnKeyView(View, frozen=True, kw_only=True):
    """A key as its holder may see it."""

    id: str
    """The key's id, for ever; a rotation does not change it."""
    keyspace_id: str
    """The keyspace that the key is in."""
    organization_id: str | None
    """The customer; null for a root key of the whole platform."""
    name: str
    """What people call the key."""
    hint: str
    """The secret's prefix and its last four characters, for people."""
    generation: int
    """How many secrets the key has had: 1, then one more with each rotation."""
    kind: Literal["solo", "client", "platform"]
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    owner_id: str | None
    """Your own id of the key's owner; null if none was given."""
    environment: str | None
    """Such as `production`; null if none was given."""
    plan_id: str | None
    """The plan that the platform gave to the key; null: none."""
    status: Literal["active", "disabled", "revoked", "expired"]
    """Whether it works, and if not, why not; `disabled` can be undone, `revoked` cannot."""
    scopes: Scopes
    """What the key may be used for."""
    quotas: list[QuotaView]
    """The key's own quotas, and what is left of them."""
    rate_limits: tuple[RateLimit, ...]
    """Numbers of requests per number of seconds; verify and forward-auth count against them."""
    allowed_ips: tuple[str, ...]
    """Networks that the key may be used from; empty: all."""
    expires_at: Time | None
    """From when on the key is `expired`; null: never."""
    created_at: Time
    """When the key was created or imported."""
    last_used_at: Time | None
    """When it was last used, as far as that is recorded (about once a minute); null: never."""
    rotated_at: Time | None
    """When it last got a new secret; null: never."""
    revoked_at: Time | None
    """When it was revoked; null: it is not."""
    secrets: list[SecretView]
    """The generations, oldest first."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


class KeyView(OwnKeyView, frozen=True, kw_only=True):
    """A key, with the notes of the platform and administrators."""

    created_by: str
    """Who created it: the id of a root key, or `system`."""
    imported: bool
    """Whether it was imported by the SHA-256 of its secret."""
    deleted: bool
    """Whether it is hidden, and shown only with `include_deleted`."""
    bound_keyspace_id: str | None
    """Of a root key that is bound to one keyspace: that keyspace; null otherwise."""
    tags: tuple[str, ...]
    """Your own tags, by which keys can be filtered."""
    metadata: dict[str, Any]
    """Your own JSON, as it was given."""


def key_view(key: Key, books: Books, now: Instant, last_used: Instant | None, prefix: str) -> KeyView:
    """A key, and what is left of its own quotas."""
    return KeyView(
        id=key.id,
        keyspace_id=key.keyspace_id,
        organization_id=key.organization_id,
        name=key.name,
        hint=key.newest.hint,
        generation=key.generation,
        kind=key.kind,
        owner_id=key.owner_id,
        environment=key.environment,
        plan_id=key.plan_id,
        status=key.status(now),
        scopes=key.scopes,
        quotas=quotas_of(books, "key", key.id, key.quotas, now),
        rate_limits=key.rate_limits,
        allowed_ips=key.allowed_ips,
        expires_at=time_of(key.expires_at),
        created_at=to_text(key.created_at),
        created_by=key.created_by,
        imported=key.imported,
        last_used_at=time_of(last_used),
        rotated_at=time_of(key.rotated_at),
        revoked_at=time_of(key.revoked_at),
        deleted=key.deleted,
        bound_keyspace_id=key.bound_keyspace_id,
        tags=key.tags,
        metadata=key.metadata,
        secrets=[_secret_view(secret) for secret in key.secrets],
        version=key.version,
        position=format_position(prefix, key.position),
    )


def _secret_view(secret: Secret) -> SecretView:
    return SecretView(generation=secret.generation, hint=secret.hint, ends_at=time_of(secret.ends_at))
