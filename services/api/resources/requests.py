"""What became of a request: the charge, reservation or refusal under its id."""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import unquote

from domain.decisions.access import find_key
from domain.errors import NotFoundError
from domain.instants import to_text
from projections.requests import Kind, RequestEntry, find_request, list_requests
from services.api.answering.money import TenantView
from services.api.answering.times import time_of
from services.api.answering.views import Micros, Position, Time, View
from services.api.asking.call import Call
from services.api.asking.reading import beginning
from services.api.lists import Filter, Paging, read_page
from services.api.operations import Query, Reply, operation

_TAG: Final = "Requests"


class RequestQuery(Query, frozen=True, kw_only=True):
    """Where to look."""

    organization_id: Filter | None = None
    """A request id is unique within an organization; without one, the platform sees all matches."""


class RequestView(View, frozen=True, kw_only=True):
    """One line of the request log; fields that do not apply are null."""

    kind: Kind
    request_id: str | None
    organization_id: str | None
    key_id: str
    at: Time
    position: Position
    charge_id: str | None
    reservation_id: str | None
    base_micros: Micros | None
    price_multiplier: str | None
    amount_micros: Micros | None
    refunded_micros: Micros
    model: str | None
    provider: str | None
    project_id: str | None
    tenant: TenantView | None
    metadata: dict[str, Any] | None
    code: str | None
    """Why it was refused."""
    status: Literal["open", "captured", "released", "expired"] | None
    """Of a reservation, as it stands."""
    expires_at: Time | None
    held_micros: Micros | None
    captured_micros: Micros | None
    uncovered_micros: Micros | None


class RequestsView(View, frozen=True, kw_only=True):
    """Everything under one request id, oldest first."""

    request_id: str
    items: list[RequestView]
    position: Position


class RequestPageView(View, frozen=True, kw_only=True):
    """A page of a key's requests, newest first."""

    items: list[RequestView]
    next_cursor: str | None
    position: Position


@operation(
    "GET",
    "/v1/requests/{request_id}",
    tag=_TAG,
    summary="What became of a request",
    description=(
        "The charge, reservation, capture, refund or refused charge under a request id, also of deleted "
        "keys. What was granted is found for ever; refusals are kept for a stated time, and up to a cap."
    ),
    permissions=("usage:read",),
    query=RequestQuery,
    answer=RequestsView,
    codes=("not_found",),
    projected=True,
    whole=True,
)
async def get_request(call: Call[RequestQuery, Any]) -> Reply:
    """What stands under a request id."""
    request_id, bound = _request_id(call), call.asking.organization_id
    wanted = call.query.organization_id
    head = call.ledger.state.head
    entries: list[RequestEntry] = []
    if bound is None or wanted in {None, bound}:
        entries = await find_request(
            call.reader.queries,
            call.reader.events,
            request_id,
            organization_id=bound or wanted,
            now=call.now,
        )
    visible = [entry for entry in entries if _is_visible(call, entry)]
    if not visible:
        raise NotFoundError("request", beginning(request_id, most=200))
    view = RequestsView(
        request_id=request_id,
        items=[request_view(call, entry) for entry in visible],
        position=call.place(head),
    )
    return Reply(view, position=head)


def _request_id(call: Call[Any, Any]) -> str:
    """The caller's own name of the request, which may hold slashes: the router folds and strips them."""
    _, found, raw = call.scope.get("raw_path", b"").partition(b"/v1/requests/")
    return unquote(raw.decode("latin-1")) if found else call.path["request_id"].removeprefix("/")


def _is_visible(call: Call[Any, Any], entry: RequestEntry) -> bool:
    """Is it of the keyspace that the caller is bound to, if any?"""
    bound = call.asking.keyspace_id
    if bound is None:
        return True
    key = call.ledger.state.keys.find(entry.key_id)
    return key is not None and key.keyspace_id == bound


@operation(
    "GET",
    "/v1/keys/{key_id}/requests",
    tag=_TAG,
    summary="A key's requests",
    description="Newest first; also of a deleted key.",
    permissions=("usage:read",),
    query=Paging,
    answer=RequestPageView,
    codes=("not_found",),
    projected=True,
)
async def get_requests(call: Call[Paging, Any]) -> Reply:
    """One page of a key's request log."""
    key = find_key(call.desk, call.path["key_id"], deleted=True)
    position = call.reader.position
    page = await read_page(
        list_requests(
            call.reader.queries,
            call.reader.events,
            key.id,
            limit=call.query.limit,
            cursor=call.query.cursor,
            now=call.now,
        )
    )
    view = RequestPageView(
        items=[request_view(call, entry) for entry in page.entries],
        next_cursor=call.next_cursor(page.next_cursor),
        position=call.place(position),
    )
    return Reply(view, position=position)


def request_view(call: Call[Any, Any], entry: RequestEntry) -> RequestView:
    """A line as JSON."""
    tenant = None
    if entry.tenant_org_id is not None or entry.tenant_user_id is not None:
        tenant = TenantView(org_id=entry.tenant_org_id, user_id=entry.tenant_user_id)
    return RequestView(
        kind=entry.kind,
        request_id=entry.request_id,
        organization_id=entry.organization_id,
        key_id=entry.key_id,
        at=to_text(entry.at),
        position=call.place(entry.position),
        charge_id=entry.charge_id,
        reservation_id=entry.reservation_id,
        base_micros=entry.base_micros,
        price_multiplier=entry.price_multiplier,
        amount_micros=entry.amount_micros,
        refunded_micros=entry.refunded_micros,
        model=entry.model,
        provider=entry.provider,
        project_id=entry.project_id,
        tenant=tenant,
        metadata=entry.metadata,
        code=entry.code,
        status=entry.status,
        expires_at=time_of(entry.expires_at),
        held_micros=entry.held_micros,
        captured_micros=entry.captured_micros,
        uncovered_micros=entry.uncovered_micros,
    )


ROUTES = [get_request, get_requests]
