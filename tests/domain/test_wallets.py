"""Wallets: top-ups, corrections, credit limits, the alert line."""

import pytest

from domain import commands as c
from domain.errors import AmountOutOfRangeError, InvalidError, PermissionDeniedError, PlatformOnlyError
from domain.money import MAX_MICROS
from keyledger_language import events as e
from tests.domain.given import Shop, charge_id_of


def terms(shop: Shop, **fields: int | None) -> None:
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, **fields))


def alerts(shop: Shop) -> list[int]:
    return [event.value for event in shop.all(e.ThresholdReached) if event.level == "wallet"]


def test_a_new_wallet_is_empty_and_prepaid() -> None:
    wallet = Shop(balance=0).purse

    assert (wallet.balance, wallet.reserved, wallet.credit_limit, wallet.alert_below) == (0, 0, 0, None)


def test_a_correction_takes_out_even_what_is_not_there() -> None:
    shop = Shop(balance=100)
    shop.deposit(shop.customer.id, -150)

    assert shop.purse.balance == -50
    assert shop.last(e.CreditsAdjusted).amount_micros == -150


@pytest.mark.parametrize("amount", [0, MAX_MICROS + 1, -MAX_MICROS - 1])
def test_a_top_up_is_an_amount_and_not_nothing(amount: int) -> None:
    shop = Shop(balance=0)

    with pytest.raises(InvalidError):
        shop.deposit(shop.customer.id, amount)


def test_a_top_up_never_lifts_a_wallet_beyond_64_bits() -> None:
    shop = Shop(balance=MAX_MICROS - 1)
    shop.deposit(shop.customer.id, 1)

    with pytest.raises(AmountOutOfRangeError):
        shop.deposit(shop.customer.id, 1)


def test_a_correction_never_sinks_what_is_available_below_64_bits() -> None:
    shop = Shop(balance=10)
    shop.hold(10)
    shop.deposit(shop.customer.id, -MAX_MICROS)

    assert shop.purse.available == -MAX_MICROS
    with pytest.raises(AmountOutOfRangeError):
        shop.deposit(shop.customer.id, -1)


def test_minting_credit_and_setting_terms_are_the_platforms() -> None:
    shop = Shop()
    weak = shop.root_key("keys:write")
    deposit = c.DepositCredits(organization_id=shop.customer.id, amount_micros=1, reference="x")
    bound = shop.root_key("wallets:read", organization_id=shop.customer.id)

    for caller in (weak, bound):
        with pytest.raises(PermissionDeniedError):
            shop.ask(deposit, by=caller)
        with pytest.raises(PermissionDeniedError):
            shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, alert_below_micros=1), by=caller)
    # A caller bound to an organization mints no credit, whatever its permissions.
    platform = c.Asking(actor=shop.root.id, organization_id=shop.customer.id)
    with pytest.raises(PlatformOnlyError):
        shop.ask(deposit, by=platform)


def test_terms_that_are_left_out_stay() -> None:
    shop = Shop()
    terms(shop, credit_limit_micros=50)
    terms(shop, alert_below_micros=10)

    assert (shop.purse.credit_limit, shop.purse.alert_below) == (50, 10)


@pytest.mark.parametrize("value", [-1, MAX_MICROS + 1])
def test_terms_are_amounts(value: int) -> None:
    shop = Shop()

    with pytest.raises(InvalidError):
        terms(shop, credit_limit_micros=value)
    with pytest.raises(InvalidError):
        terms(shop, alert_below_micros=value)


def test_the_alert_is_told_below_the_line_and_not_on_it() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=50)
    shop.charge(50)

    assert alerts(shop) == []

    shop.charge(1)

    assert alerts(shop) == [49]


def test_it_is_told_once_until_the_wallet_was_filled_to_the_line() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=50)
    shop.charge(60)
    shop.charge(1)
    shop.deposit(shop.customer.id, 10)
    shop.charge(1)

    assert alerts(shop) == [40]

    shop.deposit(shop.customer.id, 2)
    shop.charge(1)

    assert alerts(shop) == [40, 49]


def test_held_money_is_not_available_so_it_counts_for_the_alert() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=50)
    shop.hold(51)

    assert alerts(shop) == [49]


def test_a_refund_to_the_line_arms_the_alert_anew() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=50)
    charge = charge_id_of(shop.charge(60))
    shop.refund(charge, 10)
    shop.charge(1)

    assert alerts(shop) == [40, 49]


def test_a_line_above_what_is_there_is_told_at_once() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=101)

    assert alerts(shop) == [100]


def test_another_line_is_another_alert_but_another_credit_limit_is_none() -> None:
    shop = Shop(balance=100)
    terms(shop, alert_below_micros=101)
    terms(shop, credit_limit_micros=5)

    assert alerts(shop) == [100]

    terms(shop, alert_below_micros=102)

    assert alerts(shop) == [100, 100]
