"""Whether the process is alive and whether it can serve; if not, what it waits for."""

from __future__ import annotations

from typing import Any, Final, Literal

from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.operations import Api, Reply, operation
from services.ledger.errors import WaitsForStandbyError


class AliveView(View, frozen=True, kw_only=True):
    """The process runs."""

    status: Literal["alive"]
    """Always `alive`, since the process answers."""


class WaitingView(View, frozen=True, kw_only=True):
    """Something that is missing."""

    dependency: str
    """What is missing: `postgresql`, `nats` or `partition`."""
    detail: str
    """What that means, for people."""


class ReadyView(View, frozen=True, kw_only=True):
    """Whether it can serve."""

    ready: bool
    """Whether requests can be answered here, or forwarded."""
    owner: bool
    """Whether this process owns the partition; if not, it forwards requests to the owner."""
    position: Position
    projected: Position
    """How far the projections are, which lists and search read."""
    waits_for: list[WaitingView]
    """What is missing to answer requests."""
    does_without: list[WaitingView]
    """What is missing although requests are answered, and what that means."""


_WITHOUT_NATS: Final = WaitingView(
    dependency="nats",
    detail="NATS cannot be reached: edges ask the ledger, revocations wait for their leases to end, "
    "and events are published when it is back.",
)


@operation("GET", "/healthz", tag="Operating", summary="Show that the process is alive", answer=AliveView)
async def get_health(_: Call[Any, Any]) -> Reply:
    """The process runs."""
    return Reply(AliveView(status="alive"))


@operation(
    "GET",
    "/readyz",
    tag="Operating",
    summary="Show whether the process can serve",
    description=(
        "503 while it cannot, with what it waits for. Without NATS it can: `does_without` reports that, too."
    ),
    answer=ReadyView,
    other_answers=((503, ReadyView),),
)
async def get_readiness(call: Call[Any, Any]) -> Reply:
    """Whether requests can be answered here, or forwarded."""
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
        detail = "The log is being read, or another process is handing over the partition."
        return [WaitingView(dependency="partition", detail=detail)]
    return []


ROUTES = [get_health, get_readiness]
