"""Is it alive, and can it serve? If not, what does it wait for?"""

from __future__ import annotations

from typing import Any, Final, Literal

from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.operations import Api, Reply, operation
from services.ledger.errors import WaitsForStandbyError


class AliveView(View, frozen=True, kw_only=True):
    """The process runs."""

    status: Literal["alive"]
    """It answers, so it is."""


class WaitingView(View, frozen=True, kw_only=True):
    """Something that is not there."""

    dependency: str
    """What is missing: `postgresql`, `nats` or `partition`."""
    detail: str
    """What that means, for people."""


class ReadyView(View, frozen=True, kw_only=True):
    """Can it serve?"""

    ready: bool
    """Can requests be answered here, or passed on?"""
    owner: bool
    """Does this process decide, or does it pass requests on to the one that does?"""
    position: Position
    projected: Position
    """How far lists and search are."""
    waits_for: list[WaitingView]
    """What is needed to answer requests."""
    does_without: list[WaitingView]
    """What is missing though requests are answered, and what that means."""


_WITHOUT_NATS: Final = WaitingView(
    dependency="nats",
    detail="NATS cannot be reached: edges ask the ledger, revocations wait for their leases to end, "
    "and events are published when it is back.",
)


@operation("GET", "/healthz", tag="Operating", summary="Is it alive?", answer=AliveView)
async def get_health(_: Call[Any, Any]) -> Reply:
    """The process runs."""
    return Reply(AliveView(status="alive"))


@operation(
    "GET",
    "/readyz",
    tag="Operating",
    summary="Can it serve?",
    description="503 while it cannot, with what it waits for. Without NATS it can: that is told, too.",
    answer=ReadyView,
    other_answers=((503, ReadyView),),
)
async def get_readiness(call: Call[Any, Any]) -> Reply:
    """Can requests be answered here, or passed on?"""
    waits_for = waiting(call.api)
    ledger = call.ledger
    view = ReadyView(
        ready=not waits_for,
        owner=ledger.owner,
        position=call.place(ledger.head),
        projected=call.place(call.reader.position),
        waits_for=waits_for,
        does_without=[] if call.api.nats_reachable() else [_WITHOUT_NATS],
    )
    return Reply(view, 200 if view.ready else 503, position=ledger.head)


def waiting(api: Api) -> list[WaitingView]:
    """What this process waits for before it can serve."""
    ledger = api.ledger
    if (differs := ledger.other_history) is not None:
        return [WaitingView(dependency="postgresql", detail=differs.detail)]
    if not ledger.reachable:
        return [WaitingView(dependency="postgresql", detail="PostgreSQL cannot be reached.")]
    if ledger.waits_for_standby:
        return [WaitingView(dependency="postgresql", detail=WaitsForStandbyError().detail)]
    if not (ledger.confirmed or ledger.stands_by):
        detail = "The log is being read, or another process gives the partition up."
        return [WaitingView(dependency="partition", detail=detail)]
    return []


ROUTES = [get_health, get_readiness]
