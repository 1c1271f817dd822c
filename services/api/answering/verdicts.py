"""Verdicts as JSON, and the outcomes of a batch's items."""

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
"""Marks a type that is one of several views, and names them."""


class VerdictView(View, frozen=True, kw_only=True):
    """Whether a secret is valid for a use, and if not, why not.

    Every verdict on a known secret describes its key; what the key does not have is absent.
    """

    valid: bool
    """Whether the use may go ahead."""
    code: VerdictCode
    """`valid`, or the first reason why not."""
    key_id: str | UnsetType = UNSET
    """The key; absent if the secret is not known."""
    organization_id: str | UnsetType = UNSET
    """The key's customer."""
    name: str | UnsetType = UNSET
    """What people call the key."""
    kind: Literal["solo", "client", "platform"] | UnsetType = UNSET
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    owner_id: str | UnsetType = UNSET
    """Your own id of the key's owner."""
    environment: str | UnsetType = UNSET
    """Such as `production`."""
    plan_id: str | UnsetType = UNSET
    """The plan that the platform gave to the key."""
    scopes: Scopes | UnsetType = UNSET
    """What the key may be used for."""
    metadata: dict[str, Any] | UnsetType = UNSET
    """Your own JSON, as it was given."""
    expires_at: Time | UnsetType = UNSET
    """From when on the key is `expired`."""
    quotas: list[QuotaView] | UnsetType = UNSET
    """All quotas that the use was checked against; absent if there are none."""
    wallet_available_micros: Micros | UnsetType = UNSET
    """What the customer's wallet has left, in micros; absent for a key without an organization."""
    rate_limits: list[RateLimitAnswer] | UnsetType = UNSET
    """What is left of each rate limit; absent if there is none."""
    charge: ChargeView | UnsetType = UNSET
    """With `cost_micros`, if it was granted: the charge."""
    reservation: ReservationView | UnsetType = UNSET
    """With `reserve_micros`, if it was granted: the reservation."""
    replayed: bool | UnsetType = UNSET
    """If money moved: whether this request id was carried out before; if so, it counted only then."""
    refusal: RefusalView | UnsetType = UNSET
    """If a quota or the wallet refused it: which limit, and what is left of it."""
    position: Position


class ChargeResult(ChargedView, frozen=True, kw_only=True):
    """The outcome of an item that was charged."""

    status: Literal[201]
    """The status as if it had been sent alone."""


def _one_of(*kinds: type[View | Problem]) -> msgspec.Meta:
    return msgspec.Meta(extra={ONE_OF: kinds}, extra_json_schema={ONE_OF: [kind.__name__ for kind in kinds]})


class VerdictsView(View, frozen=True, kw_only=True):
    """Verdicts in the order of the items."""

    results: list[Annotated[dict[str, Any], _one_of(VerdictView, Problem)]]
    """A verdict for each item; a problem for an invalid one."""
    position: Position


class ChargesView(View, frozen=True, kw_only=True):
    """The outcomes of charges, in the order of the items."""

    results: list[Annotated[dict[str, Any], _one_of(ChargeResult, Problem)]]
    """Each item's answer as if it had been sent alone; `status` tells a charge from a problem."""
    position: Position
