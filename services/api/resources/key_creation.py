"""Creating a key: its secret is shown once."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from domain.commands import (
    UNSET,
    Command,
    CreateKey,
    UnsetType,
)
from domain.decisions.access import find_open_keyspace
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.state import Books
from keyledger_language import fingerprint, hint
from services.api.answering.keys import KeyView
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import (
    Addresses,
    Body,
    Environment,
    ForeignId,
    Id,
    Metadata,
    Name,
    Quotas,
    RateLimits,
    ScopesBody,
    Tags,
    When,
    instant_of,
    quotas_of,
    rate_limits_of,
    scopes_of,
)
from services.api.operations import Reply, operation
from services.api.resources.keys import TAG, show_key
from services.api.writing import carry_out
from services.ledger.fence_results import FenceResult

_SHOWN_ONCE: Final = "The secret was shown in the first answer; it is not kept and cannot be shown again."
KEY_EXAMPLE: Final = {
    "keyspace_id": "ks_01JD0000000000000000000000",
    "organization_id": "org_01JD0000000000000000000000",
    "name": "Checkout",
    "environment": "production",
    "scopes": {"models": ["gpt-5"]},
    "quotas": [{"unit": "micros", "window": "month", "limit": 50_000_000, "alert_percents": [80, 100]}],
    "rate_limits": [{"name": "burst", "limit": 100, "window_seconds": 60}],
    "tags": ["team:payments"],
    "metadata": {"customer": "acme"},
}


class NewKey(Body, frozen=True, kw_only=True):
    """A key to be created."""

    keyspace_id: Id
    """The keyspace that gives the secret its shape."""
    organization_id: Id | None = None
    """The customer; required, except for a root key of the whole platform."""
    name: Name
    """What people call the key."""
    kind: Literal["solo", "client", "platform"] = "solo"
    """`solo`: one user; `client` and `platform`: each use names its tenant. A root key is `solo`."""
    owner_id: ForeignId | None = None
    """Your own id of the key's owner."""
    environment: Environment | None = None
    """Such as `production`."""
    plan_id: Id | None = None
    """The plan, which only the platform may give. A root key has none."""
    scopes: ScopesBody = ScopesBody()
    """What the key may be used for; a dimension left out is `*`: all that plan and organization allow. A
    root key names its permissions, and no other dimension."""
    quotas: Quotas = ()
    """Amounts per window, one for each unit and window. A root key has none."""
    rate_limits: RateLimits = ()
    """Numbers of requests per number of seconds. A root key has none."""
    allowed_ips: Addresses = ()
    """Networks that the key may be used from; empty: all."""
    expires_at: When | None = None
    """From when on it is expired; null: never."""
    tags: Tags = ()
    """Your own tags, by which keys can be filtered."""
    metadata: Metadata = msgspec.field(default_factory=dict)
    bound_keyspace_id: Id | None = None
    """Of a root key: the one keyspace that it may act on."""


class CreatedKeyView(View, frozen=True, kw_only=True):
    """A key and its secret, which is shown only this once."""

    key: KeyView
    """The key."""
    secret: str | None = None
    """The secret; null in a replay, because it was shown already."""
    detail: str | UnsetType = UNSET
    """Only in a replay: why there is no secret."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away: whether no edge can accept it any more."""


@operation(
    "POST",
    "/v1/keys",
    tag=TAG,
    summary="Create a key",
    description="The secret is in this answer and nowhere else, ever.",
    permissions=("keys:write",),
    body=NewKey,
    status=201,
    shown_at="/v1/keys/{key_id}",
    answer=CreatedKeyView,
    codes=("not_found", "keyspace_archived", "empty_scope", "platform_only", "idempotency_conflict"),
    idempotent=True,
    example=KEY_EXAMPLE,
)
async def create_key(call: Call[Any, NewKey]) -> Reply:
    """Create a key and show its secret."""
    keyspace = keyspace_of(call, call.body.keyspace_id)
    secret = keyspace.shape.generate()
    command = creation(call.body, fingerprint(secret), hint(secret, keyspace.prefix))
    return await with_secret(call, command, secret)


async def with_secret(call: Call[Any, Any], command: Command, secret: str) -> Reply:
    """Carry out a command that gives a key this secret, and show the secret in the first answer."""

    def show(key: Key, books: Books, position: int) -> View:
        return CreatedKeyView(
            key=show_key(call, key, books), detail=_SHOWN_ONCE, position=call.place(position)
        )

    # A replay has a null secret and says why; the first answer has the secret and no detail.
    reply = await carry_out(call, command, show, status=201, first={"secret": secret})
    if reply.body["secret"] is not None:
        del reply.body["detail"]
    return reply


def keyspace_of(call: Call[Any, Any], keyspace_id: str) -> Keyspace:
    """The keyspace of a new key."""
    return find_open_keyspace(call.desk, keyspace_id, field="keyspace_id")


def creation(body: NewKey, digest: bytes, shown: str, *, imported: bool = False) -> CreateKey:
    """The command that a body asks for."""
    return CreateKey(
        keyspace_id=body.keyspace_id,
        organization_id=body.organization_id,
        name=body.name,
        fingerprint=digest,
        hint=shown,
        kind=body.kind,
        owner_id=body.owner_id,
        environment=body.environment,
        plan_id=body.plan_id,
        scopes=scopes_of(body.scopes),
        quotas=quotas_of(body.quotas),
        rate_limits=rate_limits_of(body.rate_limits),
        allowed_ips=body.allowed_ips,
        expires_at=instant_of(body.expires_at),
        tags=tuple(dict.fromkeys(body.tags)),
        metadata=body.metadata,
        bound_keyspace_id=body.bound_keyspace_id,
        imported=imported,
    )


ROUTES = [create_key]
