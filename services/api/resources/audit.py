"""Who did what, when, from where, with before and after."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, Final, Literal

import msgspec

from domain.instants import to_text
from projections.audit import AuditEntry, AuditPage, list_audit
from services.api.answering.views import Position, Time, View
from services.api.asking.call import Call
from services.api.asking.fields import When, instant_of
from services.api.lists import Filter, Paging, read_page
from services.api.operations import Reply, operation

_encode = msgspec.json.Encoder().encode


class AuditQuery(Paging, frozen=True, kw_only=True):
    """Which lines; all that is given must fit."""

    organization_id: Filter | None = None
    key_id: Filter | None = None
    actor: Filter | None = None
    """The id of a root key, an ordinary key's id (for `self`), or `system`."""
    action: Filter | None = None
    """An event's name, such as `KeyRevoked`."""
    from_: When | None = msgspec.field(name="from", default=None)
    to: When | None = None
    """Not included."""
    request_id: Filter | None = None
    """The trace id of the HTTP request that asked."""
    order: Literal["newest_first", "oldest_first"] = "newest_first"
    format: Literal["json", "ndjson", "csv"] = "json"


class HistoryQuery(Paging, frozen=True, kw_only=True):
    """Which page, in which order."""

    order: Literal["oldest_first", "newest_first"] = "oldest_first"


class AuditEntryView(View, frozen=True, kw_only=True):
    """One thing that happened."""

    position: Position
    at: Time
    actor: str
    action: str
    organization_id: str | None
    key_id: str | None
    subject: str | None
    """What it was done to."""
    ip: str | None
    user_agent: str | None
    request_id: str | None
    reason: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class AuditPageView(View, frozen=True, kw_only=True):
    """A page of what happened."""

    items: list[AuditEntryView]
    next_cursor: str | None
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
        next_cursor=call.next_cursor(page.next_cursor),
        position=call.place(position),
    )


@operation(
    "GET",
    "/v1/audit",
    tag="Audit",
    summary="Who did what",
    description=(
        "Every event but metered use itself. `format=ndjson` has a line of JSON for each entry, `csv` a row; "
        "`X-Next-Cursor` then has what `next_cursor` has in JSON."
    ),
    permissions=("audit:read",),
    query=AuditQuery,
    answer=AuditPageView,
    media_types=("application/json", "application/x-ndjson", "text/csv"),
    projected=True,
)
async def get_audit(call: Call[AuditQuery, Any]) -> Reply:
    """One page of the audit log."""
    query, bound, position = call.query, call.asking.organization_id, call.reader.position
    if bound is not None and query.organization_id not in {None, bound}:
        page = AuditPage([], None)
    else:
        page = await _read(call, bound or query.organization_id)
    view = audit_page(call, page, position)
    if query.format == "json":
        return Reply(view, position=position)
    return _as_lines(call, view, position)


async def _read(call: Call[AuditQuery, Any], organization_id: str | None) -> AuditPage:
    query = call.query
    return await read_page(
        list_audit(
            call.reader.queries,
            call.reader.events,
            organization_id=organization_id,
            key_id=query.key_id,
            actor=query.actor,
            action=query.action,
            from_at=instant_of(query.from_, "from"),
            to_at=instant_of(query.to, "to"),
            request_id=query.request_id,
            newest_first=query.order == "newest_first",
            limit=query.limit,
            cursor=query.cursor,
        )
    )


def _as_lines(call: Call[AuditQuery, Any], view: AuditPageView, position: int) -> Reply:
    headers = {} if view.next_cursor is None else {"X-Next-Cursor": view.next_cursor}
    if call.query.format == "ndjson":
        content, kind = b"".join(_encode(item) + b"\n" for item in view.items), "application/x-ndjson"
    else:
        content, kind = as_csv(view.items), "text/csv; charset=utf-8"
    return Reply(content, position=position, headers={"Content-Type": kind, **headers})


_COLUMNS: Final = AuditEntryView.__struct_fields__


def as_csv(items: Iterable[AuditEntryView]) -> bytes:
    """Rows under a header; before and after as JSON in their cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(_COLUMNS)
    for item in items:
        writer.writerow([_cell(getattr(item, name)) for name in _COLUMNS])
    return text.getvalue().encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        return _encode(value).decode()
    # What a spreadsheet would take for a formula is kept text: user agents and reasons are strangers' words.
    return f"'{value}" if value[:1] in {"=", "+", "-", "@", "\t", "\r"} else value


ROUTES = [get_audit]
