"""The outcome of a request: the charge, reservation or refusal under its id."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote

import msgspec

from domain.decisions.access import find_key
from domain.errors import NotFoundError
from keyledger_language import STATUS_OF_CODE
from keyledger_language.instants import Instant, to_text
from projections.request_lists import GRANTED, RequestFilter, RequestPage, first_since, list_requests
from projections.requests import (
    MOST_SEARCHED,
    Kind,
    RequestEntry,
    TooManyOrganizationsError,
    find_request,
)
from services.api.answering.money import TenantView
from services.api.answering.problems import invalid
from services.api.answering.times import time_of
from services.api.answering.views import Micros, Position, Time, VerdictCode, View
from services.api.asking.call import Call
from services.api.asking.reading import beginning
from services.api.lists import (
    KeyId,
    OrganizationId,
    PagedSpan,
    Paging,
    cursor_of,
    known,
    next_cursor_of,
    read_page,
    span_of,
)
from services.api.operations import Query, Reply, operation

_TAG: Final = "Requests"


class RequestQuery(Query, frozen=True, kw_only=True):
    """Where to look."""

    organization_id: OrganizationId | None = None
    """A request id is unique within an organization. Without this parameter, a root key of the whole
    platform gets the matches of all organizations; it is required once the ledger has more than 1,000."""


CODES: Final = (GRANTED, *(code for code in STATUS_OF_CODE if code != GRANTED))
Code = Annotated[
    str,
    msgspec.Meta(
        description="`valid`: granted requests; another code: requests refused with it.",
        examples=["billing_shortfall"],
        extra_json_schema={"enum": list(CODES)},
    ),
]


class ListRequests(PagedSpan, frozen=True, kw_only=True):
    """Which lines; a line must match all filters."""

    organization_id: OrganizationId | None = None
    """Only lines of this customer."""
    key_id: KeyId | None = None
    """Only lines of this key."""
    code: Code | None = None


class RequestView(View, frozen=True, kw_only=True):
    """One line of the request log; fields that do not apply are null."""

    kind: Kind
    """What it is: a charge, a refund, a reservation, a capture, or a refusal."""
    request_id: str | None
    """The caller's own id of the use; null if none was given."""
    organization_id: str | None
    """The customer; null for a key without one."""
    key_id: str
    """The key that was used."""
    at: Time
    """When it happened."""
    position: Position
    charge_id: str | None
    """The charge that it created, or gave back; null: none."""
    reservation_id: str | None
    """The reservation that it created, or captured; null: none."""
    base_micros: Micros | None
    """The price before the plan's multiplier, in micros; null if there is none."""
    price_multiplier: str | None
    """The plan's multiplier that was applied; null if none was."""
    amount_micros: Micros | None
    """What it cost, held or gave back, in micros; null if no money moved."""
    refunded_micros: Micros
    """What was given back of it so far, in micros."""
    model: str | None
    """The model that was named; null if none was."""
    provider: str | None
    """The provider that was named; null if none was."""
    project_id: str | None
    """The project that was named; null if none was."""
    tenant: TenantView | None
    """Whose work it was, inside the customer's own product; null if it was not given."""
    metadata: dict[str, Any] | None
    """The caller's own JSON, as it was given; null if none was."""
    code: VerdictCode | None
    """Why it was refused; null if it was not."""
    status: Literal["open", "captured", "released", "expired"] | None
    """Of a reservation: its present status; null otherwise."""
    expires_at: Time | None
    """Of a reservation: when it gives back what it holds; null otherwise."""
    held_micros: Micros | None
    """Of a reservation: what it still holds, in micros; null otherwise."""
    captured_micros: Micros | None
    """Of a reservation: what captures have taken of it, in micros; null otherwise."""
    uncovered_micros: Micros | None
    """What was captured in excess of the reservation and not charged, in micros; null otherwise."""


class RequestsView(View, frozen=True, kw_only=True):
    """Everything under one request id, oldest first."""

    request_id: str
    """The requested id."""
    items: list[RequestView]
    """Oldest first."""
    position: Position


