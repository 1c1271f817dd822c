"""Times and ids at their borders."""

import pytest

from domain.ids import is_id, parse_position
from domain.instants import from_text, to_text


@pytest.mark.parametrize(
    "text",
    [
        "2026-10-16T14:00:00+02:00",
        "2026-10-16T12:00:00Z",
        "2026-10-16t12:00:00z",
        "2026-10-16T12:00:00.000000Z",
    ],
)
def test_one_instant_has_many_names_and_one_of_ours(text: str) -> None:
    assert to_text(from_text(text)) == "2026-10-16T12:00:00.000000Z"


@pytest.mark.parametrize(
    "text",
    [
        "2026-10-16T12:00:00",
        "2026-10-16",
        "soon",
        "",
        "2026-02-29T00:00:00Z",
        "9999-12-31T23:59:59-23:00",
        "0001-01-01T00:00:00+01:00",
    ],
)
def test_what_has_no_zone_or_is_no_time_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_text(text)


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
