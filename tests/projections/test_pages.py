"""Cursors and search patterns: opaque to callers, never trusted when they come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.pages import (
    MOST_INDEXED,
    containing,
    decode_cursor,
    decode_number,
    encode_cursor,
    encode_number,
    indexed,
    searchable,
    sort_of,
    sortable,
    storable,
)

BY_NAME = sort_of("name", {"name": ("sort_name", str)}, "name")
BY_TIME = sort_of("-created_at", {"created_at": ("created_at", int)}, "name")


@given(st.integers(-(2**63) + 1, 2**63 - 1), st.from_regex(r"key_[0-9A-Z]{26}", fullmatch=True))
def test_a_cursor_says_again_where_a_page_ended(value: int, last_id: str) -> None:
    assert (value, last_id) == decode_cursor(BY_TIME, encode_cursor(BY_TIME, value, last_id))


@given(st.text())
def test_any_text_is_a_cursor_or_a_value_error(text: str) -> None:
    for decode in (lambda: decode_cursor(BY_NAME, text), lambda: decode_number(text)):
        try:
            decode()
        except ValueError as error:
            assert "cursor" in str(error)  # noqa: PT017 - most texts raise, some do not


def test_a_cursor_belongs_to_its_order() -> None:
    with pytest.raises(ValueError, match="another list"):
        decode_cursor(BY_NAME, encode_cursor(BY_TIME, 5, "key_1"))
    with pytest.raises(ValueError, match="another list"):
        decode_cursor(BY_TIME, encode_cursor(BY_TIME, 2**63, "key_1"))


@given(st.integers(0, 2**63 - 1))
def test_a_number_is_a_cursor_too(number: int) -> None:
    assert number == decode_number(encode_number(number))


@given(st.text(st.characters()))
def test_any_text_can_be_stored_and_indexed(text: str) -> None:
    for made in (
        storable(text),
        searchable(text, None, text),
        sortable(text),
        indexed(text),
        containing(text),
    ):
        assert made is not None
        assert "\0" not in made
        made.encode()
    assert len(indexed(text) or "") <= MOST_INDEXED


def test_a_search_takes_wildcards_for_what_they_are() -> None:
    assert containing("50%_\\") == "%50\\%\\_\\\\%"
