"""Whatever speaks against a use, and however keys are changed: the order holds, and nothing widens unseen."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from domain import commands as c
from domain.changes import change_of, narrows
from domain.errors import LedgerError
from domain.facts import FactsBook
from keyledger_language import NO_USE, RateLimit, Tenant, Use, judge
from keyledger_language import events as e
from keyledger_language.instants import SECOND
from tests.domain.given import Shop, fingerprint_of
from tests.domain.test_verdict_order import CAUSED_IN, ORDER, Trouble


@settings(max_examples=100, deadline=None)
@given(st.sets(st.sampled_from(ORDER)))
def test_the_first_trouble_in_the_contracts_order_is_the_verdict(troubles: set[str]) -> None:
    shop = Trouble()
    for code in CAUSED_IN:
        if code in troubles:
            shop.cause(code)
    expected = min(troubles, key=ORDER.index, default="valid")

    assert shop.verdict() == expected


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(ORDER), min_size=1))
def test_a_refused_use_leaves_nothing_behind(troubles: set[str]) -> None:
    shop = Trouble()
    for code in CAUSED_IN:
        if code in troubles:
            shop.cause(code)
    shop.tick()
    limits = shop.state.keys[shop.shopper.id].rate_limits
    before = (shop.state.head, shop.purse.copy(), shop.limiter.peek(shop.shopper.id, limits, None))
    shop.verdict()

    assert (shop.state.head, shop.purse, shop.limiter.peek(shop.shopper.id, limits, None)) == before


# -- what takes something away says so

NAMES = st.sampled_from(["a", "b", "c"])
ALLOWED = st.one_of(st.just("*"), st.lists(NAMES, min_size=1, max_size=2, unique=True).map(tuple))
SCOPES = st.fixed_dictionaries({}, optional=dict.fromkeys(("permissions", "models", "tenants"), ALLOWED)).map(
    lambda fields: c.NewScopes(**fields)  # type: ignore[arg-type]
)
USES = [
    NO_USE,
    *[Use(permissions=(name,)) for name in "abc"],
    *[Use(model=name) for name in "abc"],
    *[Use(tenant=Tenant(user_id=name)) for name in "abc"],
    Use(ip="10.0.0.1"),
    Use(ip="192.0.2.1", model="a"),
]
_OPERATIONS = """
    scopes disable enable rotate expiry addresses plan plan_models suspend resume
    archive open_project keyspace wait rates name delete
