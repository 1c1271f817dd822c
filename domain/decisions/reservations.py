"""Decisions about held money: capture, release, expiry."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from domain.accounts import Reservation, Wallet
from domain.claims import request_claim
from domain.commands import CaptureReservation, ReleaseReservation
from domain.decisions.access import caller_of
from domain.decisions.charging import VALID
from domain.decisions.thresholds import alerts_ahead, wallet_alert
from domain.desk import Desk
from domain.errors import (
    AmountOutOfRangeError,
    IdempotencyConflictError,
    InvalidError,
    NotFoundError,
    ReservationClosedError,
)
from domain.keys import Key
from domain.money import MAX_MICROS, price
from domain.quotas import (
    QuotaState,
    Refusal,
    first_refusal,
    levels_of,
    room,
    states_of,
    wallet_refusal,
)
from domain.windows import window_starts
from keyledger_language import Tenant, Use, judge
from keyledger_language import events as e
from keyledger_language.instants import DAY, Instant


class CaptureOutcome(msgspec.Struct, kw_only=True):
    """The outcome of a capture."""

    code: str = VALID
    key: Key
    reservation: Reservation
    event: e.ReservationCaptured | None = None
    position: int = 0
    replayed: bool = False
    refusal: Refusal | None = None
    quotas: tuple[QuotaState, ...] = ()
    wallet: Wallet | None = None


class ReleaseOutcome(msgspec.Struct, kw_only=True):
    """The outcome of a release."""

    reservation: Reservation
    released_micros: int
    position: int
    replayed: bool = False
    wallet: Wallet | None = None


def find_reservation(desk: Desk, reservation_id: str) -> Reservation:
    """The reservation, if the caller may know of it."""
    reservation = desk.draft.reservations.find(reservation_id)
    bound, keyspace = desk.asking.organization_id, desk.asking.keyspace_id
    if reservation is None or (bound is not None and bound != reservation.organization_id):
        raise NotFoundError("reservation", reservation_id)
    if keyspace is not None and _key_of(desk, reservation).keyspace_id != keyspace:
        raise NotFoundError("reservation", reservation_id)
    return reservation


def _key_of(desk: Desk, reservation: Reservation) -> Key:
    key = desk.draft.keys.find(reservation.key_id)
    assert key is not None, "keys are never removed"
    return key


def _wallet_of(desk: Desk, reservation: Reservation) -> Wallet:
    wallet = desk.draft.wallets.find(reservation.organization_id)
    assert wallet is not None, "an organization has a wallet from its first event on"
    return wallet


def capture_claim(desk: Desk, command: CaptureReservation) -> bytes | None:
    """The claim of a capture's request id."""
    try:
        reservation = find_reservation(desk, command.reservation_id)
    except NotFoundError:
        return None
    return request_claim(reservation.organization_id, command.request_id)


def capture(desk: Desk, command: CaptureReservation) -> CaptureOutcome:
    """Turn a reservation, or part of it, into a charge.

    The held amount is covered, whatever happened to the key. More is taken as far as limits allow;
    the rest is recorded as uncovered. After expiry nothing is held: the use is decided again.
    """
    caller_of(desk)
    if not 0 <= command.base_micros <= MAX_MICROS:
        raise InvalidError("amount_micros", "from 0 to 2^63 - 1")
    reservation = find_reservation(desk, command.reservation_id)
    if reservation.status in ("captured", "released"):
        msg = f"Reservation {reservation.id} is {reservation.status} already."
        raise ReservationClosedError(msg)
    amount = price(command.base_micros, reservation.price_multiplier)
    _check_range(command, reservation, amount)
    if _has_expired(desk, reservation):
        return _capture_late(desk, command, reservation, amount)
    held = min(amount, reservation.held_micros)
    beyond = _allowed_beyond(desk, reservation, amount - held)
    return _record(
        desk,
        command,
        reservation,
        amount=amount,
        held=held,
        beyond=beyond,
        window_at=reservation.reserved_at,
    )


def _has_expired(desk: Desk, reservation: Reservation) -> bool:
    """Whether it has expired. Expiries are recorded in bulk, so this one's event may still be missing."""
    return reservation.status == "expired" or reservation.expires_at <= desk.now


