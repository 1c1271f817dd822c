"""Verdicts as JSON, and what becomes of the items of a batch."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from keyledger_language import RateLimitAnswer, Scopes
from services.api.answering.money import ChargedView, ChargeView, ReservationView
from services.api.answering.problems import Problem
from services.api.answering.quotas import QuotaView, RefusalView
from services.api.answering.views import Micros, Position, Time, VerdictCode, View

ONE_OF: Final = "one_of"
"""Marks what is one of several views, and names them."""


class VerdictView(View, frozen=True, kw_only=True):
    """Whether a secret is good for a use, and if not, why not.

    Every verdict on a secret that exists tells of its key; what the key does not have is absent.
    """

    valid: bool
    """May the use go ahead?"""
    code: VerdictCode
    """`valid`, or the first reason why not."""
    key_id: str | UnsetType = UNSET
    """The key; absent where the secret is not known."""
    organization_id: str | UnsetType = UNSET
    """The key's customer."""
    name: str | UnsetType = UNSET
    """What people call the key."""
    kind: Literal["solo", "client", "platform"] | UnsetType = UNSET
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    owner_id: str | UnsetType = UNSET
    """Your own id of whoever owns the key."""
    environment: str | UnsetType = UNSET
    """Such as `production`."""
    plan_id: str | UnsetType = UNSET
    """The plan that the platform gave to the key."""
    scopes: Scopes | UnsetType = UNSET
    """What the key may be used for."""
    metadata: dict[str, Any] | UnsetType = UNSET
    """Yours, as it was given."""
    expires_at: Time | UnsetType = UNSET
    """From then on the key is `expired`."""
    quotas: list[QuotaView] | UnsetType = UNSET
    """Every quota that the use was checked against; absent where there is none."""
    wallet_available_micros: Micros | UnsetType = UNSET
    """What the customer's wallet has left, in micros; absent for a key without an organization."""
    rate_limits: list[RateLimitAnswer] | UnsetType = UNSET
    """Where each rate limit stands; absent where there is none."""
    charge: ChargeView | UnsetType = UNSET
    """With `cost_micros`, where it was granted: the charge."""
    reservation: ReservationView | UnsetType = UNSET
    """With `reserve_micros`, where it was granted: the reservation."""
    replayed: bool | UnsetType = UNSET
    """Where money moved: was this request id carried out before? It counted then."""
    refusal: RefusalView | UnsetType = UNSET
    """Where a quota or the wallet said no: which limit, and what is left of it."""
    position: Position


class ChargeResult(ChargedView, frozen=True, kw_only=True):
    """What became of an item that was charged."""

    status: Literal[201]
    """As if it had been sent alone."""


def _one_of(*kinds: type[View | Problem]) -> msgspec.Meta:
    return msgspec.Meta(extra={ONE_OF: kinds}, extra_json_schema={ONE_OF: [kind.__name__ for kind in kinds]})


class VerdictsView(View, frozen=True, kw_only=True):
    """Verdicts in the order of the questions."""

    results: list[Annotated[dict[str, Any], _one_of(VerdictView, Problem)]]
    """A verdict for each question; a problem for one that cannot be taken as it is."""
    position: Position


class ChargesView(View, frozen=True, kw_only=True):
    """What became of charges, in their order."""

    results: list[Annotated[dict[str, Any], _one_of(ChargeResult, Problem)]]
    """For each item its answer as if it had been sent alone: `status` tells a charge from a problem."""
    position: Position
