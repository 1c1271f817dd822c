"""The short way of deciding a charge comes to the same as the long one, whatever is asked.

The same random groups are decided twice, once with the short way shut; every event, claim, outcome
and row of the state must be equal. Hypothesis prints the seed of a failure.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import commands as c
from domain.commands import Asking, Command
from domain.decisions.plain_charges import PlainCharges
from domain.desk import SYSTEM_ASKING
from domain.state import TABLES
from keyledger_language import NO_USE, RateLimit, Tenant, Use
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, SECOND
from tests.domain.given import Shop, World, fingerprint_of

MAX = 2**63 - 1
USES = (
    NO_USE,
    Use(model="opus", provider="acme"),
    Use(model="elsewhere"),
    Use(tenant=Tenant(org_id="globex", user_id="hank")),
    Use(ip="10.0.0.1"),
)
LIMIT = (Quota(unit="micros", window="day", limit=400, alert_percents=(50,)),)

charges = st.tuples(
    st.just("charge"),
    st.integers(0, 11),  # which key
    st.sampled_from([1, 1, 7, 60, 60, 900, 0, -1, MAX, MAX + 1]),
    st.integers(0, 12),  # which request id: few, so that some come again
    st.integers(0, len(USES)),
    st.sampled_from(["key", "key", "secret", "wrong secret"]),
    st.sampled_from(["platform", "platform", "system", "bound", "dead"]),
    st.sampled_from([None, None, None, {"trace": "7"}]),
    st.booleans(),
)
others = st.tuples(
    st.sampled_from(["disable", "enable", "revoke", "alert", "credit", "deposit", "quota", "reserve"]),
    st.integers(0, 11),
)
groups = st.lists(
    st.tuples(
        st.sampled_from([0, 0, SECOND, DAY, 40 * DAY, -SECOND]),
        st.lists(st.one_of(charges, charges, charges, charges, charges, others), min_size=1, max_size=8),
    ),
    min_size=1,
    max_size=8,
)


class Town:
    """Twelve keys of four customers: plain ones, and one for each reason not to be."""

    def __init__(self) -> None:
        shop = self.shop = Shop(balance=5_000)
        rich = shop.organization(balance=MAX - 2_000)
        limited = shop.organization(balance=5_000, quotas=LIMIT)
        postpaid = shop.organization()
        shop.ask(c.SetWalletTerms(organization_id=postpaid.id, credit_limit_micros=None))
        self.customers = [shop.customer, rich, limited, postpaid]
        self.project = shop.project(shop.customer.id)
        plan = shop.plan(price_multiplier="1.5", models=("opus",))
        cheap = shop.plan(price_multiplier="0.000001")
        careful = shop.keyspace(require_balance=True).id
        each: list[dict[str, Any]] = [
            {}, {}, {"organization_id": rich.id}, {"organization_id": limited.id},
            {"organization_id": postpaid.id}, {"quotas": LIMIT}, {"plan_id": plan.id}, {"plan_id": cheap.id},
            {"rate_limits": (RateLimit(name="few", limit=2, window_seconds=60),)}, {"kind": "platform"},
            {"allowed_ips": ("10.0.0.0/8",)}, {"keyspace_id": careful},
        ]  # fmt: skip
        self.keys = []
        for number, fields in enumerate(each):
            made = {"keyspace_id": shop.gateway.id, "organization_id": shop.customer.id} | fields
            self.keys.append(shop.key(**made, secret=f"secret of {number}"))
        self.keys[1] = shop.ask(c.ChangeKey(key_id=self.keys[1].id, expires_at=shop.now + 2 * DAY))
        self.bound = shop.root_key("charges:write", organization_id=rich.id)
        self.dead = shop.root_key("charges:write")
        shop.ask(c.RevokeKey(key_id=self.dead.actor))

    def asked(self, step: tuple[Any, ...]) -> tuple[Command, Asking]:
        """A step, as a command and who asks."""
        if step[0] != "charge":
            return self._other(*step), self.shop.platform
        _, key, amount, request, use, how, who, metadata, count = step
        asking = {
            "platform": self.shop.platform, "system": SYSTEM_ASKING, "bound": self.bound, "dead": self.dead,
        }[who]  # fmt: skip
        found: dict[str, Any] = {"key_id": self.keys[key].id}
        if how != "key":
            text = f"secret of {key}" if how == "secret" else "nobody's"
            found = {"fingerprint": fingerprint_of(text), "keyspace_id": self.keys[key].keyspace_id}
        command = c.ChargeUsage(
            request_id=f"r{request}",
            base_micros=amount,
            use=USES[use] if use < len(USES) else Use(project_id=self.project.id),
            metadata=metadata,
            count_rate=count,
            **found,
        )
        return command, asking

    def _other(self, what: str, number: int) -> Command:  # noqa: PLR0911  # a command each
        key, customer = self.keys[number], self.customers[number % 4].id
        match what:
            case "disable":
                return c.DisableKey(key_id=key.id)
            case "enable":
                return c.EnableKey(key_id=key.id)
            case "revoke":
                return c.RevokeKey(key_id=key.id)
            case "alert":
                return c.SetWalletTerms(organization_id=customer, alert_below_micros=number * 400)
            case "credit":
                return c.SetWalletTerms(organization_id=customer, credit_limit_micros=number * 100)
            case "quota":
                return c.ChangeKey(key_id=key.id, quotas=LIMIT)
            case "reserve":
                return c.ReserveCredits(key_id=key.id, request_id=f"r{number}", base_micros=40)
            case _:
                return c.DepositCredits(
                    organization_id=customer, amount_micros=300, reference=f"more {number}"
                )

    def live(self, history: list[tuple[int, list[tuple[Any, ...]]]]) -> Any:
        """Decide all of it; everything that came of it."""
        answers: list[Any] = []
        for pause, steps in history:
            self.shop.now += pause
            outcomes = self.shop.together(*[self.asked(step) for step in steps])
            answers += [repr(one) for one in outcomes]
        return answers, self.shop.placed, self.shop.claims, tables(self.shop)


def tables(world: World) -> dict[str, Any]:
    return {name: dict(getattr(world.state, name)) for name in TABLES} | {
        "head": world.state.head, "at": world.state.at, "agenda": sorted(world.state.agenda),
    }  # fmt: skip


@settings(max_examples=300, deadline=None, print_blob=True)
@given(history=groups)
def test_the_short_way_comes_to_the_same_as_the_long_one(
    history: list[tuple[int, list[tuple[Any, ...]]]],
) -> None:
    short = Town().live(history)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PlainCharges, "decide", lambda *_: None)
        long = Town().live(history)

    for one, other in zip(short, long, strict=True):
        assert one == other


def test_a_plain_charge_goes_the_short_way_and_one_with_a_quota_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    town = Town()
    went: list[bool] = []
    decide = PlainCharges.decide

    def watched(self: PlainCharges, ask: c.ChargeUsage) -> Any:
        outcome = decide(self, ask)
        went.append(outcome is not None)
        return outcome

    monkeypatch.setattr(PlainCharges, "decide", watched)
    for key in (0, 2, 4, 5):
        town.shop.ask(c.ChargeUsage(key_id=town.keys[key].id, request_id=f"r{key}", base_micros=5))

    assert went == [True, True, True, False]
