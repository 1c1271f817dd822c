"""Decisions about wallets: top-ups, terms, refunds."""

from __future__ import annotations

import msgspec

from domain.accounts import Wallet
from domain.claims import reference_claim, request_claim
from domain.commands import UNSET, DepositCredits, RefundCharge, SetWalletTerms
from domain.decisions.access import caller_of, find_organization, platform_only, require
from domain.decisions.thresholds import wallet_alert
from domain.desk import Desk
from domain.errors import (
    AmountOutOfRangeError,
    IdempotencyConflictError,
    InvalidError,
    NotFoundError,
    RefundExceedsChargeError,
)
from domain.money import MAX_MICROS
from keyledger_language import events as e

Deposit = e.CreditsDeposited | e.CreditsAdjusted
Chargelike = e.UsageCharged | e.ReservationCaptured


class DepositOutcome(msgspec.Struct, kw_only=True):
    """The outcome of a top-up."""

    event: Deposit
    position: int
    replayed: bool = False
    wallet: Wallet


class RefundOutcome(msgspec.Struct, kw_only=True):
    """The outcome of a refund."""

    event: e.UsageRefunded
    charge: Chargelike
    position: int
    replayed: bool = False
    wallet: Wallet


def wallet_of(desk: Desk, organization_id: str) -> Wallet:
    """The organization's wallet, if the caller may know of it."""
    find_organization(desk, organization_id)
    wallet = desk.draft.wallets.find(organization_id)
    assert wallet is not None, "an organization has a wallet from its first event on"
    return wallet


def deposit_claim(_desk: Desk, command: DepositCredits) -> bytes | None:
    """The claim of a top-up's reference."""
    return reference_claim(command.organization_id, command.reference)


def deposit(desk: Desk, command: DepositCredits) -> DepositOutcome:
    """Top up a wallet, or adjust it (a negative amount)."""
    require(desk, "wallets:write")
    platform_only(desk, "Minting credit")
    wallet = wallet_of(desk, command.organization_id)
    amount = command.amount_micros
    if amount == 0 or not -MAX_MICROS <= amount <= MAX_MICROS:
        raise InvalidError("amount_micros", "from -(2^63 - 1) to 2^63 - 1, and not 0")
    if not wallet.takes(amount):
        raise AmountOutOfRangeError("amount_micros", "the wallet would leave the range of 64 bits")
    event_type = e.CreditsDeposited if amount > 0 else e.CreditsAdjusted
    event = event_type(
        at=desk.now,
        actor=desk.asking.actor,
        organization_id=command.organization_id,
        private=desk.private(reason=command.reason),
        balance_micros=wallet.balance + amount,
        reserved_micros=wallet.reserved,
        amount_micros=amount,
        reference=command.reference,
    )
    position = desk.record(event)
    desk.claim(reference_claim(command.organization_id, command.reference))
    wallet_alert(desk, command.organization_id)
    return DepositOutcome(
        event=event,
        position=position,
        wallet=wallet_of(desk, command.organization_id).copy(),
    )


def replay_deposit(desk: Desk, command: DepositCredits, event: e.Event, position: int) -> DepositOutcome:
    """The first outcome of this reference, if its request was the same."""
    require(desk, "wallets:write")
    platform_only(desk, "Minting credit")
    wallet = wallet_of(desk, command.organization_id)
    if not isinstance(event, Deposit) or event.amount_micros != command.amount_micros:
        msg = f"reference {command.reference} was used before, for something else."
        raise IdempotencyConflictError(msg, field="reference")
    return DepositOutcome(event=event, position=position, replayed=True, wallet=wallet.copy())


def set_terms(desk: Desk, command: SetWalletTerms) -> Wallet:
    """Set credit limit and alert line; only the platform may."""
    require(desk, "wallets:write")
    platform_only(desk, "Setting a wallet's terms")
    wallet = wallet_of(desk, command.organization_id)
    terms = {"credit_limit_micros": wallet.credit_limit, "alert_below_micros": wallet.alert_below}
    after = {
        name: value if (given := getattr(command, name)) is UNSET else given for name, value in terms.items()
    }
    for name, value in after.items():
        if value is not None and not 0 <= value <= MAX_MICROS:
            raise InvalidError(name, "from 0 to 2^63 - 1, or null")
    if after != terms:
        desk.record(
            e.WalletTermsSet(
                at=desk.now,
                actor=desk.asking.actor,
                organization_id=command.organization_id,
                private=desk.private(),
                credit_limit_micros=after["credit_limit_micros"],
                alert_below_micros=after["alert_below_micros"],
                before=terms,
            )
        )
        wallet_alert(desk, command.organization_id)
    return wallet_of(desk, command.organization_id).copy()


