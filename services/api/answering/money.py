"""Money as JSON: charges, refunds, reservations, wallets. Each has one struct, used everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from domain.accounts import Reservation, Wallet
from domain.ids import format_position
from keyledger_language import RateLimitAnswer, RateState
from keyledger_language.events import CreditsReserved, ReservationCaptured, UsageCharged, UsageRefunded
from services.api.answering.quotas import QuotaView
from services.api.answering.times import to_text
from services.api.answering.views import Micros, Position, Time, View


class TenantView(View, frozen=True, gc=False):
    """Whose work it was, inside the customer's own product."""

    org_id: str | None
    """The customer's own customer; null if it was not given."""
    user_id: str | None
    """The user; null if it was not given."""


class ChargeView(View, frozen=True, gc=False):
    """One metered use that costs money, final."""

    id: str
    """The charge's id."""
    key_id: str
    """The key that was charged."""
    organization_id: str | None
    """The customer that pays; null for a key without one."""
    request_id: str
    """Your own id of the use: it counts once, for ever, within the organization."""
    base_micros: Micros
    """The price before the plan's multiplier, in micros."""
    price_multiplier: str
    """The plan's multiplier that was applied, a decimal such as `1.25`."""
    amount_micros: Micros
    """What it cost, in micros: base times multiplier, rounded half up."""
    model: str | None
    """The model that was named; null if none was."""
    provider: str | None
    """The provider that was named; null if none was."""
    project_id: str | None
    """The project that was named; null if none was."""
    tenant: TenantView | None
    """Whose work it was, inside the customer's own product; null if it was not given."""
    charged_at: Time
    """When it was charged."""
    position: Position | UnsetType = UNSET
    """Its place in the log; absent in the answer to a refund, where it is not known."""
    metadata: dict[str, Any] | UnsetType = UNSET
    """Your own JSON, as it was given; absent if none was."""
    reservation_id: str | UnsetType = UNSET
    """Of a capture: its reservation."""
    uncovered_micros: Micros | UnsetType = UNSET
    """Of a capture: what limits did not allow, in micros."""
    refunded_micros: Micros | UnsetType = UNSET
    """All that was given back of it so far, in micros."""


class RefundView(View, frozen=True, gc=False):
    """A compensating entry for a charge, or part of it."""

    charge_id: str
    """The charge that was refunded."""
    key_id: str
    """The key that had been charged."""
    organization_id: str | None
    """The customer that gets the refund; null for a key without one."""
    request_id: str
    """Your own id of the refund."""
    amount_micros: Micros
    """The amount of this refund, in micros."""
    refunded_micros: Micros
    """All refunds of that charge together, this one included, in micros."""
    refunded_at: Time
    """When it was refunded."""
    position: Position


class ReservationView(View, frozen=True, gc=False):
    """Money held for a use whose price is not known yet."""

    id: str
    """The reservation's id."""
    key_id: str
    """The key that money is held for."""
    organization_id: str | None
    """The customer whose money is held; null for a key without one."""
    request_id: str
    """Your own id of the use: it counts once, for ever, within the organization."""
    status: Literal["open", "captured", "released", "expired"]
    """`open`: it still holds money; the others are final."""
    base_micros: Micros
    """The price before the plan's multiplier, in micros."""
    price_multiplier: str
    """The plan's multiplier that was applied, a decimal such as `1.25`."""
    amount_micros: Micros
    """What was held initially, in micros: base times multiplier, rounded half up."""
    held_micros: Micros
    """What it still holds, in micros."""
    captured_micros: Micros
    """What captures have taken of it so far, in micros."""
    uncovered_micros: Micros
    """What was captured in excess of it and limits did not allow, in micros; recorded, not charged."""
    model: str | None
    """The model that was named; null if none was."""
    provider: str | None
    """The provider that was named; null if none was."""
    project_id: str | None
    """The project that was named; null if none was."""
    tenant: TenantView | None
    """Whose work it was, inside the customer's own product; null if it was not given."""
    reserved_at: Time
    """When it was created."""
    expires_at: Time
    """When it gives back what it still holds, unless it is closed before."""
    position: Position
    metadata: dict[str, Any] | UnsetType = UNSET
    """Your own JSON, as it was given; absent if none was, and when the reservation is read later."""


class WalletView(View, frozen=True, gc=False):
    """An organization's prepaid balance, shared by all its keys."""

    organization_id: str
    """The customer whose wallet it is."""
    currency: str
    """A currency, or the name of a credit unit."""
    balance_micros: Micros
    """What was paid in and not spent, in micros; held money is part of it."""
    reserved_micros: Micros
    """What open reservations hold, in micros."""
    available_micros: Micros
    """What can be spent now, in micros, before any credit: the balance less what is held."""
    credit_limit_micros: Micros | None
    """How far below zero it may go, in micros; 0: prepaid; null: postpaid without limit."""
    alert_below_micros: Micros | None
    """An event reports when less than this is available, in micros; null: never."""
    position: Position | UnsetType = UNSET
    """The position as of which it was read; absent in answers to charges, refunds and reservations, which
    have their own."""


class MeteredView(View, frozen=True, kw_only=True, gc=False):
    """What every answer about money has."""

    replayed: bool
    """Whether this request id was carried out before; if so, it counted then and not again."""
    quotas: list[QuotaView]
    """All quotas that it was checked against, right after it."""
    wallet: WalletView | None
    """The organization's wallet right after it; null for a key without an organization."""
    position: Position


