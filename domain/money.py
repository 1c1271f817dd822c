"""Money is an integer count of micros; a price multiplier is an exact decimal."""

from __future__ import annotations

import re
from functools import lru_cache

MAX_MICROS = 2**63 - 1
"""Signed 64 bits: about nine trillion units of currency."""

ONE = "1"
_SCALE = 1_000_000
_MULTIPLIER = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?")


@lru_cache(maxsize=4096)
def parse_multiplier(text: str) -> int:
    """A decimal string with up to six places, in millionths; ValueError for anything else."""
    if _MULTIPLIER.fullmatch(text) is None:
        msg = 'a price multiplier is a decimal string such as "1.25", with up to six places'
        raise ValueError(msg)
    whole, _, places = text.partition(".")
    return int(whole) * _SCALE + int(places.ljust(6, "0"))


def price(base_micros: int, multiplier: str) -> int:
    """The base price times the multiplier, rounded half up to a whole micro."""
    if multiplier == ONE:
        return base_micros
    return (base_micros * parse_multiplier(multiplier) * 2 + _SCALE) // (2 * _SCALE)
