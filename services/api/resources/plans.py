"""Plans: what the platform gives to keys, models and a price multiplier."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from domain.commands import UNSET, ChangePlan, Command, DefinePlan, UnsetType
from domain.decisions.access import find_plan
from domain.organizations import Plan
from domain.state import Books
from projections.directory import list_plans
from services.api.answering.plans import PlanView, plan_view
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body, ModelName, Name
from services.api.lists import Paging, Search, asked_of, listed
from services.api.operations import Reply, operation
from services.api.writing import Fencing, carry_out, expected_version
from services.ledger.fence_results import FenceResult

_TAG: Final = "Plans"
_READ: Final = ("plans:read",)
_WRITE: Final = ("plans:write",)

Models = Annotated[tuple[ModelName, ...], msgspec.Meta(max_length=1_000)] | Literal["*"]
Multiplier = Annotated[
    str,
    msgspec.Meta(max_length=20, description="A decimal with up to six places.", examples=["1.25"]),
]


class NewPlan(Body, frozen=True, kw_only=True):
    """A plan to be created."""

    name: Name
    """What people call the plan."""
    models: Models
    """The models that may be called, or `*` for all."""
    price_multiplier: Multiplier = "1"


class PlanChanges(Body, frozen=True, kw_only=True):
    """Fields to be set; those left out stay as they are."""

    name: Name | UnsetType = UNSET
    """What people call the plan."""
    models: Models | UnsetType = UNSET
    """The models that may be called, or `*` for all."""
    price_multiplier: Multiplier | UnsetType = UNSET


class ListPlans(Paging, frozen=True, kw_only=True):
    """Which plans, in which order."""

    q: Search | None = None
    """Searched for in names and ids."""
    sort: Literal["created_at", "-created_at", "name", "-name"] = "-created_at"
    """The order; a minus reverses it."""


class ChangedPlanView(PlanView, frozen=True, kw_only=True):
    """A plan after a change."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away."""


class PlanPageView(View, frozen=True, kw_only=True):
    """A page of plans."""

    items: list[PlanView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


async def _changed(call: Call[Any, Any], command: Command, *, status: int = 200) -> Reply:
    def show(plan: Plan, _: Books, __: int) -> View:
        return plan_view(plan, call.prefix)

    return await carry_out(call, command, show, status=status)


@operation(
    "POST",
    "/v1/plans",
    tag=_TAG,
    summary="Create a plan",
    permissions=_WRITE,
    body=NewPlan,
    status=201,
    shown_at="/v1/plans/{plan_id}",
    answer=PlanView,
    codes=("platform_only", "idempotency_conflict"),
    idempotent=True,
    example={"name": "pro", "models": ["gpt-5", "gpt-5-mini"], "price_multiplier": "1.25"},
)
async def create_plan(call: Call[Any, NewPlan]) -> Reply:
    """Create a plan."""
    body = call.body
    command = DefinePlan(name=body.name, models=body.models, price_multiplier=body.price_multiplier)
    return await _changed(call, command, status=201)


@operation(
    "GET",
    "/v1/plans",
    operation_id="listPlans",
    tag=_TAG,
    summary="List plans",
    permissions=_READ,
    query=ListPlans,
    answer=PlanPageView,
    projected=True,
)
async def get_plans(call: Call[ListPlans, Any]) -> Reply:
    """One page of plans."""
    filters = asked_of(call)
    page = list_plans(call.reader.queries, **filters)

    def show(plan_id: str) -> PlanView | None:
        plan = call.books.plans.find(plan_id)
        return None if plan is None else plan_view(plan, call.prefix)

    return await listed(call, page, show)


@operation(
    "GET",
    "/v1/plans/{plan_id}",
    tag=_TAG,
    summary="Show a plan",
    permissions=_READ,
    answer=PlanView,
    codes=("not_found",),
)
async def get_plan(call: Call[Any, Any]) -> Reply:
    """One plan, as of now."""
    plan = find_plan(call.desk, call.path["plan_id"])
    return Reply(plan_view(plan, call.prefix), version=plan.version)


@operation(
    "PATCH",
    "/v1/plans/{plan_id}",
    tag=_TAG,
    summary="Change a plan",
    description="Applies to all later charges; what was charged or held before keeps its price.",
    permissions=_WRITE,
    query=Fencing,
    body=PlanChanges,
    answer=ChangedPlanView,
    codes=("not_found", "platform_only", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"price_multiplier": "1.5"},
)
async def update_plan(call: Call[Fencing, PlanChanges]) -> Reply:
    """Set fields of a plan."""
    body = call.body
    command = ChangePlan(
        plan_id=call.path["plan_id"],
        expected_version=expected_version(call),
        name=body.name,
        models=body.models,
        price_multiplier=body.price_multiplier,
    )
    return await _changed(call, command)


ROUTES = [create_plan, get_plans, get_plan, update_plan]
