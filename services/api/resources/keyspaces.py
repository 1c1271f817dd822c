"""Keyspaces: the keys of one gateway, the shape of their secrets and the gateway's conventions."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from domain.commands import UNSET, ArchiveKeyspace, ChangeKeyspace, Command, DefineKeyspace, UnsetType
from domain.decisions.access import find_keyspace
from domain.keyspaces import Keyspace
from domain.state import Books
from keyledger_language import AcceptedFormat, SecretFormat
from projections.directory import list_keyspaces
from services.api.answering.keyspaces import ShownKeyspace, keyspace_view
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body, Name
from services.api.lists import Paging, Search, asked_of, listed
from services.api.operations import Reply, operation
from services.api.writing import Because, Fencing, carry_out, expected_version
from services.ledger.fence_results import FenceResult

_TAG: Final = "Keyspaces"
_READ: Final = ("keys:read", "keyspaces:write")
_WRITE: Final = ("keyspaces:write",)
_STAYS: Final = ("builtin_keyspace", "keyspace_archived")

Location = Annotated[str, msgspec.Meta(max_length=100, examples=["header:X-API-Key"])]
Locations = Annotated[tuple[Location, ...], msgspec.Meta(max_length=20)]
Places = Annotated[dict[str, Location], msgspec.Meta(max_length=10, examples=[{"user_id": "query:user_id"}])]
Denials = Annotated[dict[str, int], msgspec.Meta(max_length=50, examples=[{"billing_shortfall": 403}])]
Formats = Annotated[tuple[AcceptedFormat, ...], msgspec.Meta(max_length=20)]
Dimensions = Annotated[
    tuple[Literal["permission", "project", "model", "tenant"], ...], msgspec.Meta(max_length=4)
]


class NewKeyspace(Body, frozen=True, kw_only=True):
    """A keyspace to be created, from a preset or from scratch; given fields override the preset."""

    name: Name
    """What people call the keyspace."""
    preset: Literal["default", "leanmcp", "mindproxy", "leapter", "leadmagic", "allmcp"] | None = None
    """A known gateway, whose settings are the defaults."""
    prefix: Annotated[str, msgspec.Meta(max_length=32, examples=["acme_live_"])] | None = None
    """What its secrets begin with; no other keyspace's prefix may overlap. The preset's if not given."""
    secret_format: SecretFormat | None = None
    """The format of what follows the prefix; the preset's if not given."""
    accepted_formats: Formats = ()
    """Shapes that imported keys may have in addition to the keyspace's own."""
    credential_locations: Locations | None = None
    """Where a request may carry a secret; the preset's if not given."""
    tenant_locations: Places | None = None
    """Where a request names its tenant; the preset's if not given."""
    denial_status: Denials | None = None
    """HTTP statuses that its clients expect, by verdict code; the preset's if not given."""
    require_balance: bool | None = None
    """Whether a use without a cost is refused, too, if wallet or quota are at zero; the preset's if not
    given."""
    required_dimensions: Dimensions | None = None
    """What every use must name; the preset's if not given."""


class KeyspaceChanges(Body, frozen=True, kw_only=True):
    """Fields to be set; those left out stay as they are. Prefix and format cannot be changed."""

    name: Name | UnsetType = UNSET
    """What people call the keyspace."""
    accepted_formats: Formats | UnsetType = UNSET
    """All shapes that imported keys may have in addition to its own."""
    credential_locations: Locations | UnsetType = UNSET
    """Where a request may carry a secret, such as `header:X-API-Key`."""
    tenant_locations: Places | UnsetType = UNSET
    """Where a request names its tenant, such as `{"user_id": "query:user_id"}`."""
    denial_status: Denials | UnsetType = UNSET
    """HTTP statuses that the keyspace's clients expect, by verdict code."""
    require_balance: bool | UnsetType = UNSET
    """Whether a use without a cost is refused, too, if wallet or quota are at zero."""
    required_dimensions: Dimensions | UnsetType = UNSET
    """What every use of a key must name."""


class ListKeyspaces(Paging, frozen=True, kw_only=True):
    """Which keyspaces, in which order."""

    include_archived: bool = False
    """Include archived ones."""
    q: Search | None = None
    """Searched for in names and ids."""
    sort: Literal["created_at", "-created_at", "name", "-name"] = "-created_at"
    """The order; a minus reverses it."""


class ChangedKeyspaceView(ShownKeyspace, frozen=True, kw_only=True):
    """A keyspace after a change."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if something may have been taken away."""


class KeyspacePageView(View, frozen=True, kw_only=True):
    """A page of keyspaces."""

    items: list[ShownKeyspace]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


async def _changed(call: Call[Any, Any], command: Command, *, status: int = 200) -> Reply:
    def show(keyspace: Keyspace, _: Books, __: int) -> View:
        return keyspace_view(keyspace, call.prefix)

    return await carry_out(call, command, show, status=status)


