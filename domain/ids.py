"""Ids: `<kind>_<ULID>`. Time and randomness (or a position) are arguments."""

from __future__ import annotations

import re
from functools import lru_cache

from keyledger_language.instants import Instant

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {letter: value for value, letter in enumerate(_CROCKFORD)}
_ULID_PATTERN = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
ID_PATTERN = rf"(?:ks|org|prj|plan|key|chg|rsv|evt|whk|edge)_{_ULID_PATTERN}"
"""A regular expression for ids of all kinds."""
_ID = re.compile(ID_PATTERN)
_POSITION_BITS = 48
_LOW_BITS = 20
POSITION_PATTERN = r"([0-9]{1,15})(?:\.([1-9][0-9]{0,9}))?-([0-9]{1,15})"
_POSITION = re.compile(POSITION_PATTERN)

_PAIRS = tuple(left + right for left in _CROCKFORD for right in _CROCKFORD)
"""Ten bits at a time: each charge gets an id, and 26 divisions took a tenth of its decision."""


@lru_cache(maxsize=16)
def _head(bits: int) -> str:
    """The first 50 bits: 48 of the time are the same for a whole millisecond."""
    return "".join(_PAIRS[bits >> shift & 1023] for shift in (40, 30, 20, 10, 0))


def _ulid(milliseconds: int, low: int) -> str:
    low &= (1 << 80) - 1
    return "".join(
        (
            _head(milliseconds),
            _PAIRS[low >> 70],
            _PAIRS[low >> 60 & 1023],
            _PAIRS[low >> 50 & 1023],
            _PAIRS[low >> 40 & 1023],
            _PAIRS[low >> 30 & 1023],
            _PAIRS[low >> 20 & 1023],
            _PAIRS[low >> 10 & 1023],
            _PAIRS[low & 1023],
        )
    )


def new_id(kind: str, at: Instant, entropy: int) -> str:
    """A ULID of that time, with 80 bits of the given entropy."""
    return f"{kind}_{_ulid(at // 1000, entropy)}"


def placed_id(kind: str, at: Instant, *, partition: int, position: int) -> str:
    """A ULID whose low bits are the event's position in the log.

    There are many charges and reservations, and old ones are rarely needed: the position is in
    the id, so that finding one takes no index.
    """
    start = _placed_start(kind, at // 1000, partition, position >> _LOW_BITS)
    return f"{start}{_PAIRS[position >> 10 & 1023]}{_PAIRS[position & 1023]}"


@lru_cache(maxsize=16)
def _placed_start(kind: str, milliseconds: int, partition: int, high: int) -> str:
    """All but the last four letters: the same for a whole group, nearly always."""
    low = (partition << _POSITION_BITS) | (high << _LOW_BITS)
    return f"{kind}_{_ulid(milliseconds, low)}"[: -_LOW_BITS // 5]


def place_of(placed: str) -> tuple[int, int]:
    """(partition, position) of a placed id. The event found there must be compared with the id."""
    number = 0
    for letter in placed.rpartition("_")[2]:
        number = number << 5 | _VALUES[letter]
    low = number & ((1 << 80) - 1)
    return low >> _POSITION_BITS, low & ((1 << _POSITION_BITS) - 1)


def id_pattern(kind: str) -> str:
    """A regular expression for ids of one kind."""
    return f"{kind}_{_ULID_PATTERN}"


def is_id(kind: str, text: str) -> bool:
    """Whether this text is an id of that kind."""
    return text.startswith(f"{kind}_") and _ID.fullmatch(text) is not None


def format_position(prefix: str, number: int) -> str:
    """A position as clients see it: opaque to them, `<partition>-<number>` here.

    `prefix`: of the log and its epoch (`keyledger_language.position_prefix`). In an epoch later than the
    first, the text is `<partition>.<epoch>-<number>`: a log that has lost events gives their numbers to
    other events.
    """
    return f"{prefix}{number}"


def parse_position(text: str) -> tuple[int, int, int]:
    """(partition, epoch, number); ValueError if the text is not a position."""
    found = _POSITION.fullmatch(text)
    if found is None or found[2] == "1":
        msg = "not a position of this ledger"
        raise ValueError(msg)
    return int(found[1]), int(found[2] or 1), int(found[3])
