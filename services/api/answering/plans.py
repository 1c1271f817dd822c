"""Plans as JSON."""

from __future__ import annotations

from domain.ids import format_position
from domain.organizations import Plan
from keyledger_language import Allowed
from services.api.answering.times import to_text
from services.api.answering.views import Position, Time, View


class PlanView(View, frozen=True, kw_only=True):
    """What the platform gives to a key: models and a price multiplier."""

    id: str
    """The plan's id."""
    name: str
    """What people call the plan."""
    models: Allowed
    """The models that may be called, or `*` for all."""
    price_multiplier: str
    """What base prices are multiplied by, a decimal such as `1.25`."""
    created_at: Time
    """When it was created."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


def plan_view(plan: Plan, prefix: str) -> PlanView:
    """A plan."""
    return PlanView(
        id=plan.id,
        name=plan.name,
        models=plan.models,
        price_multiplier=plan.price_multiplier,
        created_at=to_text(plan.created_at),
        version=plan.version,
        position=format_position(prefix, plan.position),
    )
