"""A request id names one request for ever: a repeated request gets the first answer."""

from typing import Any

import pytest

from domain import commands as c
from domain.errors import IdempotencyConflictError
from keyledger_language import NO_USE, RateLimit, Tenant, Use
from keyledger_language import events as e
from keyledger_language.events import Quota
from tests.domain.given import Shop, charge_id_of, fingerprint_of


def test_a_charge_asked_twice_is_charged_once_and_answered_alike() -> None:
    shop = Shop()
    first = shop.charge(10, "r")
    again = shop.charge(10, "r")

    assert (first.replayed, again.replayed) == (False, True)
    assert again.event == first.event
    assert again.position == first.position
    assert shop.purse.balance == 990


def test_the_retry_of_the_charge_that_spent_the_last_credits_gets_its_first_answer() -> None:
    shop = Shop(balance=10)
    shop.charge(10, "r")

    assert shop.charge(10, "r").code == "valid"


def test_two_of_one_id_in_the_same_group_are_charged_once() -> None:
    shop = Shop()
    first, second = shop.together(shop.charging(10, "r"), shop.charging(10, "r"))

    assert (first.replayed, second.replayed) == (False, True)
    assert shop.purse.balance == 990


OTHERS: dict[str, dict[str, Any]] = {
    "amount": {"base_micros": 11},
    "model": {"use": Use(model="opus")},
    "provider": {"use": Use(provider="acme")},
    "tenant": {"use": Use(tenant=Tenant(user_id="hank"))},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_use_under_the_same_id_is_a_conflict(name: str) -> None:
    shop = Shop()
    shop.charge(10, "r")
    fields: dict[str, Any] = {"base_micros": 10, "use": NO_USE} | OTHERS[name]

    with pytest.raises(IdempotencyConflictError):
        shop.ask(c.ChargeUsage(key_id=shop.shopper.id, request_id="r", **fields))
    assert shop.purse.balance == 990


def test_another_project_under_the_same_id_is_a_conflict() -> None:
    shop = Shop()
    one, other = shop.project(shop.customer.id), shop.project(shop.customer.id)
    shop.charge(10, "r", use=Use(project_id=one.id))

    with pytest.raises(IdempotencyConflictError):
        shop.charge(10, "r", use=Use(project_id=other.id))


def test_another_key_of_the_organization_under_the_same_id_is_a_conflict() -> None:
    shop = Shop()
    other = shop.key(shop.gateway.id, shop.customer.id)
    shop.charge(10, "r")

    with pytest.raises(IdempotencyConflictError):
        shop.charge(10, "r", key_id=other.id)


def test_another_operation_under_the_same_id_is_a_conflict() -> None:
    shop = Shop()
    charge = charge_id_of(shop.charge(10, "r"))
    held = shop.hold(10)

    with pytest.raises(IdempotencyConflictError):
        shop.reserve(10, "r")
    with pytest.raises(IdempotencyConflictError):
        shop.capture(held, 10, "r")
    with pytest.raises(IdempotencyConflictError):
        shop.refund(charge, 10, "r")


def test_the_same_id_in_another_organization_is_another_request() -> None:
    shop = Shop()
    neighbour = shop.organization(balance=5)
    key = shop.key(shop.gateway.id, neighbour.id)
    shop.charge(10, "r")

    assert shop.charge(5, "r", key_id=key.id).replayed is False


def test_a_key_named_by_its_id_or_by_its_secret_is_the_same_key() -> None:
    shop = Shop()
    shop.charge(10, "r")
    secret = {"key_id": None, "fingerprint": fingerprint_of("open sesame"), "keyspace_id": shop.gateway.id}

    assert shop.charge(10, "r", **secret).replayed is True


STATES: dict[str, tuple[str, ...]] = {
    "disabled": ("disable",),
    "revoked": ("revoke",),
    "organization_suspended": ("suspend",),
    "expired": ("expire",),
}


@pytest.mark.parametrize("code", STATES)
def test_a_replay_makes_no_dead_key_valid(code: str) -> None:
    shop = Shop(expires_at=Shop().now + 60_000_000)
    shop.charge(10, "r")
    match code:
        case "disabled":
            shop.ask(c.DisableKey(key_id=shop.shopper.id))
        case "revoked":
            shop.ask(c.RevokeKey(key_id=shop.shopper.id))
        case "organization_suspended":
            shop.ask(c.SuspendOrganization(organization_id=shop.customer.id))
        case _:
            shop.wait(60)

    assert shop.charge(10, "r").code == code
    assert shop.purse.balance == 990


def test_a_replay_asks_neither_scopes_nor_limits_again() -> None:
    once = Quota(unit="requests", window="day", limit=1)
    limits = (RateLimit(name="one", limit=1, window_seconds=60),)
    shop = Shop(balance=10, quotas=(once,), rate_limits=limits)
    shop.charge(10, "r", use=Use(model="opus"), count_rate=True)
    shop.ask(c.EditScopes(key_id=shop.shopper.id, scopes=c.NewScopes(models=("haiku",))))

    again = shop.charge(10, "r", use=Use(model="opus"), count_rate=True)

    assert (again.code, again.replayed) == ("valid", True)


def test_a_replay_is_not_priced_again() -> None:
    shop = Shop()
    plan = shop.plan(price_multiplier="2")
    shop.change(plan_id=plan.id)
    shop.charge(10, "r")
    shop.ask(c.ChangePlan(plan_id=plan.id, price_multiplier="3"))

    event = shop.charge(10, "r").event

    assert event is not None
    assert event.amount_micros == 20


def test_a_refused_request_may_be_tried_again_and_is_decided_anew() -> None:
    shop = Shop(balance=5)

    assert shop.charge(10, "r").code == "billing_shortfall"
    shop.deposit(shop.customer.id, 5)
    outcome = shop.charge(10, "r")

    assert (outcome.code, outcome.replayed) == ("valid", False)


def test_a_refused_request_may_even_be_another_one_next_time() -> None:
    shop = Shop(balance=5)
    shop.charge(10, "r")

    assert shop.charge(5, "r").code == "valid"


def test_reservations_captures_and_refunds_are_answered_alike_too() -> None:
    shop = Shop()
    held = shop.hold(50)
    one, other = shop.capture(held, 20, "c"), shop.capture(held, 20, "c")
    charge = charge_id_of(one)
    back, again = shop.refund(charge, 5, "b"), shop.refund(charge, 5, "b")
    reserved, reserved_again = shop.reserve(7, "h"), shop.reserve(7, "h")

    assert (one.event, True) == (other.event, other.replayed)
    assert (back.event, True) == (again.event, again.replayed)
    assert (reserved.event, True) == (reserved_again.event, reserved_again.replayed)
    assert (shop.purse.balance, shop.purse.reserved) == (985, 7)


def test_another_capture_or_refund_under_the_same_id_is_a_conflict() -> None:
    shop = Shop()
    held = shop.hold(50)
    charge = charge_id_of(shop.capture(held, 20, "c", final=False))
    shop.refund(charge, 5, "b")

    with pytest.raises(IdempotencyConflictError):
        shop.capture(held, 21, "c", final=False)
    with pytest.raises(IdempotencyConflictError):
        shop.capture(held, 20, "c", final=True)
    with pytest.raises(IdempotencyConflictError):
        shop.refund(charge, 6, "b")


def test_a_top_up_counts_once_per_reference() -> None:
    shop = Shop(balance=0)
    shop.deposit(shop.customer.id, 100, "invoice-7")
    shop.deposit(shop.customer.id, 100, "invoice-7")

    assert shop.purse.balance == 100
    with pytest.raises(IdempotencyConflictError):
        shop.deposit(shop.customer.id, 101, "invoice-7")


def test_a_reference_is_its_own_organizations() -> None:
    shop = Shop(balance=0)
    neighbour = shop.organization()
    shop.deposit(shop.customer.id, 100, "invoice-7")
    shop.deposit(neighbour.id, 30, "invoice-7")

    assert shop.wallet(neighbour.id).balance == 30


def test_nothing_is_recorded_by_a_replay() -> None:
    shop = Shop()
    shop.charge(10, "r")
    shop.charge(10, "r")

    assert len(shop.all(e.UsageCharged)) == 1