def refund_claim(_desk: Desk, command: RefundCharge, charge: e.Event | None) -> bytes | None:
    """The claim of a refund's request id."""
    if charge is None:
        return None
    return request_claim(charge.organization_id or "", command.request_id)


def refund(desk: Desk, command: RefundCharge, charge: e.Event | None) -> RefundOutcome:
    """Give back a charge, in part or whole; never more than was taken."""
    caller_of(desk)
    taken = _charge(desk, command, charge)
    so_far = desk.draft.refunds.find(taken.charge_id) or 0
    left = taken.amount_micros - so_far
    amount = left if command.amount_micros is None else command.amount_micros
    if amount < 1 and left > 0:
        raise InvalidError("amount_micros", "at least 1")
    if amount > left or left == 0:
        msg = f"Charge {taken.charge_id} took {taken.amount_micros} micros; {left} can still be refunded."
        raise RefundExceedsChargeError(msg, field="amount_micros")
    event = _refunded(desk, command, taken, amount=amount, total=so_far + amount)
    position = desk.record(event)
    desk.claim(request_claim(taken.organization_id or "", command.request_id))
    return _outcome(desk, taken, event, position, replayed=False)


def _refunded(
    desk: Desk, command: RefundCharge, taken: Chargelike, *, amount: int, total: int
) -> e.UsageRefunded:
    wallet = _wallet_of(desk, taken)
    return e.UsageRefunded(
        at=desk.now,
        actor=desk.asking.actor,
        organization_id=taken.organization_id,
        balance_micros=wallet.balance + amount,
        reserved_micros=wallet.reserved,
        key_id=taken.key_id,
        charge_id=taken.charge_id,
        request_id=command.request_id,
        amount_micros=amount,
        refunded_micros=total,
        window_at=taken.window_at if isinstance(taken, e.ReservationCaptured) else taken.at,
        project_id=taken.project_id,
        model=taken.model,
        provider=taken.provider,
        tenant_org_id=taken.tenant_org_id,
        tenant_user_id=taken.tenant_user_id,
    )


def _charge(desk: Desk, command: RefundCharge, charge: e.Event | None) -> Chargelike:
    """The charge with this id, if the caller may know of it."""
    bound, keyspace = desk.asking.organization_id, desk.asking.keyspace_id
    if not isinstance(charge, Chargelike) or charge.charge_id != command.charge_id:
        raise NotFoundError("charge", command.charge_id)
    if bound is not None and bound != charge.organization_id:
        raise NotFoundError("charge", command.charge_id)
    key = desk.draft.keys.find(charge.key_id)
    if keyspace is not None and (key is None or key.keyspace_id != keyspace):
        raise NotFoundError("charge", command.charge_id)
    return charge


def _outcome(
    desk: Desk, charge: Chargelike, event: e.UsageRefunded, position: int, *, replayed: bool
) -> RefundOutcome:
    wallet = _wallet_of(desk, charge)
    return RefundOutcome(
        event=event, charge=charge, position=position, replayed=replayed, wallet=wallet.copy()
    )


def _wallet_of(desk: Desk, charge: Chargelike) -> Wallet:
    wallet = desk.draft.wallets.find(charge.organization_id or "")
    assert wallet is not None, "a charge has a wallet"
    return wallet


def replay_refund(
    desk: Desk, command: RefundCharge, charge: e.Event | None, event: e.Event, position: int
) -> RefundOutcome:
    """The first outcome of this request id, if its request was the same."""
    caller_of(desk)
    taken = _charge(desk, command, charge)
    # Without an amount, the first refund gave back all that was left at that time.
    same = (
        isinstance(event, e.UsageRefunded)
        and event.charge_id == command.charge_id
        and command.amount_micros in (None, event.amount_micros)
    )
    if not same or not isinstance(event, e.UsageRefunded):
        msg = f"request_id {command.request_id} was used before, for something else."
        raise IdempotencyConflictError(msg, field="request_id")
    return _outcome(desk, taken, event, position, replayed=True)
