"""Charges that only the wallet limits, decided in one step: nearly all charges are like this.

What `charging.meter` does in thirty calls is one function here, for the case that has to be fast: no
quota, no rate limit to count, no alert, no earlier request with this id, and allowed. All others take
the long path. Both must give the same result: tests/properties/test_plain_charges.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from domain.accounts import Counters, Wallet, copied
from domain.claims import request_claim
from domain.commands import ChargeUsage
from domain.decisions.access import is_root, vouch_for_caller
from domain.decisions.charging import VALID, UseOutcome, locate
from domain.desk import Desk, Placed
from domain.errors import LedgerError
from domain.evolve import counters_of
from domain.keys import Key, Secret
from domain.money import MAX_MICROS, ONE, price
from domain.ports import NewClaim
from domain.state import owned
from domain.windows import window_starts
from keyledger_language import events as e
from keyledger_language import judge
from keyledger_language.instants import DAY


class _Purse(NamedTuple):
    """An organization's wallet and counters in this draft; changed in place."""

    wallet: Wallet
    counters: Counters


class PlainCharges:
    """Decides plain charges of one group.

    `was_taken`: returns whether a name was taken before the group.
    """

    def __init__(self, desk: Desk, was_taken: Callable[[bytes], bool]) -> None:
        self._desk = desk
        self._was_taken = was_taken
        self._day = desk.now // DAY
        self._starts = window_starts(self._day)
        self._purses: dict[str, _Purse] = {}

    def decide(self, ask: ChargeUsage) -> UseOutcome | None:  # one return per reason
        """The charge, recorded; None if it is not plain, or not allowed: then nothing was done."""
        desk, use, base = self._desk, ask.use, ask.base_micros
        draft, asking = desk.draft, desk.asking
        if draft.settings_changed or ask.metadata or use.project_id is not None or not 0 < base <= MAX_MICROS:
            return None
        found = self._payer(ask)
        if found is None or (asking.actor != desk.vouched and not self._vouched_for()):
            return None
        key, secret = found
        organization_id = key.organization_id
        if organization_id is None or key.quotas:
            return None
        facts = desk.facts_of(key, secret)
        if (ask.count_rate and facts.rate_limits) or judge(facts, use, desk.now) != VALID:
            return None
        purse = self._purses.get(organization_id)
        wallet = self._unlimited(organization_id) if purse is None else purse.wallet
        multiplier = ONE if key.plan_id is None else self._multiplier(key.plan_id)
        amount = base if multiplier == ONE else price(base, multiplier)
        claim = request_claim(organization_id, ask.request_id)
        if (
            amount == 0
            or wallet is None
            or wallet.alert_below is not None
            or not wallet.pays(amount)
            or claim in desk.taken
            or self._was_taken(claim)
        ):
            return None

        # Not earlier: rows that are copied into the draft are advanced to this day.
        wallet, org_counters = purse or self._open(organization_id)
        tenant, now = use.tenant, desk.now
        position = draft.head + 1
        event = e.UsageCharged(
            at=now,
            actor=asking.actor,
            organization_id=organization_id,
            charge_id=desk.placed_id("chg"),
            balance_micros=wallet.balance - amount,
            reserved_micros=wallet.reserved,
            key_id=key.id,
            request_id=ask.request_id,
            base_micros=base,
            price_multiplier=multiplier,
            amount_micros=amount,
            model=use.model,
            provider=use.provider,
            tenant_org_id=None if tenant is None else tenant.org_id,
            tenant_user_id=None if tenant is None else tenant.user_id,
        )
        wallet.balance -= amount
        wallet.charged += amount
        starts = self._starts
        org_counters.add(starts, amount, 1)
        counters_of(draft, key.id, self._day).add(starts, amount, 1)
        draft.last_used[key.id] = now
        versions = draft.versions
        version = versions[organization_id] = (versions.find(organization_id) or 0) + 1
        draft.head, draft.at = position, now
        placed = desk.placed
        desk.claims.append(NewClaim(claim, len(placed)))
        desk.taken[claim] = position
        placed.append(Placed(organization_id, version, event))
        return UseOutcome(
            code=VALID, key=key, facts=facts, event=event, position=position, wallet=copied(wallet)
        )

    def _payer(self, ask: ChargeUsage) -> tuple[Key, Secret | None] | None:
        desk = self._desk
        asking = desk.asking
        if ask.key_id is None or asking.organization_id is not None or asking.keyspace_id is not None:
            try:
                found = locate(desk, ask)
            except LedgerError:
                return None
            return None if isinstance(found, str) else found
        key = desk.draft.keys.find(ask.key_id)
        return None if key is None or is_root(key) else (key, None)

    def _vouched_for(self) -> bool:
        try:
            vouch_for_caller(self._desk)
        except LedgerError:
            return False
        return True

    def _unlimited(self, organization_id: str) -> Wallet | None:
        """The organization's wallet; None if the organization has quotas."""
        draft = self._desk.draft
        organization = draft.organizations.find(organization_id)
        if organization is None or organization.quotas:
            return None
        return draft.wallets.find(organization_id)

    def _open(self, organization_id: str) -> _Purse:
        draft = self._desk.draft
        wallet = owned(draft.wallets, organization_id)
        assert wallet is not None, "an organization has a wallet from its first event on"
        purse = _Purse(wallet, counters_of(draft, organization_id, self._day))
        self._purses[organization_id] = purse
        return purse

    def _multiplier(self, plan_id: str) -> str:
        plan = self._desk.draft.plans.find(plan_id)
        assert plan is not None, "plans are never removed"
        return plan.price_multiplier
