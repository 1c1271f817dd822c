"""A charge: one decision over scopes, rate limits, quotas and the wallet; a refused one takes nothing."""

from typing import Any

import pytest

from domain import commands as c
from domain.errors import AmountOutOfRangeError, CallerRefusedError, InvalidError, NotFoundError
from domain.money import MAX_MICROS
from keyledger_language import RateLimit, Tenant, Use
from keyledger_language import events as e
from keyledger_language.events import Quota
from tests.domain.given import Shop, fingerprint_of

THREE_A_MINUTE = (RateLimit(name="slow", limit=3, window_seconds=60),)


def counted(shop: Shop) -> list[int]:
    limits = shop.shopper.rate_limits
    return [state.limit - state.remaining for state in shop.limiter.peek(shop.shopper.id, limits, None)]


# balance, credit limit (- for none), asked: granted?
WALLETS = """
    10    0   10   yes
    10    0   11   no
     0    0    0   yes
     0    0    1   no
    10    5   15   yes
    10    5   16   no
   -10   10    0   yes
   -10   10    1   no
   -10   12    2   yes
     0    -    9   yes
"""


@pytest.mark.parametrize("row", WALLETS.strip().splitlines())
def test_a_wallet_gives_what_it_holds_and_its_credit_and_not_a_micro_more(row: str) -> None:
    balance, limit, asked, granted = row.split()
    shop = Shop(balance=int(balance))
    credit = None if limit == "-" else int(limit)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=credit))

    outcome = shop.charge(int(asked))

    assert outcome.code == ("valid" if granted == "yes" else "billing_shortfall")
    assert shop.purse.balance == int(balance) - (int(asked) if granted == "yes" else 0)


def test_a_shortfall_says_what_is_left() -> None:
    shop = Shop(balance=7)

    refusal = shop.charge(8).refusal

    assert refusal is not None
    assert (refusal.code, refusal.level, refusal.remaining) == ("billing_shortfall", "wallet", 7)


def test_a_charge_is_priced_once_and_says_how() -> None:
    shop = Shop()
    plan = shop.plan(price_multiplier="1.25")
    shop.change(plan_id=plan.id)

    event = shop.charge(10).event

    assert event is not None
    # 12.5 is rounded half up.
    assert (event.base_micros, event.price_multiplier, event.amount_micros) == (10, "1.25", 13)


def test_charges_are_priced_by_the_plan_as_it_is_when_they_come() -> None:
    shop = Shop()
    plan = shop.plan(price_multiplier="2")
    shop.change(plan_id=plan.id)
    first = shop.charge(10).event
    shop.ask(c.ChangePlan(plan_id=plan.id, price_multiplier="3"))
    second = shop.charge(10).event

    assert first is not None
    assert second is not None
    assert (first.amount_micros, second.amount_micros) == (20, 30)


def test_key_project_and_organization_are_counted_and_the_use_is_on_record() -> None:
    shop = Shop()
    project = shop.project(shop.customer.id)
    use = Use(
        project_id=project.id,
        model="opus",
        provider="acme",
        tenant=Tenant(org_id="globex", user_id="hank"),
    )

    shop.charge(30, use=use)

    event = shop.last(e.UsageCharged)
    assert (event.model, event.provider, event.tenant_org_id, event.tenant_user_id) == (
        "opus",
        "acme",
        "globex",
        "hank",
    )
    for subject in (shop.shopper.id, project.id, shop.customer.id):
        assert [(tally.micros, tally.requests) for tally in shop.state.counters[subject].tallies] == [
            (30, 1)
        ] * 4


def test_metadata_is_kept_where_the_log_encrypts_it() -> None:
    shop = Shop()

    shop.charge(1, metadata={"customer": "Grace Hopper"})

    private = shop.last(e.UsageCharged).private
    assert private is not None
    assert private.metadata == {"customer": "Grace Hopper"}


def test_a_refused_charge_takes_no_money_no_request_and_no_rate() -> None:
    quota = Quota(unit="requests", window="day", limit=5)
    shop = Shop(balance=5, quotas=(quota,), rate_limits=THREE_A_MINUTE)
    head = shop.state.head

    assert shop.charge(6, count_rate=True).code == "billing_shortfall"
    assert (shop.purse.balance, shop.quota(shop.shopper.id).spent, counted(shop)) == (5, 0, [0])
    assert shop.state.head == head


TOO_MUCH: dict[str, Any] = {
    "priced beyond 64 bits": {"base_micros": MAX_MICROS},
    "beyond what a wallet may hold": {"base_micros": MAX_MICROS // 2 + 1},
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_an_amount_out_of_range_takes_no_rate_either(name: str) -> None:
    shop = Shop(rate_limits=THREE_A_MINUTE)
    shop.change(plan_id=shop.plan(price_multiplier="2").id)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=None))
    command = c.ChargeUsage(key_id=shop.shopper.id, request_id="r", count_rate=True, **TOO_MUCH[name])

    with pytest.raises(InvalidError):
        shop.ask(command)
    assert counted(shop) == [0]


def test_a_reservation_for_too_long_takes_no_rate_either() -> None:
    shop = Shop(rate_limits=THREE_A_MINUTE)
    command = c.ReserveCredits(
        key_id=shop.shopper.id, request_id="r", base_micros=1, expires_in_seconds=0, count_rate=True
    )

    with pytest.raises(InvalidError):
        shop.ask(command)
    assert counted(shop) == [0]


