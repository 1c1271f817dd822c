"""Windows are UTC calendar days, ISO weeks and months; a use belongs to the window of its request."""

import pytest

from domain.windows import WINDOWS, Window, window_end, window_start, window_starts
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, to_text
from tests.domain.given import Shop
from tests.moments import from_text

# moment: day, week (from Monday), month
CALENDAR = """
    2026-10-16T12:00:00Z          2026-10-16   2026-10-12   2026-10-01
    2026-10-18T23:59:59.999999Z   2026-10-18   2026-10-12   2026-10-01
    2026-10-19T00:00:00Z          2026-10-19   2026-10-19   2026-10-01
    2026-10-31T23:59:59.999999Z   2026-10-31   2026-10-26   2026-10-01
    2026-11-01T00:00:00Z          2026-11-01   2026-10-26   2026-11-01
    2026-12-31T23:59:59.999999Z   2026-12-31   2026-12-28   2026-12-01
    2027-01-01T00:00:00Z          2027-01-01   2026-12-28   2027-01-01
    2024-02-28T23:59:59.999999Z   2024-02-28   2024-02-26   2024-02-01
    2024-02-29T00:00:00Z          2024-02-29   2024-02-26   2024-02-01
    2024-03-01T00:00:00Z          2024-03-01   2024-02-26   2024-03-01
    2023-02-28T23:59:59Z          2023-02-28   2023-02-27   2023-02-01
    2023-03-01T00:00:00Z          2023-03-01   2023-02-27   2023-03-01
    2100-02-28T00:00:00Z          2100-02-28   2100-02-22   2100-02-01
    2100-03-01T00:00:00Z          2100-03-01   2100-03-01   2100-03-01
    1970-01-01T00:00:00Z          1970-01-01   1969-12-29   1970-01-01
"""


@pytest.mark.parametrize("row", CALENDAR.strip().splitlines())
def test_a_moment_is_in_its_day_its_iso_week_and_its_month(row: str) -> None:
    moment, *starts = row.split()
    at = from_text(moment)
    windows: tuple[Window, ...] = ("day", "week", "month")

    assert [to_text(window_start(window, at) * DAY)[:10] for window in windows] == starts
    assert [to_text(start * DAY)[:10] for start in window_starts(at // DAY)[:3]] == starts


# window, its first day, the first day after it
ENDS = """
    day     2024-02-28   2024-02-29
    day     2023-02-28   2023-03-01
    week    2026-12-28   2027-01-04
    month   2024-02-01   2024-03-01
    month   2023-02-01   2023-03-01
    month   2026-01-01   2026-02-01
    month   2026-04-01   2026-05-01
    month   2026-12-01   2027-01-01
"""


@pytest.mark.parametrize("row", ENDS.strip().splitlines())
def test_a_window_ends_where_the_next_begins(row: str) -> None:
    name, start, end = row.split()
    window: Window = next(one for one in WINDOWS if one == name)
    ends_at = window_end(window, from_text(f"{start}T00:00:00Z") // DAY)

    assert ends_at == from_text(f"{end}T00:00:00Z")


def test_all_time_has_no_end() -> None:
    assert window_end("total", 0) is None


# window, last moment of one, first moment of the next
TURNS = """
    day     2026-10-16T23:59:59.999999Z   2026-10-17T00:00:00Z
    week    2026-10-18T23:59:59.999999Z   2026-10-19T00:00:00Z
    week    2026-12-31T23:59:59.999999Z   2027-01-04T00:00:00Z
    month   2026-10-31T23:59:59.999999Z   2026-11-01T00:00:00Z
    month   2028-02-29T23:59:59.999999Z   2028-03-01T00:00:00Z
    month   2026-12-31T23:59:59.999999Z   2027-01-01T00:00:00Z
"""


@pytest.mark.parametrize("row", TURNS.strip().splitlines())
def test_a_quota_begins_anew_with_its_window_while_nobody_looks(row: str) -> None:
    window, last, first = row.split()
    shop = Shop(quotas=(Quota(unit="micros", window=window, limit=10),))  # type: ignore[arg-type]
    shop.at(last)
    shop.charge(10)

    assert shop.charge(1).code == "api_key_quota_exceeded"

    shop.at(first)

    assert shop.quota(shop.shopper.id).remaining == 10
    assert shop.charge(10).code == "valid"


def test_a_quota_of_all_time_never_begins_anew() -> None:
    shop = Shop(quotas=(Quota(unit="micros", window="total", limit=10),))
    shop.charge(10)
    shop.at("2036-01-01T00:00:00Z")

    assert shop.charge(1).code == "api_key_quota_exceeded"


def test_a_clock_that_steps_back_reopens_no_window() -> None:
    shop = Shop(quotas=(Quota(unit="micros", window="day", limit=10),)).at("2026-10-16T23:59:00Z")
    shop.charge(10)
    shop.at("2026-10-17T00:00:00Z")
    shop.charge(10)
    shop.at("2026-10-16T23:00:00Z")

    assert shop.charge(1).code == "api_key_quota_exceeded"
    assert shop.state.at == from_text("2026-10-17T00:00:00Z")


def test_a_capture_after_midnight_counts_for_the_day_on_which_it_was_reserved() -> None:
    shop = Shop(quotas=(Quota(unit="micros", window="day", limit=10),)).at("2026-10-16T23:59:00Z")
    held = shop.hold(4)
    shop.at("2026-10-17T00:01:00Z")
    event = shop.capture(held, 20).event

    assert event is not None
    # Of yesterday's ten, four were held and six were left.
    assert (event.amount_micros, event.uncovered_micros) == (10, 10)
    assert shop.charge(10).code == "valid"


def test_yesterdays_tally_is_kept_while_something_is_held_in_it_and_no_longer() -> None:
    shop = Shop().at("2026-10-31T23:59:00Z")
    one, other = shop.hold(4, seconds=3 * 86_400), shop.hold(5, seconds=3 * 86_400)
    shop.at("2026-11-02T00:01:00Z")
    shop.charge(1)
    counters = shop.state.counters

    past = counters[shop.shopper.id].past or {}
    assert {name.partition("/")[0] for name in past} == {"day", "week", "month"}

    shop.capture(one, 4)

    assert counters[shop.shopper.id].past is not None

    shop.release(other)

    assert all(counters[subject].past is None for subject in (shop.shopper.id, shop.customer.id))
    assert all(counters[subject].held is None for subject in (shop.shopper.id, shop.customer.id))


def test_a_capture_after_expiry_is_decided_anew_in_the_window_in_which_it_is_asked_for() -> None:
    # Yesterday's tally was dropped with the reservation: there is nothing to check against.
    shop = Shop(quotas=(Quota(unit="micros", window="day", limit=10),)).at("2026-10-16T23:59:00Z")
    shop.charge(6)
    held = shop.hold(4, seconds=30)
    shop.at("2026-10-17T00:01:00Z")
    shop.charge(7)

    assert shop.capture(held, 4).code == "api_key_quota_exceeded"
    assert shop.capture(held, 3).code == "valid"
    assert shop.quota(shop.shopper.id).spent == 10
