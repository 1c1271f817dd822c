"""Positions and ids at their borders."""

import pytest

from domain.ids import is_id, parse_position


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0-", "-1", "0-1-2", "a-1", "0-\u0661", "0-1234567890123456", " 0-1", "0-1\n"),
        *("0.-1", ".2-1", "0.0-1", "0.1-1", "0.02-1", "0.2.3-1", "0.\u0662-1", "0.12345678901-1", "0.2-"),
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_position(text)


# text: an id of a key?
IDS = """
    key_01ARZ3NDEKTSV4RRFFQ69G5FAV    yes
    key_01ARZ3NDEKTSV4RRFFQ69G5FA     no
    key_01ARZ3NDEKTSV4RRFFQ69G5FAVX   no
    key_81ARZ3NDEKTSV4RRFFQ69G5FAV    no
    key_01ARZ3NDEKTSV4RRFFQ69G5FAI    no
    key_01arz3ndektsv4rrffq69g5fav    no
    org_01ARZ3NDEKTSV4RRFFQ69G5FAV    no
"""


@pytest.mark.parametrize("row", IDS.strip().splitlines())
def test_an_id_is_its_kind_and_a_ulid(row: str) -> None:
    text, valid = row.split()

    assert is_id("key", text) == (valid == "yes")
