"""Whether a use may spend (or hold) money: scopes, rate limits, quotas and wallet in one decision."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from domain.accounts import Wallet, copied
from domain.claims import request_claim
from domain.commands import ChargeUsage, Metering, ReserveCredits
from domain.decisions.access import caller_of, find_key, is_root, vouch_for_caller
from domain.decisions.limits import check_metadata
from domain.decisions.thresholds import alerts_ahead, wallet_alert
from domain.desk import Desk
from domain.errors import (
    AmountOutOfRangeError,
    IdempotencyConflictError,
    InvalidError,
    NotFoundError,
)
from domain.keys import Key, Secret
from domain.money import MAX_MICROS, ONE, price
from domain.quotas import (
    Levels,
    QuotaState,
    Refusal,
    balance_refusal,
    first_refusal,
    levels_of,
    states_of,
    wallet_refusal,
)
from domain.windows import window_starts
from keyledger_language import KeyFacts, RateState, judge, state_of
from keyledger_language import events as e
from keyledger_language.instants import DAY, SECOND

VALID = "valid"
_MAX_RESERVATION_SECONDS = 30 * 86_400


Used = e.UsageCharged | e.CreditsReserved
"""The events of uses that cost money."""


class UseOutcome(msgspec.Struct, kw_only=True, gc=False):
    """The outcome of a use that costs money."""

    code: str
    key: Key | None = None
    facts: KeyFacts | None = None
    event: Used | None = None
    position: int = 0
    replayed: bool = False
    refusal: Refusal | None = None
    quotas: tuple[QuotaState, ...] = ()
    wallet: Wallet | None = None
    rates: tuple[RateState, ...] = ()


Found = tuple[Key, Secret | None]


def locate(desk: Desk, ask: Metering) -> Found | str:
    """The key (and its secret) that pays, or the code of the reason why there is none."""
    if desk.located is not None and desk.located[0] is ask:
        return desk.located[1]
    found = _looked_up(desk, ask)
    desk.located = ask, found
    return found


def _looked_up(desk: Desk, ask: Metering) -> Found | str:
    if ask.key_id is not None:
        key = _named(desk, ask.key_id)
        if is_root(key):
            raise InvalidError("key_id", "a root key does not pay for uses")
        return key, None
    secret = desk.draft.secrets.find(ask.fingerprint or b"")
    if secret is None:
        return "not_found"
    owner = desk.draft.keys.find(secret.key_id)
    assert owner is not None, "keys are never removed"
    bound, keyspace = desk.asking.organization_id, desk.asking.keyspace_id
    foreign = (bound is not None and owner.organization_id != bound) or (
        keyspace is not None and owner.keyspace_id != keyspace
    )
    if foreign or is_root(owner) or owner.keyspace_id != ask.keyspace_id:
        return "not_found"
    return owner, secret


def _named(desk: Desk, key_id: str) -> Key:
    try:
        return find_key(desk, key_id, deleted=True)
    except NotFoundError:
        raise NotFoundError("key", key_id, field="key_id") from None


def claim_of(desk: Desk, ask: Metering) -> bytes | None:
    """The claim of a use's request id; None if no key would pay."""
    try:
        found = locate(desk, ask)
    except (NotFoundError, InvalidError):
        return None
    if isinstance(found, str):
        return None
    return request_claim(found[0].organization_id or "", ask.request_id)


def meter(desk: Desk, ask: ChargeUsage | ReserveCredits) -> UseOutcome:
    """Decide one use, and record the charge or the reservation if it is allowed."""
    vouch_for_caller(desk)
    _check_fields(ask)
    found = locate(desk, ask)
    if isinstance(found, str):
        return UseOutcome(code=found)
    key, secret = found
    facts = desk.facts_of(key, secret)
    code = judge(facts, ask.use, desk.now)
    if code != VALID:
        return UseOutcome(code=code, key=key, facts=facts)
    multiplier, amount = (ONE, ask.base_micros) if key.plan_id is None else _priced(desk, key, ask)
    rates: Sequence[RateState] = ()
    if ask.count_rate and facts.rate_limits:
        allowed, rates = desk.take_rate(facts, ask.use.provider)
        if not allowed:
            return UseOutcome(code="rate_limited", key=key, facts=facts, rates=tuple(rates))
    levels = levels_of(desk.draft, key, ask.use.project_id)
    wallet = desk.draft.wallets.find(key.organization_id or "")
    assert wallet is not None, "an organization has a wallet from its first event on"
    if levels or amount == 0 or not wallet.covers(amount):
        refusal = _refusal(desk, ask, key=key, facts=facts, levels=levels, amount=amount)
    else:
        refusal = None
    if refusal is None and amount <= wallet.headroom:
        event = _metered(desk, ask, key=key, wallet=wallet, multiplier=multiplier, amount=amount)
        return _pay(desk, ask, key, facts, levels, event, rates)
    if rates:
        desk.give_back_rate()
    if refusal is None:
        raise AmountOutOfRangeError("amount_micros", "the wallet would leave the range of 64 bits")
    return UseOutcome(code=refusal.code, key=key, facts=facts, refusal=refusal, position=desk.draft.head)


def _check_fields(ask: ChargeUsage | ReserveCredits) -> None:
    if not 0 <= ask.base_micros <= MAX_MICROS:
        raise InvalidError("amount_micros", "from 0 to 2^63 - 1")
    if ask.metadata:
        check_metadata(ask.metadata)
    if isinstance(ask, ReserveCredits) and not 1 <= ask.expires_in_seconds <= _MAX_RESERVATION_SECONDS:
        raise InvalidError("expires_in_seconds", f"from 1 to {_MAX_RESERVATION_SECONDS}")