def _check_range(command: CaptureReservation, reservation: Reservation, amount: int) -> None:
    """The sum of many captures must stay within 64 bits, too."""
    asked = reservation.captured_base_micros + command.base_micros
    uncovered = reservation.uncovered_micros + amount
    if max(amount, asked, uncovered) > MAX_MICROS:
        raise AmountOutOfRangeError("amount_micros", "the reservation would leave the range of 64 bits")


def _allowed_beyond(desk: Desk, reservation: Reservation, asked: int) -> int:
    """How much more than the held amount the limits allow."""
    if asked == 0:
        return 0
    key = _key_of(desk, reservation)
    if _judged_again(desk, key, reservation) != VALID:
        return 0
    levels = levels_of(desk.draft, key, reservation.project_id)
    starts = window_starts(reservation.reserved_at // DAY)
    left = room(desk.draft, levels, starts)
    allowed = asked if left is None else min(asked, left)
    wallet = _wallet_of(desk, reservation)
    if wallet.credit_limit is not None:
        allowed = min(allowed, wallet.available + wallet.credit_limit)
    return max(0, min(allowed, wallet.headroom))


def _judged_again(desk: Desk, key: Key, reservation: Reservation) -> str:
    """The verdict on the same use now. Address and permission were checked when it was reserved."""
    facts = desk.facts_of(key, None)
    dimensions = tuple(one for one in facts.required_dimensions if one != "permission")
    facts = replace(facts, allowed_ips=(), required_dimensions=dimensions)
    return judge(facts, _use_of(reservation), desk.now)


def _use_of(reservation: Reservation) -> Use:
    tenant = None
    if reservation.tenant_org_id is not None or reservation.tenant_user_id is not None:
        tenant = Tenant(org_id=reservation.tenant_org_id, user_id=reservation.tenant_user_id)
    return Use(
        project_id=reservation.project_id,
        model=reservation.model,
        provider=reservation.provider,
        tenant=tenant,
    )


def _capture_late(
    desk: Desk, command: CaptureReservation, reservation: Reservation, amount: int
) -> CaptureOutcome:
    """Capture when nothing is held any more: all limits are checked as of now, and all or nothing is taken.

    The charge belongs to the current windows: those of the reservation were dropped when it expired.
    """
    held = reservation.held_micros if reservation.status == "open" else 0
    if amount > _wallet_of(desk, reservation).headroom + held:
        raise AmountOutOfRangeError("amount_micros", "the wallet would leave the range of 64 bits")
    if reservation.status == "open":
        expire_reservation(desk, reservation)
        reservation = find_reservation(desk, reservation.id)
    key = _key_of(desk, reservation)
    code = _judged_again(desk, key, reservation)
    if code != VALID:
        return CaptureOutcome(code=code, key=key, reservation=reservation)
    levels = levels_of(desk.draft, key, reservation.project_id)
    starts = window_starts(desk.now // DAY)
    # The use was counted as a request when it was reserved.
    refusal = first_refusal(desk.draft, levels, starts, micros=amount, requests=0) or wallet_refusal(
        desk.draft, reservation.organization_id, amount
    )
    if refusal is not None:
        return CaptureOutcome(code=refusal.code, key=key, reservation=reservation, refusal=refusal)
    return _record(desk, command, reservation, amount=amount, held=0, beyond=amount, window_at=desk.now)


def _record(
    desk: Desk,
    command: CaptureReservation,
    reservation: Reservation,
    *,
    amount: int,
    held: int,
    beyond: int,
    window_at: Instant,
) -> CaptureOutcome:
    wallet = _wallet_of(desk, reservation)
    taken = held + beyond
    let_go = reservation.held_micros - held if command.final else 0
    event = e.ReservationCaptured(
        at=desk.now,
        actor=desk.asking.actor,
        organization_id=reservation.organization_id,
        balance_micros=wallet.balance - taken,
        reserved_micros=wallet.reserved - held - let_go,
        key_id=reservation.key_id,
        reservation_id=reservation.id,
        charge_id=desk.placed_id("chg"),
        request_id=command.request_id,
        base_micros=command.base_micros,
        price_multiplier=reservation.price_multiplier,
        amount_micros=taken,
        held_micros=held,
        uncovered_micros=amount - taken,
        released_micros=let_go,
        final=command.final,
        window_at=window_at,
        project_id=reservation.project_id,
        model=reservation.model,
        provider=reservation.provider,
        tenant_org_id=reservation.tenant_org_id,
        tenant_user_id=reservation.tenant_user_id,
    )
    levels = levels_of(desk.draft, _key_of(desk, reservation), reservation.project_id)
    ahead = alerts_ahead(
        desk, reservation.organization_id, levels, window_at, micros=beyond - let_go, requests=0
    )
    position = desk.record(event)
    desk.claim(request_claim(reservation.organization_id, command.request_id))
    for alert in ahead:
        desk.record(alert)
    wallet_alert(desk, reservation.organization_id)
    return _captured(desk, reservation.id, event, position)


def _captured(
    desk: Desk,
    reservation_id: str,
    event: e.ReservationCaptured,
    position: int,
    *,
    replayed: bool = False,
) -> CaptureOutcome:
    reservation = desk.draft.reservations.find(reservation_id)
    assert reservation is not None, "it was found before"
    key = _key_of(desk, reservation)
    levels = levels_of(desk.draft, key, reservation.project_id)
    return CaptureOutcome(
        key=key,
        reservation=reservation,
        event=event,
        position=position,
        replayed=replayed,
        quotas=states_of(desk.draft, levels, desk.now),
        wallet=_wallet_of(desk, reservation).copy(),
    )


def replay_capture(desk: Desk, command: CaptureReservation, event: e.Event, position: int) -> CaptureOutcome:
    """The first outcome of this request id, if its request was the same."""
    caller_of(desk)
    same = (
        isinstance(event, e.ReservationCaptured)
        and event.reservation_id == command.reservation_id
        and event.base_micros == command.base_micros
        and event.final == command.final
    )
    if not same or not isinstance(event, e.ReservationCaptured):
        msg = f"request_id {command.request_id} was used before, for something else."
        raise IdempotencyConflictError(msg, field="request_id")
    return _captured(desk, command.reservation_id, event, position, replayed=True)


def release(desk: Desk, command: ReleaseReservation) -> ReleaseOutcome:
    """Release what is still held; for a released reservation the answer is repeated."""
    caller_of(desk)
    reservation = find_reservation(desk, command.reservation_id)
    if reservation.status == "captured":
        msg = f"Reservation {reservation.id} is captured already."
        raise ReservationClosedError(msg)
    if reservation.status == "open" and _has_expired(desk, reservation):
        expire_reservation(desk, reservation)
        reservation = find_reservation(desk, reservation.id)
    if reservation.status in ("released", "expired"):
        return _released(desk, reservation, 0, reservation.position, replayed=True)
    position = desk.record(_let_go(desk, reservation, e.ReservationReleased, command.request_id))
    return _released(desk, reservation, reservation.held_micros, position, replayed=False)


def _released(
    desk: Desk, reservation: Reservation, amount: int, position: int, *, replayed: bool
) -> ReleaseOutcome:
    return ReleaseOutcome(
        reservation=desk.draft.reservations.find(reservation.id) or reservation,
        released_micros=amount,
        position=position,
        replayed=replayed,
        wallet=_wallet_of(desk, reservation).copy(),
    )


def expire_reservation(desk: Desk, reservation: Reservation) -> None:
    """Record that the reservation has expired: what is still held is released."""
    desk.record(_let_go(desk, reservation, e.ReservationExpired, None))


def _let_go(
    desk: Desk,
    reservation: Reservation,
    event_type: type[e.ReservationReleased],
    request_id: str | None,
) -> e.ReservationReleased:
    wallet = _wallet_of(desk, reservation)
    return event_type(
        at=desk.now,
        actor=desk.asking.actor,
        organization_id=reservation.organization_id,
        balance_micros=wallet.balance,
        reserved_micros=wallet.reserved - reservation.held_micros,
        key_id=reservation.key_id,
        reservation_id=reservation.id,
        released_micros=reservation.held_micros,
        request_id=request_id,
    )
