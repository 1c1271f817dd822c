"""A key's life: rotate, disable, enable, revoke, delete."""

from __future__ import annotations

from typing import Any

from domain.commands import DeleteKey, DisableKey, EnableKey, RevokeKey, RotateKey
from domain.decisions.access import find_key
from keyledger_language import fingerprint, hint
from services.api.answering.keys import KeyView
from services.api.asking.call import Call
from services.api.asking.fields import Amount, Body, Reason
from services.api.operations import Reply, operation
from services.api.resources.key_creation import CreatedKeyView, with_secret
from services.api.resources.keys import KEY_CODES, TAG, ChangedKeyView, changed
from services.api.writing import Because, Fencing, expected_version


class Rotation(Body, frozen=True, kw_only=True):
    """How a key gets its next secret."""

    overlap_seconds: Amount = 0
    """How long the present secret keeps working; 0 ends all older secrets at once."""
    reason: Reason | None = None
    """Why, for the audit."""


@operation(
    "POST",
    "/v1/keys/{key_id}/rotate",
    tag=TAG,
    summary="Rotate a key's secret",
    description="The old secret stops working at once, or after the overlap; at most two work at a time.",
    permissions=("keys:write",),
    query=Fencing,
    body=Rotation,
    status=201,
    shown_at="/v1/keys/{key_id}",
    answer=CreatedKeyView,
    codes=(*KEY_CODES, "key_expired"),
    conditional=True,
    idempotent=True,
    example={"overlap_seconds": 3600, "reason": "quarterly"},
)
async def rotate_key(call: Call[Fencing, Rotation]) -> Reply:
    """Create the next generation and show its secret."""
    key = find_key(call.desk, call.path["key_id"])
    keyspace = call.books.keyspaces[key.keyspace_id]
    secret = keyspace.shape.generate()
    command = RotateKey(
        key_id=key.id,
        fingerprint=fingerprint(secret),
        hint=hint(secret, keyspace.prefix),
        overlap_seconds=call.body.overlap_seconds,
        reason=call.body.reason,
        expected_version=expected_version(call),
    )
    return await with_secret(call, command, secret)


@operation(
    "POST",
    "/v1/keys/{key_id}/disable",
    tag=TAG,
    summary="Disable a key",
    description="It stops working until it is enabled again.",
    permissions=("keys:write",),
    query=Fencing,
    body=Because,
    answer=ChangedKeyView,
    codes=KEY_CODES,
    conditional=True,
    idempotent=True,
    example={"reason": "holidays"},
)
async def disable_key(call: Call[Fencing, Because]) -> Reply:
    """Stop a key; it can be enabled again."""
    command = DisableKey(
        key_id=call.path["key_id"], reason=call.body.reason, expected_version=expected_version(call)
    )
    return await changed(call, command)


@operation(
    "POST",
    "/v1/keys/{key_id}/enable",
    tag=TAG,
    summary="Enable a key",
    description="Undoes a disable.",
    permissions=("keys:write",),
    body=Because,
    answer=KeyView,
    codes=KEY_CODES,
    conditional=True,
    idempotent=True,
    example={"reason": "back from holidays"},
)
async def enable_key(call: Call[Any, Because]) -> Reply:
    """Undo a disable."""
    command = EnableKey(
        key_id=call.path["key_id"], reason=call.body.reason, expected_version=expected_version(call)
    )
    return await changed(call, command)


@operation(
    "POST",
    "/v1/keys/{key_id}/revoke",
    tag=TAG,
    summary="Revoke a key",
    description="It stops working for good.",
    permissions=("keys:write",),
    query=Fencing,
    body=Because,
    answer=ChangedKeyView,
    codes=("not_found", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"reason": "leaked in a build log"},
)
async def revoke_key(call: Call[Fencing, Because]) -> Reply:
    """Revoke a key."""
    command = RevokeKey(
        key_id=call.path["key_id"], reason=call.body.reason, expected_version=expected_version(call)
    )
    return await changed(call, command)


@operation(
    "DELETE",
    "/v1/keys/{key_id}",
    tag=TAG,
    summary="Delete a key",
    description=(
        "It is revoked and hidden. History, usage, charges and request log stay; `include_deleted=true` "
        "shows it."
    ),
    permissions=("keys:write",),
    query=Fencing,
    body=Because,
    answer=ChangedKeyView,
    codes=("not_found", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"reason": "customer left"},
)
async def delete_key(call: Call[Fencing, Because]) -> Reply:
    """Revoke a key and hide it."""
    command = DeleteKey(
        key_id=call.path["key_id"], reason=call.body.reason, expected_version=expected_version(call)
    )
    return await changed(call, command)


ROUTES = [rotate_key, disable_key, enable_key, revoke_key, delete_key]
"""The routes that rotate, disable, enable, revoke and delete a key."""
