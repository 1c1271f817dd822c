"""Explanations as JSON: each rule with the figures that it used."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, UnsetType

from keyledger_language import Allowed, RateLimitAnswer, Tenant
from services.api.answering.views import Micros, Position, Time, VerdictCode, View

Outcome = Literal["passes", "refuses", "not_asked", "unknown"]


class AskedView(View, frozen=True, kw_only=True):
    """What the use names, as far as the rule considers it."""

    permissions: tuple[str, ...] | UnsetType = UNSET
    """The permissions that it needs."""
    project_id: str | UnsetType = UNSET
    """The project that it names."""
    model: str | UnsetType = UNSET
    """The model that it names."""
    provider: str | UnsetType = UNSET
    """The provider that it names."""
    tenant: Tenant | UnsetType = UNSET
    """The tenant that it names."""
    ip: str | UnsetType = UNSET
    """The address that it comes from."""


class AskedQuotaView(View, frozen=True, kw_only=True):
    """A quota, and what the use would take of it."""

    unit: Literal["micros", "requests"]
    """What is counted: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"]
    """The UTC calendar window in which it counts; `total` never resets."""
    limit: int
    """The most in one window."""
    spent: int
    """What was used in the present window, holds included."""
    remaining: int
    """What is left in the present window."""
    asked: int
    """What the use would take."""
    fits: bool
    """Whether the use fits into what is left."""
    resets_at: Time | None
    """When the next window begins; null for `total`."""


class FiguresView(View, frozen=True, kw_only=True):
    """The figures that a rule used; each rule has its own, all others are absent."""

    shape: str | UnsetType = UNSET
    """`malformed`: what secrets of the keyspace look like, for people."""
    length: int | UnsetType = UNSET
    """`malformed`: how long the given secret is."""
    reason: str | UnsetType = UNSET
    """`malformed`: what is wrong with it, for people."""
    revoked: bool | UnsetType = UNSET
    """`revoked`: whether the key is stopped for good."""
    expires_at: Time | UnsetType | None = UNSET
    """`expired`: from when on; null: never."""
    secret_ends_at: Time | UnsetType | None = UNSET
    """`rotated`: from when on this secret is replaced; null: it is the newest."""
    now: Time | UnsetType = UNSET
    """`expired`, `rotated`: the time that it was judged by."""
    disabled: bool | UnsetType = UNSET
    """`disabled`: whether the key is disabled."""
    organization_suspended: bool | UnsetType = UNSET
    """`organization_suspended`: whether the organization is suspended, so that none of its keys works."""
    allowed_ips: tuple[str, ...] | UnsetType = UNSET
    """`ip_denied`: networks that the key may be used from; empty: all."""
    kind: Literal["solo", "client", "platform"] | UnsetType = UNSET
    """`tenant_denied`: the key's kind, which determines whether a use must name a tenant."""
    scope: Allowed | UnsetType = UNSET
    """The key's scope in this dimension, or `*` for all."""
    required_dimensions: tuple[str, ...] | UnsetType = UNSET
    """The dimension, if the keyspace requires that every use names it."""
    open_projects: int | UnsetType = UNSET
    """`project_denied`: how many of the customer's projects are not archived."""
    plan_models: Allowed | UnsetType = UNSET
    """`model_denied`: the models that the plan allows, or `*` for all."""
    asked: AskedView | UnsetType = UNSET
    """What the use names, if it names anything."""
    rate_limits: list[RateLimitAnswer] | UnsetType = UNSET
    """`rate_limited`: what is left of each rate limit."""
    counted_by: str | UnsetType = UNSET
    """`rate_limited`: what counts against them, for people."""
    quotas: list[AskedQuotaView] | UnsetType = UNSET
    """Of a quota's rule: each quota of that level."""
    require_balance: bool | UnsetType = UNSET
    """`billing_shortfall`: whether a use without a cost is refused, too, at zero."""
    base_micros: Micros | UnsetType = UNSET
    """`billing_shortfall`: the price before the plan's multiplier, in micros."""
    price_multiplier: str | UnsetType = UNSET
    """`billing_shortfall`: the plan's multiplier, a decimal such as `1.25`."""
    amount_micros: Micros | UnsetType = UNSET
    """`billing_shortfall`: what it would cost, in micros."""
    balance_micros: Micros | UnsetType = UNSET
    """`billing_shortfall`: the wallet's balance, in micros."""
    reserved_micros: Micros | UnsetType = UNSET
    """`billing_shortfall`: what open reservations hold, in micros."""
    available_micros: Micros | UnsetType = UNSET
    """`billing_shortfall`: what can be spent now, in micros, before any credit."""
    credit_limit_micros: Micros | UnsetType | None = UNSET
    """`billing_shortfall`: how far below zero the wallet may go, in micros; null: without limit."""


NO_FIGURES = FiguresView()


class Rule(View, frozen=True, kw_only=True):
    """One rule, in the order in which they are decided."""

    code: VerdictCode
    """The verdict that it gives when it refuses."""
    outcome: Outcome
    """`not_asked`: the rule does not apply to this use; `unknown`: the key is not known."""
    figures: FiguresView = NO_FIGURES
    """The figures that it used."""


class ExplanationView(View, frozen=True, kw_only=True):
    """Why a use would be allowed or refused."""

    valid: bool
    """Whether the use would be granted."""
    code: VerdictCode
    """The code of the first rule that refuses, or `valid`."""
    status: int
    """What forward-auth would answer."""
    key_id: str | None
    """The key; null if the secret is not known."""
    organization_id: str | None
    """The key's customer; null if the key is not known or has none."""
    rules: list[Rule]
    """Every rule, in the order in which they are decided."""
    at: Time
    """The time that it was judged by."""
    position: Position