class RequestPageView(View, frozen=True, kw_only=True):
    """A page of requests, newest first."""

    items: list[RequestView]
    """Newest first."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


@operation(
    "GET",
    "/v1/requests/{request_id}",
    tag=_TAG,
    summary="Show the outcome of a request",
    description=(
        "The charge, reservation, capture, refund or refused charge under a request id, also for deleted "
        "keys. Granted requests are found for ever; refusals are kept for a stated time, and up to a cap."
    ),
    permissions=("usage:read",),
    query=RequestQuery,
    answer=RequestsView,
    codes=("not_found",),
    projected=True,
    whole=True,
)
async def get_request(call: Call[RequestQuery, Any]) -> Reply:
    """Everything under a request id."""
    request_id, bound = _request_id(call), call.asking.organization_id
    wanted = call.query.organization_id
    head = call.ledger.head
    entries: list[RequestEntry] = []
    if bound is None or wanted in {None, bound}:
        try:
            entries = await find_request(
                call.reader.queries,
                call.reader.events,
                request_id,
                organization_id=bound or wanted,
                now=call.now,
            )
        except TooManyOrganizationsError:
            raise invalid(
                "organization_id",
                f"is required, because this ledger has more than {MOST_SEARCHED} organizations",
            ) from None
    visible = [entry for entry in entries if _is_visible(call, entry.key_id)]
    if not visible:
        raise NotFoundError("request", beginning(request_id, most=200))
    view = RequestsView(
        request_id=request_id,
        items=[request_view(call, entry) for entry in visible],
        position=call.place(head),
    )
    return Reply(view, position=head)


def _request_id(call: Call[Any, Any]) -> str:
    """The caller's own id of the request, from the raw path: the router folds and strips its slashes."""
    _, found, raw = call.scope.get("raw_path", b"").partition(b"/v1/requests/")
    return unquote(raw.decode("latin-1")) if found else call.path["request_id"].removeprefix("/")


def _is_visible(call: Call[Any, Any], key_id: str) -> bool:
    """Whether the key is in the keyspace that the caller is bound to, if any."""
    bound = call.asking.keyspace_id
    if bound is None:
        return True
    key = call.books.keys.find(key_id)
    return key is not None and key.keyspace_id == bound


@operation(
    "GET",
    "/v1/requests",
    operation_id="listRequests",
    tag=_TAG,
    summary="List requests",
    description=(
        "Charges, reservations, their outcomes, and refusals, newest first, also for deleted keys. `from` "
        "and `to` refer to when a line was written: for a refusal that is some seconds later. Refusals are "
        "kept for a stated time, and up to a cap. A page may be shorter than `limit` and still have a "
        "`next_cursor`: continue with it."
    ),
    permissions=("usage:read",),
    query=ListRequests,
    answer=RequestPageView,
    projected=True,
)
async def list_all_requests(call: Call[ListRequests, Any]) -> Reply:
    """One page of the request log; a bound root key sees only its own lines."""
    query, bound = call.query, call.asking.organization_id
    wanted = RequestFilter(
        key_id=query.key_id,
        organization_id=bound or query.organization_id,
        code=known("code", query.code, CODES),
        sees=None if call.asking.keyspace_id is None else partial(_is_visible, call),
    )
    from_at, to_at = span_of(query)
    # A filter that names another organization finds nothing, as if it did not exist.
    foreign = bound is not None and query.organization_id not in {None, bound}
    return await _page(call, None if foreign else wanted, from_at, to_at)


@operation(
    "GET",
    "/v1/keys/{key_id}/requests",
    operation_id="listKeyRequests",
    tag=_TAG,
    summary="List a key's requests",
    description="Newest first; also for a deleted key.",
    permissions=("usage:read",),
    query=Paging,
    answer=RequestPageView,
    codes=("not_found",),
    projected=True,
)
async def get_requests(call: Call[Paging, Any]) -> Reply:
    """One page of a key's request log."""
    key = find_key(call.desk, call.path["key_id"], deleted=True)
    return await _page(call, RequestFilter(key_id=key.id))


async def _page(
    call: Call[Any, Any],
    wanted: RequestFilter | None,
    from_at: Instant | None = None,
    to_at: Instant | None = None,
) -> Reply:
    """One page of the lines that match; None: an empty page."""
    reader, head, cursor = call.reader, call.ledger.head, cursor_of(call)
    position = reader.position
    first = 0 if from_at is None else await first_since(reader.events, from_at, head)
    last = head if to_at is None else await first_since(reader.events, to_at, head) - 1
    page = RequestPage([], None)
    if wanted is not None:
        page = await read_page(
            list_requests(
                reader.queries,
                reader.events,
                wanted,
                first=first,
                last=last,
                limit=call.query.limit,
                cursor=cursor,
                now=call.now,
            )
        )
    view = RequestPageView(
        items=[request_view(call, entry) for entry in page.entries],
        next_cursor=next_cursor_of(call, page.next_cursor),
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


ROUTES = [list_all_requests, get_request, get_requests]