class ChargedView(MeteredView, frozen=True, kw_only=True, gc=False):
    """The outcome of a charge."""

    charge: ChargeView
    """The charge."""


class RefundedView(MeteredView, frozen=True, kw_only=True):
    """The outcome of a refund."""

    refund: RefundView
    """The refund."""
    charge: ChargeView
    """The charge, with the sum of its refunds."""


class ReservedView(MeteredView, frozen=True, kw_only=True):
    """The outcome of a reservation."""

    reservation: ReservationView
    """The reservation after this."""


class CapturedView(MeteredView, frozen=True, kw_only=True):
    """The outcome of a capture."""

    charge: ChargeView
    """The charge that the capture created."""
    reservation: ReservationView
    """The reservation after this."""
    uncovered_micros: Micros
    """What was captured in excess of it and limits did not allow, in micros; recorded, not charged."""


class ReleasedView(MeteredView, frozen=True, kw_only=True):
    """The outcome of a release."""

    reservation: ReservationView
    """The reservation after this."""
    released_micros: Micros
    """What was given back, in micros."""


class HeldView(View, frozen=True, kw_only=True):
    """A reservation's present state."""

    reservation: ReservationView
    """The reservation's present state."""
    position: Position


def tenant_view(org_id: str | None, user_id: str | None) -> TenantView | None:
    """Whose work it was; None if the use named no tenant."""
    return None if org_id is None and user_id is None else TenantView(org_id, user_id)


def charge_view(event: UsageCharged | ReservationCaptured, position: str | UnsetType) -> ChargeView:
    """A charge, as it was recorded at this position."""
    view = ChargeView(
        event.charge_id,
        event.key_id,
        event.organization_id,
        event.request_id,
        event.base_micros,
        event.price_multiplier,
        event.amount_micros,
        event.model,
        event.provider,
        event.project_id,
        tenant_view(event.tenant_org_id, event.tenant_user_id),
        to_text(event.at),
        position,
        _metadata_of(event),
    )
    if isinstance(event, UsageCharged):
        return view
    return msgspec.structs.replace(
        view, reservation_id=event.reservation_id, uncovered_micros=event.uncovered_micros
    )


def _metadata_of(event: UsageCharged | ReservationCaptured | CreditsReserved) -> dict[str, Any] | UnsetType:
    if isinstance(event, ReservationCaptured) or event.private is None or not event.private.metadata:
        return UNSET
    return event.private.metadata


def refunded_charge_view(charge: UsageCharged | ReservationCaptured, refunded_micros: int) -> ChargeView:
    """A charge that was refunded in part or whole; its position in the log is not known here."""
    return msgspec.structs.replace(charge_view(charge, UNSET), refunded_micros=refunded_micros)


def refund_view(event: UsageRefunded, position: int, prefix: str) -> RefundView:
    """A refund, as it was recorded."""
    return RefundView(
        event.charge_id,
        event.key_id,
        event.organization_id,
        event.request_id,
        event.amount_micros,
        event.refunded_micros,
        to_text(event.at),
        format_position(prefix, position),
    )


def reserved_view(event: CreditsReserved, position: int, prefix: str) -> ReservationView:
    """A reservation, right after it was created."""
    return ReservationView(
        event.reservation_id,
        event.key_id,
        event.organization_id,
        event.request_id,
        "open",
        event.base_micros,
        event.price_multiplier,
        event.amount_micros,
        event.amount_micros,
        0,
        0,
        event.model,
        event.provider,
        event.project_id,
        tenant_view(event.tenant_org_id, event.tenant_user_id),
        to_text(event.at),
        to_text(event.expires_at),
        format_position(prefix, position),
        _metadata_of(event),
    )


def reservation_view(reservation: Reservation, prefix: str) -> ReservationView:
    """A reservation's present state."""
    return ReservationView(
        reservation.id,
        reservation.key_id,
        reservation.organization_id,
        reservation.request_id,
        reservation.status,
        reservation.base_micros,
        reservation.price_multiplier,
        reservation.amount_micros,
        reservation.held_micros,
        reservation.captured_micros,
        reservation.uncovered_micros,
        reservation.model,
        reservation.provider,
        reservation.project_id,
        tenant_view(reservation.tenant_org_id, reservation.tenant_user_id),
        to_text(reservation.reserved_at),
        to_text(reservation.expires_at),
        format_position(prefix, reservation.position),
    )


def wallet_view(wallet: Wallet, position: Position | UnsetType = UNSET) -> WalletView:
    """A wallet, as of the position that it was read at."""
    return WalletView(
        wallet.organization_id,
        wallet.currency,
        wallet.balance,
        wallet.reserved,
        wallet.balance - wallet.reserved,
        wallet.credit_limit,
        wallet.alert_below,
        position,
    )


def wallet_figures(wallet: Wallet | None) -> WalletView | None:
    """An organization's wallet, right after the command."""
    return None if wallet is None else wallet_view(wallet)


def rate_views(states: Iterable[RateState]) -> list[RateLimitAnswer]:
    """What is left of each rate limit."""
    return [RateLimitAnswer(**one._asdict()) for one in states]