def test_the_third_use_a_minute_passes_and_the_fourth_is_too_fast() -> None:
    shop = Shop(rate_limits=THREE_A_MINUTE)

    codes = [shop.charge(1, count_rate=True).code for _ in range(4)]

    assert codes == ["valid", "valid", "valid", "rate_limited"]
    assert shop.purse.balance == 997


def test_charges_that_no_verify_asked_for_count_against_no_rate() -> None:
    shop = Shop(rate_limits=THREE_A_MINUTE)

    assert [shop.charge(1).code for _ in range(5)] == ["valid"] * 5


def test_a_free_use_passes_an_empty_wallet_unless_the_keyspace_asks_for_a_balance() -> None:
    assert Shop(balance=0).charge(0).code == "valid"

    strict = Shop(balance=0, gateway={"require_balance": True})

    assert strict.charge(0).code == "billing_shortfall"
    strict.deposit(strict.customer.id, 1)
    assert strict.charge(0).code == "valid"
    strict.charge(1)
    assert strict.charge(0).code == "billing_shortfall"


def test_where_a_balance_is_asked_for_a_quota_at_zero_refuses_a_free_use_too() -> None:
    quota = Quota(unit="micros", window="day", limit=10)
    shop = Shop(gateway={"require_balance": True}, quotas=(quota,))
    shop.charge(9)

    assert shop.charge(0).code == "valid"
    shop.charge(1)
    assert shop.charge(0).code == "api_key_quota_exceeded"


def test_a_secret_pays_only_where_its_keyspace_is_asked() -> None:
    shop = Shop()
    elsewhere = shop.keyspace()
    secret = fingerprint_of("open sesame")
    here: dict[str, Any] = {"key_id": None, "fingerprint": secret}

    assert shop.charge(1, **here, keyspace_id=shop.gateway.id).code == "valid"
    assert shop.charge(1, **here, keyspace_id=elsewhere.id).code == "not_found"
    unknown: dict[str, Any] = {"key_id": None, "fingerprint": fingerprint_of("nobody's")}
    assert shop.charge(1, **unknown, keyspace_id=shop.gateway.id).code == "not_found"


def test_another_organizations_secret_is_not_found_and_its_key_is_not_there() -> None:
    shop = Shop()
    stranger = shop.root_key("charges:write", organization_id=shop.organization().id)
    by_secret = shop.charging(
        1, key_id=None, fingerprint=fingerprint_of("open sesame"), keyspace_id=shop.gateway.id
    )

    assert shop.ask(by_secret, by=stranger).code == "not_found"
    with pytest.raises(NotFoundError):
        shop.ask(shop.charging(1), by=stranger)


def test_a_caller_of_another_keyspace_finds_neither_secret_nor_key() -> None:
    shop = Shop()
    stranger = shop.root_key("charges:write", keyspace_id=shop.keyspace().id)
    by_secret = shop.charging(
        1, key_id=None, fingerprint=fingerprint_of("open sesame"), keyspace_id=shop.gateway.id
    )

    assert shop.ask(by_secret, by=stranger).code == "not_found"
    with pytest.raises(NotFoundError):
        shop.ask(shop.charging(1), by=stranger)


def test_a_root_key_pays_for_nothing() -> None:
    shop = Shop()
    by_secret = shop.charging(
        1, key_id=None, fingerprint=fingerprint_of("root"), keyspace_id=shop.root.keyspace_id
    )

    assert shop.ask(by_secret).code == "not_found"
    with pytest.raises(InvalidError):
        shop.ask(shop.charging(1, key_id=shop.root.id))


def test_a_caller_that_was_cut_off_in_the_same_group_charges_nothing_more() -> None:
    shop = Shop()
    caller = shop.root_key("charges:write")
    first, _, last = shop.together(
        (shop.charging(1), caller), c.RevokeKey(key_id=caller.actor), (shop.charging(1), caller)
    )

    assert first.code == "valid"
    assert isinstance(last, CallerRefusedError)
    assert shop.purse.balance == 999


def test_a_deleted_key_is_revoked_to_whoever_charges_it() -> None:
    shop = Shop()
    shop.ask(c.DeleteKey(key_id=shop.shopper.id))

    assert shop.charge(1).code == "revoked"


def test_a_wallet_never_leaves_the_range_of_64_bits() -> None:
    shop = Shop(balance=0)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=None))
    shop.charge(MAX_MICROS - 1)

    shop.charge(1)
    with pytest.raises(AmountOutOfRangeError):
        shop.charge(1)
    with pytest.raises(AmountOutOfRangeError):
        shop.reserve(1)
    assert shop.purse.balance == -MAX_MICROS


def test_what_is_spent_in_all_never_leaves_the_range_of_64_bits() -> None:
    # Counters and statements add up amounts that only pass through wallets.
    shop = Shop(balance=MAX_MICROS)
    shop.charge(MAX_MICROS)

    with pytest.raises(AmountOutOfRangeError):
        shop.deposit(shop.customer.id, 1)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=5))
    with pytest.raises(AmountOutOfRangeError):
        shop.charge(1)
