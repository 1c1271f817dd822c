"""Quotas of key, project and organization: all are checked, in this order; alerts are recorded once."""

import pytest

from domain import commands as c
from domain.errors import InvalidError
from domain.money import MAX_MICROS
from keyledger_language import Use
from keyledger_language import events as e
from keyledger_language.events import Quota
from keyledger_language.instants import to_text
from tests.domain.given import Shop, charge_id_of
from tests.moments import from_text


def quota(limit: int, *, unit: str = "micros", window: str = "day", alerts: tuple[int, ...] = ()) -> Quota:
    return Quota(unit=unit, window=window, limit=limit, alert_percents=alerts)  # type: ignore[arg-type]


def alerts(shop: Shop) -> list[tuple[str, int | None]]:
    return [(event.level, event.percent) for event in shop.all(e.ThresholdReached)]


# unit, limit, spent, asked: code
BORDERS = """
    micros     10   4   6   valid
    micros     10   4   7   api_key_quota_exceeded
    micros     10  10   0   valid
    micros     10  10   1   api_key_quota_exceeded
    micros      0   0   0   valid
    micros      0   0   1   api_key_quota_exceeded
    requests    1   -   9   valid
    requests    0   -   9   api_key_quota_exceeded
    requests    0   -   0   api_key_quota_exceeded
"""


@pytest.mark.parametrize("row", BORDERS.strip().splitlines())
def test_the_last_of_a_quota_is_given_and_nothing_beyond(row: str) -> None:
    unit, limit, spent, asked, code = row.split()
    shop = Shop()
    if spent not in ("-", "0"):
        shop.charge(int(spent))
    shop.change(quotas=(quota(int(limit), unit=unit),))

    assert shop.charge(int(asked)).code == code


def test_a_refusal_says_which_quota_what_is_left_and_when_it_begins_anew() -> None:
    shop = Shop(quotas=(quota(10, window="month"),))
    shop.charge(7)

    refusal = shop.charge(4).refusal

    assert refusal is not None
    assert (refusal.level, refusal.unit, refusal.window, refusal.limit, refusal.remaining) == (
        "key",
        "micros",
        "month",
        10,
        3,
    )
    assert refusal.resets_at is not None
    assert to_text(refusal.resets_at) == "2026-11-01T00:00:00.000000Z"


def test_a_quota_that_was_lowered_below_what_is_spent_refuses_money_but_not_what_is_free() -> None:
    shop = Shop()
    shop.charge(10)
    shop.change(quotas=(quota(5),))

    assert shop.charge(1).code == "api_key_quota_exceeded"
    assert shop.charge(0).code == "valid"
    assert shop.quota(shop.shopper.id).remaining == 0


def test_a_late_capture_is_no_request_even_where_those_are_overspent() -> None:
    shop = Shop()
    held = shop.hold(10, seconds=1)
    shop.charge(1)
    shop.wait(1).tick()
    shop.change(quotas=(quota(1, unit="requests"),))

    assert shop.capture(held, 10).code == "valid"


def test_a_quota_that_is_set_in_the_middle_of_a_month_knows_what_was_spent_before() -> None:
    shop = Shop()
    shop.charge(30)
    shop.change(quotas=(quota(40, window="month"), quota(2, unit="requests", window="total")))

    assert shop.quota(shop.shopper.id, 0).remaining == 10
    assert shop.charge(1).code == "valid"
    assert shop.charge(1).code == "api_key_quota_exceeded"


@pytest.mark.parametrize(
    "tight, code",
    [
        ("key", "api_key_quota_exceeded"),
        ("project", "project_quota_exceeded"),
        ("organization", "organization_quota_exceeded"),
        ("wallet", "billing_shortfall"),
    ],
)
def test_key_then_project_then_organization_then_wallet_the_first_that_is_short_refuses(
    tight: str, code: str
) -> None:
    order = ["key", "project", "organization", "wallet"]
    # All quotas after the tight one are used up, too, so that only the order decides.
    limit = {level: 5 if order.index(level) >= order.index(tight) else 100 for level in order}
    shop = Shop(
        balance=limit["wallet"],
        customer={"quotas": (quota(limit["organization"]),)},
        quotas=(quota(limit["key"]),),
    )
    project = shop.project(shop.customer.id, quotas=(quota(limit["project"]),))

    outcome = shop.charge(6, use=Use(project_id=project.id))

    assert outcome.code == code
    assert outcome.refusal is not None
    assert outcome.refusal.level == tight


