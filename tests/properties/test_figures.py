"""Prices, windows, ids and times, against arithmetic that is right by construction."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from math import floor

from hypothesis import given
from hypothesis import strategies as st

from domain.ids import format_position, is_id, new_id, parse_position, place_of, placed_id
from domain.money import MAX_MICROS, price
from domain.windows import WINDOWS, window_end, window_start, window_starts
from keyledger_language import position_prefix
from keyledger_language.instants import DAY, from_datetime, to_datetime, to_text
from tests.moments import from_text
from tests.properties.recount import windows_of

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9990, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
INSTANTS = MOMENTS.map(from_datetime)
MULTIPLIERS = st.tuples(st.integers(0, 999_999), st.integers(0, 999_999), st.integers(0, 6))


@given(st.integers(0, MAX_MICROS), MULTIPLIERS)
def test_a_price_is_the_exact_fraction_rounded_half_up(base: int, parts: tuple[int, int, int]) -> None:
    whole, millionths, places = parts
    digits = f"{millionths:06}"[:places]
    text = f"{whole}.{digits}" if digits else str(whole)

    assert price(base, text) == floor(base * Fraction(text) + Fraction(1, 2))


@given(MOMENTS)
def test_a_window_holds_its_moment_and_begins_and_ends_by_the_calendar(moment: datetime) -> None:
    at = from_datetime(moment)
    monday = moment.date() - timedelta(days=moment.weekday())
    began = [moment.date(), monday, moment.date().replace(day=1), date(1970, 1, 1)]
    starts = window_starts(at // DAY)

    assert [date(1970, 1, 1) + timedelta(days=start) for start in starts] == began
    assert [window_start(window, at) for window in WINDOWS] == list(starts)
    for window, start in zip(WINDOWS, starts, strict=True):
        end = window_end(window, start)
        if end is None:
            continue
        index = WINDOWS.index(window)

        assert start * DAY <= at < end
        # The last microsecond belongs to it, and the one after it does not.
        assert windows_of(end - 1)[index] == windows_of(at)[index] != windows_of(end)[index]


@given(INSTANTS)
def test_an_instant_is_the_same_after_a_trip_through_text(at: int) -> None:
    assert from_text(to_text(at)) == at
    assert from_datetime(to_datetime(at)) == at


@given(INSTANTS, st.integers(0, 2**31), st.integers(0, 2**48 - 1))
def test_a_placed_id_tells_its_place(at: int, partition: int, position: int) -> None:
    made = placed_id("chg", at, partition=partition, position=position)

    assert place_of(made) == (partition, position)
    assert is_id("chg", made)
    assert not is_id("rsv", made)


@given(st.lists(INSTANTS, min_size=2, max_size=5), st.integers(0, 2**80 - 1))
def test_ids_are_in_the_order_of_their_time(instants: list[int], entropy: int) -> None:
    by_time = sorted(instants, key=lambda at: at // 1_000)

    assert sorted(new_id("key", at, entropy) for at in instants) == [
        new_id("key", at, entropy) for at in by_time
    ]


@given(st.integers(0, 10**6), st.integers(1, 2**31 - 1), st.integers(0, 10**15 - 1))
def test_a_position_is_the_same_after_a_trip_through_text(partition: int, epoch: int, number: int) -> None:
    text = format_position(position_prefix(partition, epoch), number)
    assert parse_position(text) == (partition, epoch, number)


@given(st.integers(0, 10**6), st.integers(0, 10**15 - 1))
def test_the_first_epoch_is_not_named(partition: int, number: int) -> None:
    assert format_position(position_prefix(partition, 1), number) == f"{partition}-{number}"


@given(st.text(max_size=30))
def test_any_text_is_a_position_or_a_value_error(text: str) -> None:
    try:
        place = parse_position(text)
    except ValueError:
        return
    partition, epoch, number = place
    assert parse_position(format_position(position_prefix(partition, epoch), number)) == place