"""
OPERATIONS = st.sampled_from(_OPERATIONS.split())


class Gateway(Shop):
    """A key that is changed in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.free = self.plan()
        self.projects = [self.project(self.customer.id).id]
        self.secrets = [fingerprint_of("open sesame")]

    def perform(self, operation: str, data: st.DataObject) -> None:
        command = self._command(operation, data)
        if command is None:
            return
        try:
            self.ask(command)
        except LedgerError:
            return
        if isinstance(command, c.RotateKey):
            self.secrets.append(command.fingerprint)
        if isinstance(command, c.OpenProject):
            self.projects.append(self.last(e.ProjectOpened).project_id)

    def _command(  # noqa: PLR0911  # one line per operation
        self, operation: str, data: st.DataObject
    ) -> c.Command | None:
        draw: Any = data.draw
        key, customer = self.shopper.id, self.customer.id
        match operation:
            case "scopes":
                return c.EditScopes(key_id=key, scopes=draw(SCOPES))
            case "disable":
                return c.DisableKey(key_id=key)
            case "enable":
                return c.EnableKey(key_id=key)
            case "rotate":
                secret = fingerprint_of(f"secret {len(self.secrets)}")
                overlap = draw(st.sampled_from([0, 60]))
                return c.RotateKey(key_id=key, fingerprint=secret, hint="", overlap_seconds=overlap)
            case "expiry":
                seconds = draw(st.sampled_from([None, 30, 90]))
                at = None if seconds is None else self.now + seconds * SECOND
                return c.ChangeKey(key_id=key, expires_at=at)
            case "addresses":
                return c.ChangeKey(key_id=key, allowed_ips=draw(st.sampled_from([(), ("10.0.0.0/8",)])))
            case "plan":
                return c.ChangeKey(key_id=key, plan_id=draw(st.sampled_from([None, self.free.id])))
            case "plan_models":
                return c.ChangePlan(plan_id=self.free.id, models=draw(ALLOWED))
            case "suspend":
                return c.SuspendOrganization(organization_id=customer)
            case "resume":
                return c.ResumeOrganization(organization_id=customer)
            case "archive":
                return c.ArchiveProject(
                    organization_id=customer, project_id=draw(st.sampled_from(self.projects))
                )
            case "open_project":
                return c.OpenProject(organization_id=customer, name="p")
            case "keyspace":
                dimensions = draw(st.sampled_from([(), ("model",)]))
                return c.ChangeKeyspace(keyspace_id=self.gateway.id, required_dimensions=dimensions)
            case "rates":
                limit = RateLimit(name="r", limit=draw(st.integers(1, 3)), window_seconds=60)
                return c.ChangeKey(key_id=key, rate_limits=(limit,))
            case "name":
                return c.ChangeKey(key_id=key, name=draw(NAMES), tags=(draw(NAMES),))
            case "delete":
                return c.DeleteKey(key_id=key) if draw(st.integers(0, 5)) == 0 else None
            case _:
                self.wait(draw(st.sampled_from([1, 30, 60])))
                return c.Tick()

    def valid(self, now: int) -> set[tuple[bytes, int]]:
        """Which secrets are good for which uses, at this instant."""
        uses = [*USES, *[Use(project_id=project) for project in self.projects]]
        found = set()
        for fingerprint in self.secrets:
            secret = self.state.secrets.get(fingerprint)
            if secret is None:
                continue
            facts = FactsBook.build(self.state, self.state.keys[secret.key_id], secret)
            found |= {(fingerprint, n) for n, use in enumerate(uses) if judge(facts, use, now) == "valid"}
        return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_was_valid_stays_valid_unless_an_event_says_that_it_narrows(data: st.DataObject) -> None:
    shop = Gateway()
    for operation in data.draw(st.lists(OPERATIONS, min_size=1, max_size=12)):
        head = shop.state.head
        # What time takes away needs no message: edges know the times. So both are asked as of afterwards.
        before_state = shop.valid
        before: dict[int, set[tuple[bytes, int]]] = {
            shop.now + step * SECOND: before_state(shop.now + step * SECOND) for step in (0, 1, 30, 60)
        }
        shop.perform(operation, data)
        after = shop.valid(shop.now)
        events = shop.events[head:]
        if not any(narrows(event) for event in events):
            assert before[shop.now] <= after


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whoever_remembers_a_key_hears_of_each_event_that_changes_its_facts(data: st.DataObject) -> None:
    shop = Gateway()
    for operation in data.draw(st.lists(OPERATIONS, min_size=1, max_size=12)):
        key, secret = _remembered(shop)
        facts = FactsBook.build(shop.state, key, secret)
        head = shop.state.head
        shop.perform(operation, data)
        # Facts that the ledger keeps are forgotten by the same messages as an edge's.
        kept = shop.facts.find(shop.secrets[0])
        now = FactsBook.build(shop.state, *_remembered(shop))
        heard = [
            change
            for position, event in enumerate(shop.events[head:], start=head + 1)
            if (change := change_of(event, shop.state, position)) is not None
        ]

        assert _without_place(kept) == _without_place(now)
        assert heard or _without_place(facts) == _without_place(now)


def _remembered(shop: Gateway) -> tuple[Any, Any]:
    secret = shop.state.secrets[shop.secrets[0]]
    return shop.state.keys[secret.key_id], secret


def _without_place(facts: Any) -> dict[str, Any]:
    return {name: getattr(facts, name) for name in facts.__struct_fields__ if name != "as_of"}
