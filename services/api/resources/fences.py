"""Fences: whether any edge may still accept what a change took away."""

from __future__ import annotations

from typing import Any

from domain.errors import NotFoundError
from services.api.answering.fencing import fence_at
from services.api.asking.call import Call
from services.api.asking.reading import beginning
from services.api.operations import Query, Reply, operation
from services.ledger.fence_results import FenceResult


class FenceQuery(Query, frozen=True, kw_only=True):
    """Whether to wait."""

    wait: bool = False
    """Answer only once the fence holds."""


@operation(
    "GET",
    "/v1/fences/{position}",
    tag="Edges",
    summary="Show whether a change is fenced",
    description="`held` means that no edge accepts any more what was taken away up to this position.",
    permissions=("keys:read",),
    query=FenceQuery,
    answer=FenceResult,
    codes=("not_found", "position_unknown"),
)
async def get_fence(call: Call[FenceQuery, Any]) -> Reply:
    """Whether a fence holds."""
    # Only the owner knows all open fences: to other processes each would look as if it held.
    call.ledger.must_own()
    text = call.path["position"]
    number = call.number_of(text)
    if not number:
        raise NotFoundError("position", beginning(text))
    return Reply(await fence_at(call.ledger, number, wait=call.query.wait))


ROUTES = [get_fence]
