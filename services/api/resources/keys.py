"""Keys: list, show, change. They are created in key_creation; key_life rotates, stops and deletes them."""

from __future__ import annotations

from typing import Any, Final, Literal

from domain.commands import (
    UNSET,
    ChangeKey,
    Command,
    EditScopes,
    UnsetType,
)
from domain.decisions.access import find_key
from domain.keys import Key
from domain.state import Books
from projections.audit import key_history
from projections.lookup import list_keys
from projections.pages import Page
from services.api.answering.keys import KeyView, key_view
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
from services.api.lists import (
    Filter,
    KeyspaceId,
    OrganizationId,
    Paging,
    ProjectId,
    Search,
    asked_of,
    cursor_of,
    listed,
    read_page,
)
from services.api.operations import Query, Reply, operation
from services.api.resources.audit import AuditPageView, HistoryQuery, audit_page
from services.api.writing import Fencing, carry_out, expected_version
from services.ledger.fence_results import FenceResult

TAG: Final = "Keys"
MOST_AT_ONCE: Final = 1_000
"""The most keys that one request can import or revoke."""
KEY_CODES: Final = ("not_found", "key_revoked", "version_conflict", "idempotency_conflict")


class KeyChanges(Body, frozen=True, kw_only=True):
    """Fields of a key to be set; those left out stay as they are."""

    name: Name | UnsetType = UNSET
    """What people call the key."""
    owner_id: ForeignId | UnsetType | None = UNSET
    """Your own id of the key's owner; null removes it."""
    metadata: Metadata | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    """All tags that it should have."""
    environment: Environment | UnsetType | None = UNSET
    """Such as `production`; null removes it."""
    plan_id: Id | UnsetType | None = UNSET
    """The plan, which only the platform may give; null removes it."""
    quotas: Quotas | UnsetType = UNSET
    """All quotas that it should have; what was spent stays spent."""
    rate_limits: RateLimits | UnsetType = UNSET
    """All rate limits that it should have."""
    allowed_ips: Addresses | UnsetType = UNSET
    """The networks that it may be used from; empty: all."""
    expires_at: When | UnsetType | None = UNSET
    """From when on it is expired; null: never."""


class ListKeys(Paging, frozen=True, kw_only=True):
    """Which keys, in which order."""

    organization_id: OrganizationId | None = None
    """Only keys of this customer."""
    keyspace_id: KeyspaceId | None = None
    """Only keys of this keyspace."""
    project_id: ProjectId | None = None
    """Only keys whose scopes name this project."""
    owner_id: Filter | None = None
    """Only keys of this owner."""
    environment: Filter | None = None
    """Only keys of this environment."""
    tag: Filter | None = None
    """Only keys with this tag."""
    status: Literal["active", "disabled", "revoked", "expired"] | None = None
    """Only keys in this state."""
    q: Search | None = None
    """Searched for in name, id, hint and owner."""
    include_revoked: bool = False
    """Include revoked ones."""
    include_deleted: bool = False
    """Include deleted ones."""
    sort: Literal[
        "created_at", "-created_at", "name", "-name", "last_used_at", "-last_used_at",
        "expires_at", "-expires_at",
    ] = "-created_at"  # fmt: skip
    """The order; a minus reverses it."""


class ShowKey(Query, frozen=True, kw_only=True):
    """How to show a key."""

    include_deleted: bool = False
    """Show it even if it was deleted."""


class ChangedKeyView(KeyView, frozen=True, kw_only=True):
    """A key after a change."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away."""


