"""A refund is a compensating entry: in part or whole, never more, in the window of the use."""

import pytest

from domain import commands as c
from domain.errors import AmountOutOfRangeError, InvalidError, NotFoundError, RefundExceedsChargeError
from domain.money import MAX_MICROS
from keyledger_language import events as e
from keyledger_language.events import Quota
from tests.domain.given import Shop, charge_id_of


def test_a_charge_is_given_back_whole() -> None:
    shop = Shop(balance=100)
    charge = charge_id_of(shop.charge(60))
    shop.refund(charge)

    assert shop.purse.balance == 100
    assert (shop.purse.charged, shop.purse.refunded) == (60, 60)


# charged, given back already, asked (- for all that is left): given back, or refused
REFUNDS = """
    60   0   60   60
    60   0   61   refused
    60   0    1    1
    60  59    1    1
    60  59    2   refused
    60  20    -   40
    60  60    -   refused
    60  60    1   refused
     0   0    -   refused
"""


@pytest.mark.parametrize("row", REFUNDS.strip().splitlines())
def test_never_more_is_given_back_than_was_taken(row: str) -> None:
    charged, before, asked, given = row.split()
    shop = Shop(balance=100)
    charge = charge_id_of(shop.charge(int(charged)))
    if int(before):
        shop.refund(charge, int(before))
    amount = None if asked == "-" else int(asked)

    if given == "refused":
        with pytest.raises(RefundExceedsChargeError):
            shop.refund(charge, amount)
        return
    event = shop.refund(charge, amount).event

    assert (event.amount_micros, event.refunded_micros) == (int(given), int(before) + int(given))
    assert shop.purse.balance == 100 - int(charged) + int(before) + int(given)


@pytest.mark.parametrize("amount", [0, -1])
def test_nothing_and_less_cannot_be_given_back(amount: int) -> None:
    shop = Shop()
    charge = charge_id_of(shop.charge(60))

    with pytest.raises(InvalidError):
        shop.refund(charge, amount)


def test_a_capture_is_a_charge_that_can_be_given_back() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60)
    charge = charge_id_of(shop.capture(held, 150))
    shop.refund(charge)

    # The uncovered amount was never taken.
    assert shop.purse.balance == 100


def test_a_refund_makes_room_in_the_quota_but_is_a_request_still() -> None:
    quotas = (Quota(unit="micros", window="day", limit=60), Quota(unit="requests", window="day", limit=2))
    shop = Shop(quotas=quotas)
    charge = charge_id_of(shop.charge(60))
    shop.refund(charge, 20)

    assert shop.charge(21).code == "api_key_quota_exceeded"
    assert shop.charge(20).code == "valid"
    assert shop.charge(0).code == "api_key_quota_exceeded"


def test_a_refund_belongs_to_the_window_of_the_use_and_makes_no_room_in_another() -> None:
    quotas = (Quota(unit="micros", window="day", limit=60), Quota(unit="micros", window="month", limit=100))
    shop = Shop(quotas=quotas).at("2026-10-16T23:59:59.999999Z")
    charge = charge_id_of(shop.charge(60))
    shop.at("2026-10-17T00:00:00Z")
    shop.charge(10)
    shop.refund(charge)

    assert [shop.quota(shop.shopper.id, n).spent for n in (0, 1)] == [10, 10]
    assert shop.last(e.UsageRefunded).window_at == shop.last(e.UsageCharged).at - 1


def test_money_goes_back_to_whoever_paid_whatever_became_of_the_key() -> None:
    shop = Shop(balance=100)
    charge = charge_id_of(shop.charge(60))
    shop.ask(c.DeleteKey(key_id=shop.shopper.id))
    shop.refund(charge)

    assert shop.purse.balance == 100


def test_what_is_no_charge_and_what_is_another_organizations_is_not_there() -> None:
    shop = Shop()
    charge = charge_id_of(shop.charge(60))
    elsewhere = charge[:-4] + "ZZZZ"
    stranger = shop.root_key("charges:write", organization_id=shop.organization().id)

    with pytest.raises(NotFoundError):
        shop.refund(elsewhere)
    with pytest.raises(NotFoundError):
        shop.ask(c.RefundCharge(charge_id=charge, request_id="x"), by=stranger)
    with pytest.raises(NotFoundError):
        shop.refund(shop.hold(5).replace("rsv_", "chg_"))


def test_a_refund_that_would_lift_the_wallet_beyond_64_bits_is_refused() -> None:
    shop = Shop(balance=100)
    charge = charge_id_of(shop.charge(100))
    shop.deposit(shop.customer.id, MAX_MICROS - 100)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=None))

    shop.refund(charge, 100)
    assert shop.purse.balance == MAX_MICROS
    other = charge_id_of(shop.charge(0))
    with pytest.raises(RefundExceedsChargeError):
        shop.refund(other, 1)


def test_refund_and_top_up_together_stay_within_64_bits() -> None:
    shop = Shop(balance=0)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=None))
    charge = charge_id_of(shop.charge(100))
    shop.deposit(shop.customer.id, MAX_MICROS)

    shop.refund(charge, 99)
    shop.refund(charge, 1)
    assert shop.purse.balance == MAX_MICROS
    with pytest.raises(AmountOutOfRangeError):
        shop.deposit(shop.customer.id, 1)
