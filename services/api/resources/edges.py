"""The edges that the ledger heard from lately: verifiers near the traffic."""

from __future__ import annotations

from typing import Any, Final

from domain.errors import PlatformOnlyError
from keyledger_language.instants import to_text
from projections.pages import Sort, decode_cursor, encode_cursor
from services.api.answering.problems import invalid
from services.api.answering.views import Position, Time, View
from services.api.asking.call import Call
from services.api.lists import Paging, cursor_of, next_cursor_of
from services.api.operations import Reply, operation
from services.ledger.fence_results import EdgeView

_BY_ID: Final = Sort("id", "id", str, descending=False)


class ConnectedEdge(View, frozen=True, kw_only=True):
    """One incarnation of an edge."""

    id: str
    """The edge's id."""
    root_key_id: str
    """The root key that it connects with."""
    incarnation: str
    """32 hex digits, new for each start of its process."""
    version: str
    """Its version, as it reports it."""
    position: Position
    """Up to where it has applied changes."""
    lease_left_ms: int
    """How much longer it may rely on its memory."""
    last_heard_ms: int
    """How long ago the ledger last heard from it."""
    last_heard_at: Time
    """When the ledger last heard from it."""


class EdgesView(View, frozen=True, kw_only=True):
    """Edges that the ledger heard from in the last ten minutes."""

    items: list[ConnectedEdge]
    """The page of edges, ordered by id."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


@operation(
    "GET",
    "/v1/edges",
    operation_id="listEdges",
    tag="Edges",
    summary="List edges",
    description=(
        "Edges that the ledger heard from in the last ten minutes; one without a lease answers nothing "
        "from its memory."
    ),
    permissions=("edges:connect", "audit:read"),
    query=Paging,
    answer=EdgesView,
    codes=("platform_only",),
)
async def get_edges(call: Call[Paging, Any]) -> Reply:
    """One page of edges and their leases."""
    if call.asking.organization_id is not None:
        raise PlatformOnlyError("Edges belong to the platform: use a root key without an organization.")
    now, limit, behind = call.now, call.query.limit, _behind(call)
    edges = sorted((one for one in call.ledger.fences.edges() if _place_of(one) > behind), key=_place_of)
    items = [
        ConnectedEdge(
            id=edge.edge_id,
            root_key_id=edge.root_key_id,
            incarnation=edge.incarnation,
            version=edge.version,
            position=edge.position,
            lease_left_ms=edge.lease_left_ms,
            last_heard_ms=edge.last_heard_ms,
            last_heard_at=to_text(now - edge.last_heard_ms * 1_000),
        )
        for edge in edges[:limit]
    ]
    last = encode_cursor(_BY_ID, *_place_of(edges[limit - 1])) if len(edges) > limit else None
    position = call.place(call.ledger.head)
    return Reply(EdgesView(items=items, next_cursor=next_cursor_of(call, last), position=position))


def _place_of(edge: EdgeView) -> tuple[str, str]:
    return edge.edge_id, f"{edge.root_key_id} {edge.incarnation}"


def _behind(call: Call[Paging, Any]) -> tuple[str, str]:
    """The last edge of the previous page."""
    cursor = cursor_of(call)
    if cursor is None:
        return "", ""
    try:
        edge_id, rest = decode_cursor(_BY_ID, cursor)
    except ValueError as error:
        raise invalid("cursor", str(error)) from None
    return str(edge_id), rest


ROUTES = [get_edges]
