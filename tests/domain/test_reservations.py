"""Reservations are captured, released, or expire. The held amount is covered, whatever happens."""

import pytest

from domain import commands as c
from domain.accounts import Reservation
from domain.errors import AmountOutOfRangeError, InvalidError, NotFoundError, ReservationClosedError
from domain.money import MAX_MICROS
from keyledger_language import Use
from keyledger_language import events as e
from keyledger_language.events import Quota
from tests.domain.given import Shop, World


def stands(shop: Shop, reservation_id: str) -> Reservation:
    return shop.state.reservations[reservation_id]


def test_held_money_is_not_spent_and_cannot_be_spent_elsewhere() -> None:
    shop = Shop(balance=100)
    shop.hold(60)

    assert (shop.purse.balance, shop.purse.reserved, shop.purse.available) == (100, 60, 40)
    assert shop.charge(41).code == "billing_shortfall"
    assert shop.charge(40).code == "valid"


def test_a_reservation_counts_as_one_request_and_as_its_amount() -> None:
    quotas = (Quota(unit="requests", window="day", limit=2), Quota(unit="micros", window="day", limit=50))
    shop = Shop(quotas=quotas)
    shop.hold(50)

    assert (shop.quota(shop.shopper.id, 0).spent, shop.quota(shop.shopper.id, 1).spent) == (1, 50)
    assert shop.charge(1).code == "api_key_quota_exceeded"


# held, captured, final: taken, given back, held still, status
CAPTURES = """
    50   50  yes   50    0    0  captured
    50   20  yes   20   30    0  captured
    50    0  yes    0   50    0  captured
    50   20  no    20    0   30  open
    50   50  no    50    0    0  open
    50   70  yes   70    0    0  captured
"""


@pytest.mark.parametrize("row", CAPTURES.strip().splitlines())
def test_a_capture_takes_what_is_asked_and_a_final_one_gives_back_the_rest(row: str) -> None:
    held, asked, final, taken, back, left, status = row.split()
    shop = Shop(balance=100)
    reservation = shop.hold(int(held))

    event = shop.capture(reservation, int(asked), final=final == "yes").event

    assert event is not None
    assert (event.amount_micros, event.released_micros) == (int(taken), int(back))
    assert (stands(shop, reservation).held_micros, stands(shop, reservation).status) == (int(left), status)
    assert (shop.purse.balance, shop.purse.reserved) == (100 - int(taken), int(left))


def test_many_captures_take_their_parts_and_the_last_one_gives_back_the_rest() -> None:
    shop = Shop(balance=100)
    held = shop.hold(90)
    for part in (10, 20, 30):
        shop.capture(held, part, final=False)
    shop.capture(held, 5)

    assert (shop.purse.balance, shop.purse.reserved) == (35, 0)
    assert stands(shop, held).captured_micros == 65


def test_beyond_what_is_held_the_wallet_gives_what_it_can_and_the_rest_is_uncovered() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60)

    event = shop.capture(held, 150).event

    assert event is not None
    assert (event.amount_micros, event.held_micros, event.uncovered_micros) == (100, 60, 50)
    assert shop.purse.balance == 0


def test_beyond_what_is_held_the_quota_gives_what_it_can() -> None:
    shop = Shop(quotas=(Quota(unit="micros", window="month", limit=70),))
    held = shop.hold(60)

    event = shop.capture(held, 150).event

    assert event is not None
    assert (event.amount_micros, event.uncovered_micros) == (70, 80)
    assert shop.quota(shop.shopper.id).spent == 70


def test_beyond_what_is_held_the_credit_limit_counts() -> None:
    shop = Shop(balance=100)
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=20))
    held = shop.hold(100)

    event = shop.capture(held, 150).event

    assert event is not None
    assert (event.amount_micros, event.uncovered_micros) == (120, 30)


def test_an_address_and_a_permission_were_asked_for_when_it_was_reserved_and_are_not_again() -> None:
    shop = Shop(
        gateway={"required_dimensions": ("permission",)},
        allowed_ips=("10.0.0.0/8",),
    )
    held = shop.hold(10, use=Use(ip="10.1.2.3", permissions=("chat",)))

    event = shop.capture(held, 30).event

    assert event is not None
    assert (event.amount_micros, event.uncovered_micros) == (30, 0)