def test_keys_of_a_project_and_of_an_organization_share_its_quota() -> None:
    shop = Shop(customer={"quotas": (quota(20),)})
    project = shop.project(shop.customer.id, quotas=(quota(10),))
    other = shop.key(shop.gateway.id, shop.customer.id)
    inside = Use(project_id=project.id)
    shop.charge(6, use=inside)

    assert shop.charge(5, key_id=other.id, use=inside).code == "project_quota_exceeded"
    assert shop.charge(4, key_id=other.id, use=inside).code == "valid"
    assert shop.charge(11, key_id=other.id).code == "organization_quota_exceeded"
    assert shop.charge(10, key_id=other.id).code == "valid"


def test_a_rotation_doubles_no_quota() -> None:
    shop = Shop(quotas=(quota(10),))
    shop.charge(10)
    shop.ask(c.RotateKey(key_id=shop.shopper.id, fingerprint=b"n" * 32, hint="k...next"))

    assert shop.charge(1).code == "api_key_quota_exceeded"


@pytest.mark.parametrize(
    "quotas",
    [
        (quota(-1),),
        (quota(MAX_MICROS + 1),),
        (quota(1), quota(2)),
        (quota(1, alerts=(0,)),),
        (quota(1, alerts=(101,)),),
        (quota(1, alerts=(50, 50)),),
    ],
)
def test_quotas_that_mean_nothing_are_refused(quotas: tuple[Quota, ...]) -> None:
    shop = Shop()

    with pytest.raises(InvalidError):
        shop.change(quotas=quotas)


def test_an_alert_is_told_when_its_percent_is_reached_and_not_a_micro_before() -> None:
    shop = Shop(quotas=(quota(10, alerts=(80, 100)),))
    shop.charge(7)

    assert alerts(shop) == []

    shop.charge(1)

    assert alerts(shop) == [("key", 80)]

    shop.charge(2)

    assert alerts(shop) == [("key", 80), ("key", 100)]


def test_one_use_may_reach_several_alerts_of_several_levels() -> None:
    shop = Shop(customer={"quotas": (quota(100, alerts=(10,)),)}, quotas=(quota(10, alerts=(100, 50)),))
    shop.charge(10)

    assert alerts(shop) == [("key", 50), ("key", 100), ("organization", 10)]


def test_an_alert_is_told_once_per_window_though_money_comes_back() -> None:
    shop = Shop(quotas=(quota(10, alerts=(50,)),))
    charge = charge_id_of(shop.charge(6))
    shop.refund(charge)
    shop.charge(6)

    assert alerts(shop) == [("key", 50)]


def test_an_alert_is_told_again_in_the_next_window() -> None:
    shop = Shop(quotas=(quota(10, alerts=(50,)),))
    shop.charge(6)
    shop.at("2026-10-17T00:00:00Z")
    shop.charge(6)

    assert alerts(shop) == [("key", 50), ("key", 50)]
    assert shop.last(e.ThresholdReached).window_start == from_text("2026-10-17T00:00:00Z") // 86_400_000_000


def test_a_capture_of_a_past_window_is_an_alert_of_that_window() -> None:
    shop = Shop(quotas=(quota(10, alerts=(80,)),)).at("2026-10-16T23:59:00Z")
    held = shop.hold(5)
    yesterday = shop.now // 86_400_000_000
    shop.at("2026-10-17T00:01:00Z")
    shop.charge(3)
    shop.capture(held, 8)

    assert [(event.window_start, event.value) for event in shop.all(e.ThresholdReached)] == [(yesterday, 8)]


def test_a_capture_of_a_past_window_tells_nothing_of_the_current_one() -> None:
    shop = Shop(quotas=(quota(10),)).at("2026-10-16T23:59:00Z")
    held = shop.hold(1)
    shop.at("2026-10-17T00:01:00Z")
    shop.charge(9)
    shop.change(quotas=(quota(10, alerts=(80,)),))
    shop.capture(held, 1)

    assert alerts(shop) == []

    shop.charge(0)

    assert alerts(shop) == [("key", 80)]
