"""Who verifies near the traffic: the edges that were heard of lately."""

from __future__ import annotations

from typing import Any

from domain.errors import PlatformOnlyError
from domain.instants import to_text
from services.api.answering.views import Position, Time, View
from services.api.asking.call import Call
from services.api.operations import Reply, operation


class ConnectedEdge(View, frozen=True, kw_only=True):
    """One incarnation of an edge."""

    id: str
    root_key_id: str
    """The root key that it takes part with."""
    incarnation: str
    version: str
    position: Position
    """Up to where it has heard of changes."""
    lease_left_ms: int
    """How much longer it may rely on what it heard."""
    last_heard_ms: int
    last_heard_at: Time


class EdgesView(View, frozen=True, kw_only=True):
    """Edges that were heard of in the last minutes."""

    items: list[ConnectedEdge]
    next_cursor: str | None
    position: Position


@operation(
    "GET",
    "/v1/edges",
    tag="Edges",
    summary="Who is connected",
    description="Edges that were heard of in the last ten minutes; one without a lease answers nothing.",
    permissions=("edges:connect", "audit:read"),
    answer=EdgesView,
    codes=("platform_only",),
)
async def get_edges(call: Call[Any, Any]) -> Reply:
    """All edges and their leases."""
    if call.asking.organization_id is not None:
        raise PlatformOnlyError("Edges are the platform's: ask with a root key that is bound to nothing.")
    now = call.ledger.clock.now()
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
        for edge in call.ledger.fences.edges()
    ]
    view = EdgesView(items=items, next_cursor=None, position=call.place(call.ledger.state.head))
    return Reply(view)


ROUTES = [get_edges]