@pytest.mark.parametrize("ended", ["revoked", "disabled", "suspended"])
def test_what_is_held_is_covered_after_the_key_was_cut_off_and_not_a_micro_beyond(ended: str) -> None:
    shop = Shop(balance=100)
    held = shop.hold(60)
    if ended == "revoked":
        shop.ask(c.RevokeKey(key_id=shop.shopper.id))
    elif ended == "disabled":
        shop.ask(c.DisableKey(key_id=shop.shopper.id))
    else:
        shop.ask(c.SuspendOrganization(organization_id=shop.customer.id))

    event = shop.capture(held, 70).event

    assert event is not None
    assert (event.amount_micros, event.uncovered_micros) == (60, 10)


def test_a_reservation_keeps_the_multiplier_it_was_held_with() -> None:
    shop = Shop()
    plan = shop.plan(price_multiplier="2")
    shop.change(plan_id=plan.id)
    held = shop.hold(10)
    shop.ask(c.ChangePlan(plan_id=plan.id, price_multiplier="3"))

    event = shop.capture(held, 10).event

    assert event is not None
    assert (event.base_micros, event.price_multiplier, event.amount_micros) == (10, "2", 20)


def test_a_release_gives_back_what_is_held_still_and_once() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60)
    shop.capture(held, 10, final=False)
    first, again = shop.release(held), shop.release(held)

    assert (first.released_micros, first.replayed) == (50, False)
    assert (again.released_micros, again.replayed) == (0, True)
    assert (shop.purse.balance, shop.purse.reserved) == (90, 0)


def test_money_that_was_given_back_does_not_count_against_a_quota() -> None:
    shop = Shop(quotas=(Quota(unit="micros", window="day", limit=60),))
    held = shop.hold(60)
    shop.release(held)

    assert shop.quota(shop.shopper.id).spent == 0
    assert shop.charge(60).code == "valid"


def test_a_settled_reservation_is_closed() -> None:
    shop = Shop()
    captured, released = shop.hold(10), shop.hold(10)
    shop.capture(captured, 10)
    shop.release(released)

    with pytest.raises(ReservationClosedError):
        shop.capture(captured, 1)
    with pytest.raises(ReservationClosedError):
        shop.release(captured)
    with pytest.raises(ReservationClosedError):
        shop.capture(released, 1)


def test_it_is_held_to_its_last_microsecond_and_expires_at_its_time() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(9.999_999).tick()

    assert stands(shop, held).status == "open"

    shop.wait(0.000_001).tick()

    assert (stands(shop, held).status, shop.purse.available) == ("expired", 100)
    assert shop.last(e.ReservationExpired).released_micros == 60


def test_an_expiry_is_recorded_before_the_charge_that_needs_its_money() -> None:
    shop = Shop(balance=100)
    shop.hold(60, seconds=10)
    shop.wait(10)

    assert shop.charge(100).code == "valid"
    assert isinstance(shop.events[-2], e.ReservationExpired)


def test_an_expiry_that_nobody_recorded_yet_counts_all_the_same() -> None:
    # A group records a bounded number of expiries: a decision must not depend on the agenda alone.
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10)
    shop.state.agenda.clear()
    shop.charge(40)

    outcome = shop.capture(held, 70)

    assert (outcome.code, stands(shop, held).status) == ("billing_shortfall", "expired")
    assert (shop.purse.balance, shop.purse.reserved) == (60, 0)


def test_an_expiry_that_nobody_recorded_yet_is_recorded_by_the_release_that_finds_it() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10)
    shop.state.agenda.clear()
    shop.release(held)

    assert stands(shop, held).status == "expired"
    assert shop.purse.available == 100


def test_a_capture_after_expiry_is_decided_anew_all_or_nothing() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10).tick()
    shop.charge(50)

    assert shop.capture(held, 51).code == "billing_shortfall"
    assert shop.purse.balance == 50

    event = shop.capture(held, 50).event

    assert event is not None
    assert (event.amount_micros, event.held_micros, event.uncovered_micros) == (50, 0, 0)
    assert (shop.purse.balance, stands(shop, held).status) == (0, "captured")