@operation(
    "POST",
    "/v1/keyspaces",
    tag=_TAG,
    summary="Create a keyspace",
    permissions=_WRITE,
    body=NewKeyspace,
    status=201,
    shown_at="/v1/keyspaces/{keyspace_id}",
    answer=ShownKeyspace,
    codes=("platform_only", "prefix_overlap", "idempotency_conflict"),
    idempotent=True,
    example={"name": "gateway", "preset": "default", "prefix": "acme_live_"},
)
async def create_keyspace(call: Call[Any, NewKeyspace]) -> Reply:
    """Create a keyspace."""
    body = call.body
    command = DefineKeyspace(
        name=body.name,
        preset=body.preset,
        prefix=body.prefix,
        secret_format=body.secret_format,
        accepted_formats=body.accepted_formats,
        credential_locations=body.credential_locations,
        tenant_locations=body.tenant_locations,
        denial_status=body.denial_status,
        require_balance=body.require_balance,
        required_dimensions=body.required_dimensions,
    )
    return await _changed(call, command, status=201)


@operation(
    "GET",
    "/v1/keyspaces",
    operation_id="listKeyspaces",
    tag=_TAG,
    summary="List keyspaces",
    description="Includes the built-in one of root keys; archived ones only with `include_archived`.",
    permissions=_READ,
    query=ListKeyspaces,
    answer=KeyspacePageView,
    projected=True,
)
async def get_keyspaces(call: Call[ListKeyspaces, Any]) -> Reply:
    """One page of keyspaces; a bound root key sees only its own and the built-in one."""
    filters = asked_of(call)
    page = list_keyspaces(call.reader.queries, **filters)
    bound = call.asking.keyspace_id

    def show(keyspace_id: str) -> ShownKeyspace | None:
        keyspace = call.books.keyspaces.find(keyspace_id)
        if keyspace is None or (keyspace.archived and not call.query.include_archived):
            return None
        if bound is not None and bound != keyspace.id and not keyspace.builtin:
            return None
        return keyspace_view(keyspace, call.prefix)

    return await listed(call, page, show)


@operation(
    "GET",
    "/v1/keyspaces/{keyspace_id}",
    tag=_TAG,
    summary="Show a keyspace",
    permissions=_READ,
    answer=ShownKeyspace,
    codes=("not_found",),
)
async def get_keyspace(call: Call[Any, Any]) -> Reply:
    """One keyspace, as of now."""
    keyspace = find_keyspace(call.desk, call.path["keyspace_id"])
    return Reply(keyspace_view(keyspace, call.prefix), version=keyspace.version)


@operation(
    "PATCH",
    "/v1/keyspaces/{keyspace_id}",
    tag=_TAG,
    summary="Change a keyspace",
    permissions=_WRITE,
    query=Fencing,
    body=KeyspaceChanges,
    answer=ChangedKeyspaceView,
    codes=("not_found", "platform_only", *_STAYS, "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"denial_status": {"billing_shortfall": 403}},
)
async def update_keyspace(call: Call[Fencing, KeyspaceChanges]) -> Reply:
    """Set fields of a keyspace."""
    body = call.body
    command = ChangeKeyspace(
        keyspace_id=call.path["keyspace_id"],
        expected_version=expected_version(call),
        name=body.name,
        accepted_formats=body.accepted_formats,
        credential_locations=body.credential_locations,
        tenant_locations=body.tenant_locations,
        denial_status=body.denial_status,
        require_balance=body.require_balance,
        required_dimensions=body.required_dimensions,
    )
    return await _changed(call, command)


@operation(
    "POST",
    "/v1/keyspaces/{keyspace_id}/archive",
    tag=_TAG,
    summary="Archive a keyspace that never had a key",
    description=(
        "Its prefix becomes free for another keyspace, and it takes no keys and no changes any more. A "
        "keyspace that has had a key cannot be archived, because secrets with its prefix are in circulation."
    ),
    permissions=_WRITE,
    body=Because,
    answer=ShownKeyspace,
    codes=(
        "not_found", "platform_only", "builtin_keyspace", "keyspace_in_use", "version_conflict",
        "idempotency_conflict",
    ),
    conditional=True,
    idempotent=True,
    example={"reason": "the prefix was a typing mistake"},
)  # fmt: skip
async def archive_keyspace(call: Call[Any, Because]) -> Reply:
    """Archive a keyspace that never had a key."""
    command = ArchiveKeyspace(
        keyspace_id=call.path["keyspace_id"],
        reason=call.body.reason,
        expected_version=expected_version(call),
    )
    return await _changed(call, command)


ROUTES = [create_keyspace, get_keyspaces, get_keyspace, update_keyspace, archive_keyspace]
