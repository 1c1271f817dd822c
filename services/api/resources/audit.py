"""Who did what, when, from where, with before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec

from keyledger_language.instants import to_text
from projections.audit import AUDITED, AuditEntry, AuditPage, list_audit
from services.api.answering.views import Position, Time, View
from services.api.asking.call import Call
from services.api.lists import (
    Filter,
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
from services.api.operations import Reply, operation

_encode = msgspec.json.Encoder().encode


ACTIONS: Final = tuple(sorted(kind.__name__ for kind in AUDITED))
Action = Annotated[
    str,
    msgspec.Meta(
        description="An event's name.", examples=["KeyRevoked"], extra_json_schema={"enum": list(ACTIONS)}
    ),
]


class AuditQuery(PagedSpan, frozen=True, kw_only=True):
    """Which lines; a line must match all filters."""

    organization_id: OrganizationId | None = None
    """Only what happened to this customer."""
    key_id: KeyId | None = None
    """Only what happened to this key."""
    actor: Filter | None = None
    """The id of a root key, an ordinary key's id (for `self`), or `system`."""
    action: Action | None = None
    """An event's name, such as `KeyRevoked`."""
    request_id: Filter | None = None
    """The trace id of the HTTP request."""
    sort: Literal["at", "-at"] = "-at"
    """Newest first, or `at`: oldest first."""
    format: Literal["json", "ndjson", "csv"] = "json"
    """JSON, a line of JSON for each entry, or rows of CSV."""


class HistoryQuery(Paging, frozen=True, kw_only=True):
    """Which page, in which order."""

    sort: Literal["at", "-at"] = "at"
    """Oldest first, or `-at`: newest first."""


class AuditEntryView(View, frozen=True, kw_only=True):
    """One thing that happened."""

    position: Position
    at: Time
    """When it happened."""
    actor: str
    """Who did it: the id of a root key, of an ordinary key (for `self`), or `system`."""
    action: str
    """The event's name, such as `KeyRevoked`."""
    organization_id: str | None
    """The customer that it happened to; null: the platform."""
    key_id: str | None
    """The key that it happened to; null: none."""
    subject: str | None
    """What was changed."""
    ip: str | None
    """The address that the request came from; null if it is not known."""
    user_agent: str | None
    """The client's `User-Agent`; null if it sent none."""
    request_id: str | None
    """The trace id of the HTTP request; null if there was none."""
    reason: str | None
    """Why, as it was given; null if it was not."""
    before: dict[str, Any] | None
    """The fields that changed, as they were before; null if there is nothing to show."""
    after: dict[str, Any] | None
    """The same fields, as they are since; null if there is nothing to show."""


class AuditPageView(View, frozen=True, kw_only=True):
    """A page of what happened."""

    items: list[AuditEntryView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


def entry_view(call: Call[Any, Any], entry: AuditEntry) -> AuditEntryView:
    """A line as JSON."""
    return AuditEntryView(
        position=call.place(entry.position),
        at=to_text(entry.at),
        actor=entry.actor,
        action=entry.action,
        organization_id=entry.organization_id,
        key_id=entry.key_id,
        subject=entry.subject,
        ip=entry.ip,
        user_agent=entry.user_agent,
        request_id=entry.request_id,
        reason=entry.reason,
        before=entry.before,
        after=entry.after,
    )


def audit_page(call: Call[Any, Any], page: AuditPage, position: int) -> AuditPageView:
    """A page of lines as JSON."""
    return AuditPageView(
        items=[entry_view(call, entry) for entry in page.entries],
        next_cursor=next_cursor_of(call, page.next_cursor),
        position=call.place(position),
    )


@operation(
    "GET",
    "/v1/audit",
    operation_id="listAudit",
    tag="Audit",
    summary="List the audit log",
    description=(
        "Every event except metered use itself. `format=ndjson` has a line of JSON for each entry, `csv` a "
        "row, with a header on the first page only: joined pages are one file. `X-Next-Cursor` then has "
        "what `next_cursor` has in JSON."
    ),
    permissions=("audit:read",),
    query=AuditQuery,
    answer=AuditPageView,
    media_types=("application/json", "application/x-ndjson", "text/csv"),
    headers=("X-Next-Cursor",),
    projected=True,
)
async def get_audit(call: Call[AuditQuery, Any]) -> Reply:
    """One page of the audit log."""
    query, bound, position = call.query, call.asking.organization_id, call.reader.position
    read = _reading(call, bound or query.organization_id)
    foreign = bound is not None and query.organization_id not in {None, bound}
    page = AuditPage([], None) if foreign else await read_page(read())
    view = audit_page(call, page, position)
    if query.format == "json":
        return Reply(view, position=position)
    return _as_lines(call, view, position)


def _reading(
    call: Call[AuditQuery, Any], organization_id: str | None
) -> Callable[[], Coroutine[Any, Any, AuditPage]]:
    """The query of the audit log; one that makes no sense is refused, whatever it would find."""
    query = call.query
    from_at, to_at = span_of(query)
    return partial(
        list_audit,
        call.reader.queries,
        call.reader.events,
        organization_id=organization_id,
        key_id=query.key_id,
        actor=query.actor,
        action=known("action", query.action, ACTIONS),
        from_at=from_at,
        to_at=to_at,
        request_id=query.request_id,
        newest_first=query.sort == "-at",
        limit=query.limit,
        cursor=cursor_of(call),
    )


def _as_lines(call: Call[AuditQuery, Any], view: AuditPageView, position: int) -> Reply:
    headers = {} if view.next_cursor is None else {"X-Next-Cursor": view.next_cursor}
    if call.query.format == "ndjson":
        content, kind = b"".join(_encode(item) + b"\n" for item in view.items), "application/x-ndjson"
    else:
        first = call.query.cursor is None
        content, kind = as_csv(view.items, header=first), "text/csv; charset=utf-8"
    return Reply(content, position=position, headers={"Content-Type": kind, **headers})


_COLUMNS: Final = AuditEntryView.__struct_fields__


def as_csv(items: Iterable[AuditEntryView], *, header: bool = True) -> bytes:
    """Rows, with a header if wanted; before and after are JSON in their cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    if header:
        writer.writerow(_COLUMNS)
    for item in items:
        writer.writerow([_cell(getattr(item, name)) for name in _COLUMNS])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return _encode(value).decode()
    # Text that a spreadsheet would read as a formula is quoted: strangers write user agents and reasons.
    return f"'{value}" if value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


ROUTES = [get_audit]
