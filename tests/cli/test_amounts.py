"""Amounts, limits and times as people write and read them."""

from datetime import UTC, datetime

import pytest

from services.cli.amounts import micros_of, money, quota_of, rate_limit_of, seconds_of, time_of

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

AMOUNTS = [
    ("12.50", 12_500_000, "12.50"),
    ("0.000001", 1, "0.000001"),
    ("-3", -3_000_000, "-3.00"),
    ("1,234.5", 1_234_500_000, "1,234.50"),
    ("9223372036854.775807", 2**63 - 1, "9,223,372,036,854.775807"),
]


@pytest.mark.parametrize("text,micros,shown", AMOUNTS)
def test_an_amount_is_exact_both_ways(text: str, micros: int, shown: str) -> None:
    assert micros == micros_of(text)
    assert shown == money(micros)


@pytest.mark.parametrize("text", ["", "much", "0.0000001", "9223372036854.775808", "nan", "inf"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not an amount"):
        micros_of(text)


QUOTAS = [
    ("money/month=2.5@80", {"unit": "micros", "window": "month", "limit": 2_500_000, "alert_percents": [80]}),
    ("micros/day=5", {"unit": "micros", "window": "day", "limit": 5}),
    ("requests/total=1000", {"unit": "requests", "window": "total", "limit": 1000}),
]  # fmt: skip


@pytest.mark.parametrize("text,quota", QUOTAS)
def test_a_quota_in_one_word(text: str, quota: dict[str, object]) -> None:
    assert quota == quota_of(text)


@pytest.mark.parametrize("text", ["25", "money/year=1", "requests/day=1.5", "money/day=", "gold/day=1"])
def test_what_is_no_quota_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        quota_of(text)


RATES = [
    ("100/60s", {"name": "per-60s", "limit": 100, "window_seconds": 60}),
    ("10/m", {"name": "per-m", "limit": 10, "window_seconds": 60}),
    ("burst=5/1s@openai", {"name": "burst", "limit": 5, "window_seconds": 1, "provider": "openai"}),
]


@pytest.mark.parametrize("text,limit", RATES)
def test_a_rate_limit_in_one_word(text: str, limit: dict[str, object]) -> None:
    assert limit == rate_limit_of(text)


@pytest.mark.parametrize("text", ["100", "100/", "fast", "1/1y"])
def test_what_is_no_rate_limit_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        rate_limit_of(text)


TIMES = [
    ("2027-01-31", "2027-01-31T00:00:00Z"),
    ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
    ("30d", "2026-12-21T12:00:00Z"),
    ("-90m", "2026-11-21T10:30:00Z"),
]


@pytest.mark.parametrize("text,moment", TIMES)
def test_a_time_or_a_span_from_now(text: str, moment: str) -> None:
    assert moment == time_of(text, NOON)


@pytest.mark.parametrize("text", ["soon", "2027-13-01", "99999999w"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time"):
        time_of(text, NOON)


def test_a_span_is_in_seconds_unless_it_says_otherwise() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "15m", "1d")] == [90, 90, 900, 86_400]