class KeyPageView(View, frozen=True, kw_only=True):
    """A page of keys."""

    items: list[KeyView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


def show_key(call: Call[Any, Any], key: Key, books: Books) -> KeyView:
    """A key as of these books."""
    return key_view(key, books, call.now, call.ledger.last_used_at(key.id), call.prefix)


# -- reading --------------------------------------------------------------------------------------


@operation(
    "GET",
    "/v1/keys",
    operation_id="listKeys",
    tag=TAG,
    summary="List keys",
    description=(
        "Newest first if no sort is given; revoked and deleted ones only with `include_revoked`, "
        "`include_deleted` or, for revoked ones, `status=revoked`."
    ),
    permissions=("keys:read",),
    query=ListKeys,
    answer=KeyPageView,
    projected=True,
)
async def get_keys(call: Call[ListKeys, Any]) -> Reply:
    """One page of keys."""
    query, asking, filters = call.query, call.asking, asked_of(call)
    if not reachable(call, query.organization_id, query.keyspace_id):
        return await listed(call, _nothing(), lambda _: None)
    filters["organization_id"] = asking.organization_id or query.organization_id
    filters["keyspace_id"] = asking.keyspace_id or query.keyspace_id
    page = list_keys(call.reader.queries, now=call.now, **filters)

    def show(key_id: str) -> KeyView | None:
        key = call.books.keys.find(key_id)
        if key is None or (key.deleted and not query.include_deleted):
            return None
        asked = query.include_revoked or query.include_deleted or query.status == "revoked"
        if key.revoked_at is not None and not asked:
            return None
        return show_key(call, key, call.books)

    return await listed(call, page, show)


async def _nothing() -> Page:
    return Page([], None)


def reachable(call: Call[Any, Any], organization_id: str | None, keyspace_id: str | None) -> bool:
    """Whether the caller may see these; a filter that names others finds nothing."""
    asking = call.asking
    return asking.organization_id in {None, organization_id or asking.organization_id} and (
        asking.keyspace_id in {None, keyspace_id or asking.keyspace_id}
    )


@operation(
    "GET",
    "/v1/keys/{key_id}",
    tag=TAG,
    summary="Show a key",
    permissions=("keys:read",),
    query=ShowKey,
    answer=KeyView,
    codes=("not_found",),
)
async def get_key(call: Call[ShowKey, Any]) -> Reply:
    """One key, as of now."""
    key = find_key(call.desk, call.path["key_id"], deleted=call.query.include_deleted)
    return Reply(show_key(call, key, call.books), version=key.version)


@operation(
    "GET",
    "/v1/keys/{key_id}/history",
    operation_id="listKeyHistory",
    tag=TAG,
    summary="Show a key's history",
    description="Oldest first if no sort is given; also for a deleted key.",
    permissions=("keys:read",),
    query=HistoryQuery,
    answer=AuditPageView,
    codes=("not_found",),
)
async def get_history(call: Call[HistoryQuery, Any]) -> Reply:
    """A key's events, with actor, position, before and after."""
    key = find_key(call.desk, call.path["key_id"], deleted=True)
    head = call.ledger.head
    page = await read_page(
        key_history(
            call.reader.events,
            key.id,
            newest_first=call.query.sort == "-at",
            limit=call.query.limit,
            cursor=cursor_of(call),
        )
    )
    return Reply(audit_page(call, page, head), position=head)


# -- changing -------------------------------------------------------------------------------------


async def changed(call: Call[Any, Any], command: Command) -> Reply:
    """Carry out a change and show the key after it."""

    def show(key: Key, books: Books, _: int) -> View:
        return show_key(call, key, books)

    return await carry_out(call, command, show)


@operation(
    "PATCH",
    "/v1/keys/{key_id}",
    tag=TAG,
    summary="Change a key",
    description="Fields left out stay as they are; if something is taken away, the answer has its fence.",
    permissions=("keys:write",),
    query=Fencing,
    body=KeyChanges,
    answer=ChangedKeyView,
    codes=(*KEY_CODES, "platform_only"),
    conditional=True,
    idempotent=True,
    example={"name": "Checkout v2", "tags": ["team:payments"], "expires_at": None},
)
async def update_key(call: Call[Fencing, KeyChanges]) -> Reply:
    """Set fields of a key."""
    body = call.body
    command = ChangeKey(
        key_id=call.path["key_id"],
        expected_version=expected_version(call),
        name=body.name,
        owner_id=body.owner_id,
        metadata=body.metadata,
        tags=UNSET if body.tags is UNSET else tuple(dict.fromkeys(body.tags)),
        environment=body.environment,
        plan_id=body.plan_id,
        quotas=UNSET if body.quotas is UNSET else quotas_of(body.quotas),
        rate_limits=UNSET if body.rate_limits is UNSET else rate_limits_of(body.rate_limits),
        allowed_ips=body.allowed_ips,
        expires_at=UNSET if body.expires_at is UNSET else instant_of(body.expires_at),
    )
    return await changed(call, command)


@operation(
    "PATCH",
    "/v1/keys/{key_id}/scopes",
    tag=TAG,
    summary="Edit a key's scopes",
    description='The secret and all dimensions left out stay; an empty list is refused: send `"*"` for all.',
    permissions=("keys:write",),
    query=Fencing,
    body=ScopesBody,
    answer=ChangedKeyView,
    codes=(*KEY_CODES, "empty_scope"),
    conditional=True,
    idempotent=True,
    example={"models": ["gpt-5", "gpt-5-mini"], "permissions": "*"},
)
async def update_key_scopes(call: Call[Fencing, ScopesBody]) -> Reply:
    """Change what a key may be used for."""
    command = EditScopes(
        key_id=call.path["key_id"],
        scopes=scopes_of(call.body),
        expected_version=expected_version(call),
    )
    return await changed(call, command)


ROUTES = [
    get_keys,
    get_key,
    get_history,
    update_key,
    update_key_scopes,
]
