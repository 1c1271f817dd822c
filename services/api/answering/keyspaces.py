"""Keyspaces as JSON."""

from __future__ import annotations

from typing import Literal

from domain.ids import format_position
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from keyledger_language import AcceptedFormat, SecretFormat
from services.api.answering.times import to_text
from services.api.answering.views import Position, Time, View


class ShownKeyspace(View, frozen=True, kw_only=True):
    """The keys of one gateway: the shape of their secrets and the gateway's conventions."""

    id: str
    """The keyspace's id."""
    name: str
    """What people call the keyspace."""
    preset: str | None
    """The preset that it was created from; null: from scratch."""
    prefix: str
    """What its secrets begin with."""
    secret_format: SecretFormat
    """The format of what follows the prefix."""
    secret_shape: str
    """The shape of its secrets in one line, for people."""
    accepted_formats: tuple[AcceptedFormat, ...]
    """Shapes that imported keys may have in addition to the keyspace's own."""
    credential_locations: tuple[str, ...]
    """Where a request may carry a secret, such as `header:X-API-Key`."""
    tenant_locations: dict[str, str]
    """Where a request names its tenant, such as `{"user_id": "query:user_id"}`."""
    denial_status: dict[str, int]
    """HTTP statuses that the keyspace's clients expect, by verdict code."""
    require_balance: bool
    """Whether a use without a cost is refused, too, if wallet or quota are at zero."""
    required_dimensions: tuple[str, ...]
    """What every use of a key must name."""
    builtin: bool
    """Whether it is the ledger's own keyspace of root keys, which cannot be changed."""
    status: Literal["active", "archived"]
    """`archived`: it takes no keys any more, and its prefix is free."""
    created_at: Time
    """When it was created."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


def keyspace_view(keyspace: Keyspace, prefix: str) -> ShownKeyspace:
    """A keyspace."""
    return ShownKeyspace(
        id=keyspace.id,
        name=keyspace.name,
        preset=keyspace.preset,
        prefix=keyspace.prefix,
        secret_format=keyspace.secret_format,
        secret_shape=keyspace.shape.describe(),
        accepted_formats=keyspace.accepted_formats,
        credential_locations=keyspace.credential_locations,
        tenant_locations=keyspace.tenant_locations,
        denial_status=keyspace.denial_status,
        require_balance=keyspace.require_balance,
        required_dimensions=keyspace.required_dimensions,
        builtin=keyspace.id == ROOT_KEYSPACE_ID,
        status="archived" if keyspace.archived else "active",
        created_at=to_text(keyspace.created_at),
        version=keyspace.version,
        position=format_position(prefix, keyspace.position),
    )