def test_a_capture_after_expiry_of_a_dead_key_is_refused() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10).tick()
    shop.ask(c.RevokeKey(key_id=shop.shopper.id))

    assert shop.capture(held, 1).code == "revoked"
    assert shop.purse.balance == 100


def test_a_capture_after_expiry_is_asked_after_its_model_again_but_not_after_its_address() -> None:
    shop = Shop(allowed_ips=("10.0.0.0/8",))
    use = Use(ip="10.1.2.3", model="opus")
    fine, narrowed = shop.hold(5, seconds=1, use=use), shop.hold(5, seconds=1, use=use)
    shop.wait(1).tick()

    assert shop.capture(fine, 5).code == "valid"
    shop.ask(c.EditScopes(key_id=shop.shopper.id, scopes=c.NewScopes(models=("haiku",))))
    assert shop.capture(narrowed, 5).code == "model_denied"


def test_a_capture_after_expiry_is_no_second_request() -> None:
    shop = Shop(quotas=(Quota(unit="requests", window="day", limit=1),))
    held = shop.hold(60, seconds=10)
    shop.wait(10).tick()

    assert shop.capture(held, 60).code == "valid"
    assert shop.quota(shop.shopper.id).spent == 1


def test_parts_may_be_captured_after_expiry_until_one_is_final() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10).tick()
    shop.capture(held, 10, final=False)
    shop.capture(held, 20)

    assert (shop.purse.balance, shop.purse.reserved, stands(shop, held).status) == (70, 0, "captured")


def test_releasing_what_expired_is_harmless() -> None:
    shop = Shop(balance=100)
    held = shop.hold(60, seconds=10)
    shop.wait(10).tick()

    assert (shop.release(held).released_micros, shop.purse.available) == (0, 100)


@pytest.mark.parametrize("seconds, accepted", [(0, False), (1, True), (2_592_000, True), (2_592_001, False)])
def test_money_is_held_from_a_second_to_thirty_days(seconds: int, accepted: bool) -> None:  # noqa: FBT001
    shop = Shop()
    if accepted:
        assert shop.reserve(1, seconds=seconds).code == "valid"
        return
    with pytest.raises(InvalidError):
        shop.reserve(1, seconds=seconds)


def test_another_organizations_reservation_is_not_there() -> None:
    shop = Shop()
    held = shop.hold(10)
    stranger = shop.root_key("charges:write", organization_id=shop.organization().id)
    elsewhere = shop.root_key("charges:write", keyspace_id=shop.keyspace().id)

    for caller in (stranger, elsewhere):
        with pytest.raises(NotFoundError):
            shop.ask(c.ReleaseReservation(reservation_id=held), by=caller)
        command = c.CaptureReservation(reservation_id=held, request_id="x", base_micros=1)
        with pytest.raises(NotFoundError):
            shop.ask(command, by=caller)


def postpaid(shop: Shop) -> World:
    shop.ask(c.SetWalletTerms(organization_id=shop.customer.id, credit_limit_micros=None))
    return shop


def test_a_capture_beyond_the_range_of_64_bits_takes_what_fits() -> None:
    shop = Shop(balance=0)
    postpaid(shop)
    held = shop.hold(10)
    shop.charge(MAX_MICROS - 30)

    event = shop.capture(held, MAX_MICROS).event

    assert event is not None
    assert (event.amount_micros, shop.purse.balance) == (30, -MAX_MICROS)
    assert event.amount_micros + event.uncovered_micros == MAX_MICROS


def test_what_many_captures_leave_uncovered_stays_within_64_bits() -> None:
    shop = Shop(balance=10)
    held = shop.hold(10)
    shop.capture(held, MAX_MICROS - 5, final=False)

    with pytest.raises(AmountOutOfRangeError):
        shop.capture(held, MAX_MICROS, final=False)
    assert stands(shop, held).captured_base_micros == MAX_MICROS - 5


def test_a_late_capture_beyond_the_range_of_64_bits_is_refused_and_records_nothing() -> None:
    shop = Shop(balance=0)
    postpaid(shop)
    held = shop.hold(10, seconds=10)
    shop.charge(MAX_MICROS - 30)
    shop.wait(10)

    with pytest.raises(AmountOutOfRangeError):
        shop.capture(held, 31)
    assert shop.capture(held, 30).code == "valid"
