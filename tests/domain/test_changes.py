"""A change that takes something away waits for the fence; one that only grants never does."""

import pytest

from domain import commands as c
from domain.changes import change_of, narrows
from keyledger_language import Allowed, RateLimit
from keyledger_language import events as e
from keyledger_language.events import Quota
from keyledger_language.instants import DAY
from tests.domain.given import Shop, fingerprint_of


def narrowing(shop: Shop, command: c.Command) -> bool:
    head = shop.state.head
    shop.ask(command)
    changes = [
        change_of(event, shop.state, position)
        for position, event in enumerate(shop.events[head:], start=head + 1)
    ]
    return any(change is not None and change.narrowing for change in changes)


# models before, after: taken away?
MODELS = """
    *     a     yes
    *     *     no
    a     *     no
    a     a,b   no
    a,b   b,a   no
    a,b   a     yes
    a     b     yes
"""


@pytest.mark.parametrize("row", MODELS.strip().splitlines())
def test_a_scope_narrows_when_something_that_was_allowed_is_not_any_more(row: str) -> None:
    before, after, taken = row.split()

    def models(text: str) -> Allowed:
        return "*" if text == "*" else tuple(text.split(","))

    shop = Shop(scopes=c.NewScopes(models=models(before)))
    edit = c.EditScopes(key_id=shop.shopper.id, scopes=c.NewScopes(models=models(after)))

    assert narrowing(shop, edit) == (taken == "yes")


# days from now, before and after (- is never): taken away?
EXPIRIES = """
    -   3   yes
    3   2   yes
    3   4   no
    3   -   no
"""


@pytest.mark.parametrize("row", EXPIRIES.strip().splitlines())
def test_an_expiry_narrows_when_it_comes_sooner(row: str) -> None:
    before, after, taken = row.split()
    start = Shop().now

    def at(days: str) -> int | None:
        return None if days == "-" else start + int(days) * DAY

    shop = Shop(expires_at=at(before))

    assert narrowing(shop, c.ChangeKey(key_id=shop.shopper.id, expires_at=at(after))) == (taken == "yes")


# limit before and after (- is none): taken away?
LIMITS = """
    -    10   yes
    10    9   yes
    10   11   no
    10    -   no
"""


@pytest.mark.parametrize("row", LIMITS.strip().splitlines())
def test_a_quota_narrows_when_it_is_lowered_or_new(row: str) -> None:
    before, after, taken = row.split()

    def quotas(limit: str) -> tuple[Quota, ...]:
        return () if limit == "-" else (Quota(unit="requests", window="day", limit=int(limit)),)

    shop = Shop(quotas=quotas(before))

    assert narrowing(shop, c.ChangeKey(key_id=shop.shopper.id, quotas=quotas(after))) == (taken == "yes")


def test_what_ends_or_may_end_a_use_narrows() -> None:
    shop = Shop()
    plan, project = shop.plan(), shop.project(shop.customer.id)
    key, customer = shop.shopper.id, shop.customer.id
    asked: list[c.Command] = [
        c.ChangeKey(key_id=key, allowed_ips=("10.0.0.0/8",)),
        c.ChangeKey(key_id=key, rate_limits=(RateLimit(name="a", limit=1, window_seconds=1),)),
        c.ChangeKey(key_id=key, plan_id=plan.id),
        c.ChangePlan(plan_id=plan.id, models=("opus",)),
        c.ChangeKeyspace(keyspace_id=shop.gateway.id, required_dimensions=("model",)),
        c.ArchiveProject(organization_id=customer, project_id=project.id),
        c.SuspendOrganization(organization_id=customer),
        c.DisableKey(key_id=key),
        c.RotateKey(key_id=key, fingerprint=fingerprint_of("2"), hint="", overlap_seconds=60),
        c.RotateKey(key_id=key, fingerprint=fingerprint_of("3"), hint=""),
        c.RevokeKey(key_id=key),
    ]

    assert [type(command) for command in asked if not narrowing(shop, command)] == []


def test_what_grants_or_only_tells_does_not() -> None:
    shop = Shop()
    plan = shop.plan()
    key, customer = shop.shopper.id, shop.customer.id
    shop.ask(c.DisableKey(key_id=key))
    shop.ask(c.SuspendOrganization(organization_id=customer))
    asked: list[c.Command] = [
        c.EnableKey(key_id=key),
        c.ResumeOrganization(organization_id=customer),
        c.OpenProject(organization_id=customer, name="p"),
        c.ChangeKey(key_id=key, name="n", owner_id="o", metadata={"a": 1}, tags=("t",), environment="live"),
        c.ChangePlan(plan_id=plan.id, price_multiplier="2"),
        c.DepositCredits(organization_id=customer, amount_micros=-1, reference="r"),
        c.SetWalletTerms(organization_id=customer, credit_limit_micros=5),
        shop.charging(1),
    ]

    assert [type(command) for command in asked if narrowing(shop, command)] == []


def test_edges_hear_of_a_new_keyspace_and_nobody_waits_for_it() -> None:
    shop = Shop()
    changes = [
        change_of(event, shop.state, 7) for event in shop.events if isinstance(event, e.KeyspaceDefined)
    ]

    assert {(change.kind, change.narrowing) for change in changes if change} == {("keyspace", False)}


def test_money_is_nothing_that_edges_hear_of() -> None:
    shop = Shop()
    head = shop.state.head
    held = shop.hold(10)
    shop.charge(1)
    shop.capture(held, 10)

    assert {change_of(event, shop.state, 1) for event in shop.events[head:]} == {None}


def test_a_change_of_a_key_names_all_its_secrets() -> None:
    shop = Shop()
    shop.ask(c.RotateKey(key_id=shop.shopper.id, fingerprint=fingerprint_of("2"), hint="", overlap_seconds=9))
    change = change_of(shop.last(e.KeyRotated), shop.state, 7)

    assert change is not None
    assert (change.kind, change.id, change.position) == ("key", shop.shopper.id, 7)
    assert change.fingerprints == (fingerprint_of("open sesame"), fingerprint_of("2"))


def test_an_event_that_nobody_thought_of_narrows() -> None:
    class KeyVanished(e.KeyEvent, frozen=True, kw_only=True):
        pass

    assert narrows(KeyVanished(at=0, key_id="key_1"))
