"""Revoking many keys at once, by a list of ids or by a filter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from domain.commands import UNSET, RevokeKeys, UnsetType
from domain.decisions.access import is_root
from domain.decisions.keys import Revocation
from domain.state import Books
from projections.lookup import list_keys
from services.api.answering.problems import ProblemError, invalid
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body, Environment, ForeignId, Id, Reason
from services.api.lists import Filter, Search
from services.api.operations import Reply, operation
from services.api.resources.keys import MOST_AT_ONCE, TAG, reachable
from services.api.writing import Fencing, carry_out
from services.ledger.fence_results import FenceResult


class KeyFilter(Body, frozen=True, kw_only=True):
    """Which keys; a key must match all fields."""

    organization_id: Id | None = None
    """Keys of this customer."""
    keyspace_id: Id | None = None
    """Keys of this keyspace."""
    project_id: Id | None = None
    """Keys whose scopes name this project."""
    owner_id: ForeignId | None = None
    """Keys of this owner."""
    environment: Environment | None = None
    """Keys of this environment."""
    tag: Filter | None = None
    """Keys with this tag."""
    status: Literal["active", "disabled", "expired"] | None = None
    """Keys in this state."""
    q: Search | None = None
    """Searched for in name, id, hint and owner."""


class ManyRevocations(Body, frozen=True, kw_only=True):
    """Keys to be revoked together: a list of ids, or a filter."""

    key_ids: Annotated[tuple[Id, ...], msgspec.Meta(min_length=1, max_length=MOST_AT_ONCE)] | None = None
    """The keys, by their ids; or send a filter."""
    filter: KeyFilter | None = None
    """The keys that it finds, at most 1,000; or send their ids."""
    reason: Reason | None = None
    """Why, for the audit."""


class RevocationView(View, frozen=True, kw_only=True, omit_defaults=True):
    """The outcome of one key."""

    key_id: str
    """The id, as it was sent or found."""
    revoked: bool
    """Whether it is revoked now, by this request or an earlier one."""
    code: Literal["not_found", "permission_denied", "key_revoked"] | None = None
    """Why this request did not revoke it: not found by this caller, not allowed, or revoked before."""


class RevokedView(View, frozen=True, kw_only=True):
    """The outcome of many keys."""

    results: list[RevocationView]
    """One for each id, in the order of the ids."""
    revoked: int
    """How many keys this request revoked."""
    more: bool
    """Whether the filter finds more keys: then send it again."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away: whether no edge can accept it any more."""


@operation(
    "POST",
    "/v1/keys/revoke",
    tag=TAG,
    summary="Revoke many keys",
    description=(
        "By a list of ids or by a filter, up to 1,000 at once, in one commit. Each id has a result of its "
        "own, and a refused one does not stop the others. A filter never finds root keys; `more` says "
        "whether it finds more keys than these."
    ),
    permissions=("keys:write",),
    query=Fencing,
    body=ManyRevocations,
    answer=RevokedView,
    codes=("idempotency_conflict",),
    idempotent=True,
    example={"filter": {"organization_id": "org_01JD0000000000000000000000"}, "reason": "offboarded"},
)
async def revoke_keys(call: Call[Fencing, ManyRevocations]) -> Reply:
    """Revoke many keys in one commit."""
    body = call.body
    if (body.key_ids is None) == (body.filter is None):
        raise invalid("key_ids", "exactly one of key_ids and filter is required")
    key_ids, more = body.key_ids or (), False
    if body.filter is not None:
        key_ids, more = await _found_by(call, body.filter)

    def show(ended: list[Revocation], _: Books, position: int) -> View:
        return RevokedView(
            results=[RevocationView(**one._asdict()) for one in ended],
            revoked=len({one.key_id for one in ended if one.revoked and one.code is None}),
            more=more,
            position=call.place(position),
        )

    return await carry_out(call, RevokeKeys(key_ids=key_ids, reason=body.reason), show)


async def _found_by(call: Call[Any, Any], wanted: KeyFilter) -> tuple[tuple[str, ...], bool]:
    """Keys that a filter finds now; it waits for the projections, so that no new key is missed."""
    filters = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not None}
    if not filters:
        raise invalid("filter", "must name at least one field")
    asking = call.asking
    if not reachable(call, wanted.organization_id, wanted.keyspace_id):
        return (), False
    if not await call.ledger.wait_for_projections(call.ledger.head):
        raise ProblemError("position_not_reached", "The projections are behind; try again, or list the ids.")
    if asking.organization_id is not None:
        filters["organization_id"] = asking.organization_id
    if asking.keyspace_id is not None:
        filters["keyspace_id"] = asking.keyspace_id
    found: list[str] = []
    cursor: str | None = None
    while len(found) <= MOST_AT_ONCE:
        page = await list_keys(
            call.reader.queries, now=call.now, sort="created_at", limit=500, cursor=cursor, **filters
        )
        found += [one for one in page.ids if _is_ordinary(call, one)]
        cursor = page.next_cursor
        if cursor is None:
            break
    return tuple(found[:MOST_AT_ONCE]), len(found) > MOST_AT_ONCE


def _is_ordinary(call: Call[Any, Any], key_id: str) -> bool:
    key = call.books.keys.find(key_id)
    return key is not None and not is_root(key) and key.revoked_at is None


ROUTES = [revoke_keys]
"""The route that revokes many keys at once."""
