"""Keys: create, list, show, change; what ends or renews them is in key_life."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from domain.commands import (
    UNSET,
    ChangeKey,
    Command,
    CreateKey,
    EditScopes,
    UnsetType,
)
from domain.decisions.access import find_key, find_open_keyspace
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.state import Books
from keyledger_edge import fingerprint, hint
from projections.audit import key_history
from projections.lookup import list_keys
from projections.pages import Page
from services.api.answering.views import KeyView, Position, View, key_view
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
from services.ledger.fence import FenceResult

TAG: Final = "Keys"
MOST_AT_ONCE: Final = 1_000
_SHOWN_ONCE: Final = "The secret was shown in the first answer; it is not kept and cannot be shown again."
KEY_CODES: Final = ("not_found", "key_revoked", "version_conflict", "idempotency_conflict")
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
    """A key to be made."""

    keyspace_id: Id
    """The keyspace that gives the secret its shape."""
    organization_id: Id | None = None
    """Needed, but for a root key of the whole platform."""
    name: Name
    """What people call the key."""
    kind: Literal["solo", "client", "platform"] = "solo"
    """`solo`: one user; `client` and `platform`: each use names its tenant. A root key is `solo`."""
    owner_id: ForeignId | None = None
    """Your own id of whoever owns the key."""
    environment: Environment | None = None
    """Such as `production`."""
    plan_id: Id | None = None
    """The plan; the platform's to give. None for a root key."""
    scopes: ScopesBody = ScopesBody()
    """What the key may be used for; a dimension left out is `*`, all that plan and organization allow. A
    root key names its permissions, and nothing else."""
    quotas: Quotas = ()
    """Amounts per window, one for each unit and window. None for a root key."""
    rate_limits: RateLimits = ()
    """Requests per seconds. None for a root key."""
    allowed_ips: Addresses = ()
    """Networks that the key may be used from; none: all."""
    expires_at: When | None = None
    """From then on it is expired; null: never."""
    tags: Tags = ()
    """Your own marks, by which keys are found."""
    metadata: Metadata = msgspec.field(default_factory=dict)
    bound_keyspace_id: Id | None = None
    """Of a root key: the one keyspace that it is to act on."""


class KeyChanges(Body, frozen=True, kw_only=True):
    """Fields of a key to be set; those left out stay."""

    name: Name | UnsetType = UNSET
    """What people call the key."""
    owner_id: ForeignId | UnsetType | None = UNSET
    """Your own id of whoever owns the key; null: nobody."""
    metadata: Metadata | UnsetType = UNSET
    tags: Tags | UnsetType = UNSET
    """All tags that it is to have."""
    environment: Environment | UnsetType | None = UNSET
    """Such as `production`; null: none."""
    plan_id: Id | UnsetType | None = UNSET
    """The plan, the platform's to give; null: none."""
    quotas: Quotas | UnsetType = UNSET
    """All quotas that it is to have; what was spent stays spent."""
    rate_limits: RateLimits | UnsetType = UNSET
    """All rate limits that it is to have."""
    allowed_ips: Addresses | UnsetType = UNSET
    """All networks that it may be used from; none: all."""
    expires_at: When | UnsetType | None = UNSET
    """From then on it is expired; null: never."""


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
    """Looked for in name, id, hint and owner."""
    include_revoked: bool = False
    """Revoked ones, too."""
    include_deleted: bool = False
    """Deleted ones, too."""
    sort: Literal[
        "created_at", "-created_at", "name", "-name", "last_used_at", "-last_used_at",
        "expires_at", "-expires_at",
    ] = "-created_at"  # fmt: skip
    """The order; a minus turns it round."""


class ShowKey(Query, frozen=True, kw_only=True):
    """How to show a key."""

    include_deleted: bool = False
    """Also if it was deleted."""


class ChangedKeyView(KeyView, frozen=True, kw_only=True):
    """A key after a change."""

    fence: FenceResult | UnsetType = UNSET
    """Where something was taken away."""