def _priced(desk: Desk, key: Key, ask: Metering) -> tuple[str, int]:
    """The multiplier of the key's plan, and what the use costs with it."""
    plan = desk.draft.plans.find(key.plan_id or "")
    assert plan is not None, "plans are never removed"
    amount = price(ask.base_micros, plan.price_multiplier)
    if amount > MAX_MICROS:
        raise AmountOutOfRangeError("amount_micros", "exceeds the range of 64 bits once priced")
    return plan.price_multiplier, amount


def _refusal(
    desk: Desk, ask: Metering, *, key: Key, facts: KeyFacts, levels: Levels, amount: int
) -> Refusal | None:
    """The refusal by the first limit that does not allow the use: quotas, then the wallet."""
    draft = desk.draft
    if levels:
        starts = window_starts(desk.now // DAY)
        refusal = first_refusal(draft, levels, starts, micros=amount, requests=1)
        if refusal is not None:
            return refusal
    if amount == 0 and facts.require_balance:
        return balance_refusal(draft, key, ask.use.project_id, desk.now)
    return wallet_refusal(draft, key.organization_id, amount)


def _pay(  # noqa: PLR0917  # everything that `meter` knows; with keyword arguments the call took longer
    desk: Desk,
    ask: Metering,
    key: Key,
    facts: KeyFacts,
    levels: Levels,
    event: Used,
    rates: Sequence[RateState],
) -> UseOutcome:
    organization_id = key.organization_id or ""
    ahead: Sequence[e.ThresholdReached] = ()
    if levels:
        ahead = alerts_ahead(desk, organization_id, levels, desk.now, micros=event.amount_micros, requests=1)
    position = desk.record(event)
    desk.claim(request_claim(organization_id, ask.request_id))
    for alert in ahead:
        desk.record(alert)
    wallet = desk.draft.wallets[organization_id]
    if wallet.alert_below is not None:
        wallet_alert(desk, organization_id)
    return UseOutcome(
        code=VALID,
        key=key,
        facts=facts,
        event=event,
        position=position,
        quotas=states_of(desk.draft, levels, desk.now) if levels else (),
        wallet=copied(wallet),
        rates=tuple(rates),
    )


def _metered(
    desk: Desk, ask: ChargeUsage | ReserveCredits, *, key: Key, wallet: Wallet, multiplier: str, amount: int
) -> Used:
    # The fields are listed twice: collecting them in a dict first took four times as long.
    use = ask.use
    private = e.Private(metadata=ask.metadata) if ask.metadata else None
    tenant_org_id, tenant_user_id = (use.tenant.org_id, use.tenant.user_id) if use.tenant else (None, None)
    if isinstance(ask, ChargeUsage):
        return e.UsageCharged(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=key.organization_id,
            private=private,
            charge_id=desk.placed_id("chg"),
            balance_micros=wallet.balance - amount,
            reserved_micros=wallet.reserved,
            key_id=key.id,
            request_id=ask.request_id,
            base_micros=ask.base_micros,
            price_multiplier=multiplier,
            amount_micros=amount,
            model=use.model,
            provider=use.provider,
            project_id=use.project_id,
            tenant_org_id=tenant_org_id,
            tenant_user_id=tenant_user_id,
        )
    return e.CreditsReserved(
        at=desk.now,
        actor=desk.asking.actor,
        organization_id=key.organization_id,
        private=private,
        reservation_id=desk.placed_id("rsv"),
        expires_at=desk.now + ask.expires_in_seconds * SECOND,
        balance_micros=wallet.balance,
        reserved_micros=wallet.reserved + amount,
        key_id=key.id,
        request_id=ask.request_id,
        base_micros=ask.base_micros,
        price_multiplier=multiplier,
        amount_micros=amount,
        model=use.model,
        provider=use.provider,
        project_id=use.project_id,
        tenant_org_id=tenant_org_id,
        tenant_user_id=tenant_user_id,
    )


def replay(desk: Desk, ask: ChargeUsage | ReserveCredits, event: e.Event, position: int) -> UseOutcome:
    """The first outcome of this request id, if its request was the same; the key is judged again."""
    caller_of(desk)
    found = locate(desk, ask)
    if isinstance(found, str):
        return UseOutcome(code=found)
    key, secret = found
    facts = desk.facts_of(key, secret)
    code = state_of(facts, desk.now)
    if code is not None:
        return UseOutcome(code=code, key=key, facts=facts)
    same_kind: type[Used] = e.UsageCharged if isinstance(ask, ChargeUsage) else e.CreditsReserved
    if not isinstance(event, same_kind) or not _same(ask, key, event):
        msg = f"request_id {ask.request_id} was used before, for something else."
        raise IdempotencyConflictError(msg, field="request_id")
    levels = levels_of(desk.draft, key, ask.use.project_id)
    wallet = desk.draft.wallets.find(key.organization_id or "")
    return UseOutcome(
        code=VALID,
        key=key,
        facts=facts,
        event=event,
        position=position,
        replayed=True,
        quotas=states_of(desk.draft, levels, desk.now) if levels else (),
        wallet=None if wallet is None else copied(wallet),
    )


def _same(ask: Metering, key: Key, event: Used) -> bool:
    use, tenant = ask.use, ask.use.tenant
    return (
        event.key_id == key.id
        and event.base_micros == ask.base_micros
        and event.model == use.model
        and event.provider == use.provider
        and event.project_id == use.project_id
        and event.tenant_org_id == (tenant.org_id if tenant else None)
        and event.tenant_user_id == (tenant.user_id if tenant else None)
    )
