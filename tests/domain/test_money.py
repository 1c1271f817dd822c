"""Prices are exact decimals, rounded half up once."""

import pytest

from domain.money import parse_multiplier, price

# base, multiplier, amount
PRICES = """
    10            1          10
    10            1.0        10
    10            1.25       13
    10            1.24       12
    1             0.5         1
    1             0.499999    0
    3             0.5         2
    1             0.000001    0
    500000        0.000001    1
    499999        0.000001    0
    0             999999.999999  0
    7             0           0
    9223372036854775807  1   9223372036854775807
"""


@pytest.mark.parametrize("row", PRICES.strip().splitlines())
def test_a_price_is_rounded_half_up_to_a_whole_micro(row: str) -> None:
    base, multiplier, amount = row.split()

    assert price(int(base), multiplier) == int(amount)


@pytest.mark.parametrize(
    "text",
    ["", ".5", "1.", "-1", "+1", "1e3", "1.1234567", "1,5", " 1", "1\n", "1234567", "NaN", "\u0661", "1_0"],
)
def test_a_multiplier_is_a_decimal_string_with_up_to_six_places(text: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        parse_multiplier(text)
