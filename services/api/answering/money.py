"""Money as JSON: charges, reservations, wallets, quotas, refusals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from domain.accounts import Reservation, Wallet
from domain.events import CreditsReserved, ReservationCaptured, UsageCharged, UsageRefunded
from domain.ids import format_position
from domain.instants import SECOND, Instant
from domain.instants import to_text as _to_text
from domain.quotas import QuotaState, Refusal
from keyledger_edge import RateState


@lru_cache(maxsize=64)
def _second(second: int) -> str:
    return _to_text(second * SECOND)[:20]


def to_text(at: Instant) -> str:
    """RFC 3339 as elsewhere; most times of one answer share their second, so that is written once."""
    second, micros = divmod(at, SECOND)
    return f"{_second(second)}{micros:06d}Z"


def tenant_view(org_id: str | None, user_id: str | None) -> dict[str, str | None] | None:
    """Whose work it was; None when the use named nobody."""
    return None if org_id is None and user_id is None else {"org_id": org_id, "user_id": user_id}


class ChargeView(msgspec.Struct, gc=False):
    """A charge, as it was recorded. A struct, for it is made more often than any other view."""

    id: str
    key_id: str
    organization_id: str | None
    request_id: str
    base_micros: int
    price_multiplier: str
    amount_micros: int
    model: str | None
    provider: str | None
    project_id: str | None
    tenant: dict[str, str | None] | None
    charged_at: str
    position: str
    metadata: dict[str, Any] | UnsetType = UNSET


def view_of_charge(event: UsageCharged | ReservationCaptured, position: int, prefix: str) -> ChargeView:
    """A charge, as it was recorded."""
    return ChargeView(
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
        format_position(prefix, position),
        _metadata_of(event),
    )


def _metadata_of(event: UsageCharged | ReservationCaptured) -> dict[str, Any] | UnsetType:
    if isinstance(event, ReservationCaptured) or event.private is None or not event.private.metadata:
        return UNSET
    return event.private.metadata


def charge_view(event: UsageCharged | ReservationCaptured, position: int, prefix: str) -> dict[str, Any]:
    """The same, for whoever has more to say of it."""
    view: dict[str, Any] = msgspec.to_builtins(view_of_charge(event, position, prefix))
    if isinstance(event, ReservationCaptured):
        view["reservation_id"] = event.reservation_id
        view["uncovered_micros"] = event.uncovered_micros
    return view


def refund_view(event: UsageRefunded, position: int, prefix: str) -> dict[str, Any]:
    """A refund, as it was recorded."""
    return {
        "charge_id": event.charge_id,
        "key_id": event.key_id,
        "organization_id": event.organization_id,
        "request_id": event.request_id,
        "amount_micros": event.amount_micros,
        "refunded_micros": event.refunded_micros,
        "refunded_at": to_text(event.at),
        "position": format_position(prefix, position),
    }


def reserved_view(event: CreditsReserved, position: int, prefix: str) -> dict[str, Any]:
    """A reservation, right when it was made."""
    view: dict[str, Any] = {
        "id": event.reservation_id,
        "key_id": event.key_id,
        "organization_id": event.organization_id,
        "request_id": event.request_id,
        "status": "open",
        "base_micros": event.base_micros,
        "price_multiplier": event.price_multiplier,
        "amount_micros": event.amount_micros,
        "held_micros": event.amount_micros,
        "captured_micros": 0,
        "uncovered_micros": 0,
        "model": event.model,
        "provider": event.provider,
        "project_id": event.project_id,
        "tenant": tenant_view(event.tenant_org_id, event.tenant_user_id),
        "reserved_at": to_text(event.at),
        "expires_at": to_text(event.expires_at),
        "position": format_position(prefix, position),
    }
    if event.private is not None and event.private.metadata:
        view["metadata"] = event.private.metadata
    return view


def reservation_view(reservation: Reservation, prefix: str) -> dict[str, Any]:
    """A reservation as it stands."""
    return {
        "id": reservation.id,
        "key_id": reservation.key_id,
        "organization_id": reservation.organization_id,
        "request_id": reservation.request_id,
        "status": reservation.status,
        "base_micros": reservation.base_micros,
        "price_multiplier": reservation.price_multiplier,
        "amount_micros": reservation.amount_micros,
        "held_micros": reservation.held_micros,
        "captured_micros": reservation.captured_micros,
        "uncovered_micros": reservation.uncovered_micros,
        "model": reservation.model,
        "provider": reservation.provider,
        "project_id": reservation.project_id,
        "tenant": tenant_view(reservation.tenant_org_id, reservation.tenant_user_id),
        "reserved_at": to_text(reservation.reserved_at),
        "expires_at": to_text(reservation.expires_at),
        "position": format_position(prefix, reservation.position),
    }


class WalletFigures(msgspec.Struct, gc=False):
    """An organization's wallet, beside what was done with it."""

    organization_id: str
    currency: str
    balance_micros: int
    reserved_micros: int
    available_micros: int
    credit_limit_micros: int | None
    alert_below_micros: int | None


def wallet_view(wallet: Wallet | None) -> WalletFigures | None:
    """An organization's wallet."""
    if wallet is None:
        return None
    return WalletFigures(
        wallet.organization_id,
        wallet.currency,
        wallet.balance,
        wallet.reserved,
        wallet.balance - wallet.reserved,
        wallet.credit_limit,
        wallet.alert_below,
    )


class ChargeAnswer(msgspec.Struct, gc=False):
    """What a charge is answered with."""

    charge: ChargeView
    position: str
    replayed: bool
    quotas: list[dict[str, Any]]
    wallet: WalletFigures | None


def quota_views(states: Sequence[QuotaState]) -> list[dict[str, Any]]:
    """Every quota that a use was checked against, and what is left of it."""
    return [
        {
            "level": one.level,
            "subject_id": one.subject_id,
            "unit": one.unit,
            "window": one.window,
            "limit": one.limit,
            "alert_percents": one.alert_percents,
            "spent": one.spent,
            "remaining": one.remaining,
            "resets_at": None if one.resets_at is None else to_text(one.resets_at),
        }
        for one in states
    ]


def refusal_view(refusal: Refusal | None) -> dict[str, Any] | None:
    """Which limit said no, how much is left of it, when it begins anew."""
    if refusal is None:
        return None
    return {
        "level": refusal.level,
        "unit": refusal.unit,
        "window": refusal.window,
        "limit": refusal.limit,
        "remaining": refusal.remaining,
        "resets_at": None if refusal.resets_at is None else to_text(refusal.resets_at),
    }


def rate_views(states: Iterable[RateState]) -> list[dict[str, Any]]:
    """Where each rate limit stands."""
    return [one._asdict() for one in states]