class CreatedKeyView(View, frozen=True, kw_only=True):
    """A key and its secret, shown this once."""

    key: KeyView
    """The key."""
    secret: str | None = None
    """Null in a replay: it was shown already."""
    detail: str | UnsetType = UNSET
    """Only in a replay: why there is no secret."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """Where something was taken away: can no edge accept it any more?"""


class KeyPageView(View, frozen=True, kw_only=True):
    """A page of keys."""

    items: list[KeyView]
    """The page, in the order that was asked for."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


def show_key(call: Call[Any, Any], key: Key, books: Books) -> KeyView:
    """A key as of these books."""
    return key_view(key, books, call.now, call.ledger.last_used_at(key.id), call.prefix)


# -- making ---------------------------------------------------------------------------------------


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
    """Make a key and show its secret."""
    keyspace = keyspace_of(call, call.body.keyspace_id)
    secret = keyspace.shape.generate()
    command = creation(call.body, fingerprint(secret), hint(secret, keyspace.prefix))
    return await with_secret(call, command, secret)


async def with_secret(call: Call[Any, Any], command: Command, secret: str) -> Reply:
    """Carry out what gives a key this secret, and show it this once."""

    def show(key: Key, books: Books, position: int) -> View:
        return CreatedKeyView(
            key=show_key(call, key, books), detail=_SHOWN_ONCE, position=call.place(position)
        )

    # A replay keeps secret null and says why; the first answer has it, and no detail.
    reply = await carry_out(call, command, show, status=201, first={"secret": secret})
    if reply.body["secret"] is not None:
        del reply.body["detail"]
    return reply


def keyspace_of(call: Call[Any, Any], keyspace_id: str) -> Keyspace:
    """The keyspace that a new key is to be in."""
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


# -- reading --------------------------------------------------------------------------------------


@operation(
    "GET",
    "/v1/keys",
    operation_id="listKeys",
    tag=TAG,
    summary="List keys",
    description="Newest first if no sort is given; revoked and deleted ones only where they are asked for.",
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
        key = call.ledger.state.keys.find(key_id)
        if key is None or (key.deleted and not query.include_deleted):
            return None
        asked = query.include_revoked or query.include_deleted or query.status == "revoked"
        if key.revoked_at is not None and not asked:
            return None
        return show_key(call, key, call.ledger.state)

    return await listed(call, page, show)


async def _nothing() -> Page:
    return Page([], None)


def reachable(call: Call[Any, Any], organization_id: str | None, keyspace_id: str | None) -> bool:
    """Foreign things are not there: a filter that names them finds nothing."""
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
    return Reply(show_key(call, key, call.ledger.state), version=key.version)


@operation(
    "GET",
    "/v1/keys/{key_id}/history",
    operation_id="listKeyHistory",
    tag=TAG,
    summary="What happened to a key",
    description="Oldest first; also of a deleted key.",
    permissions=("keys:read",),
    query=HistoryQuery,
    answer=AuditPageView,
    codes=("not_found",),
)
async def get_history(call: Call[HistoryQuery, Any]) -> Reply:
    """A key's events, with actor, position, before and after."""
    key = find_key(call.desk, call.path["key_id"], deleted=True)
    head = call.ledger.state.head
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
    """Carry out a change and show the key as it is then."""

    def show(key: Key, books: Books, _: int) -> View:
        return show_key(call, key, books)

    return await carry_out(call, command, show)


@operation(
    "PATCH",
    "/v1/keys/{key_id}",
    tag=TAG,
    summary="Change a key",
    description="Fields left out stay; where something is taken away, the answer has its fence.",
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
    description='The secret stays; a dimension left out stays; an empty list is refused: send `"*"`.',
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
    create_key,
    get_keys,
    get_key,
    get_history,
    update_key,
    update_key_scopes,
]
