"""A row is read only by a program to which it means the same."""

import types
from typing import Any

import msgspec
import pytest

from services.ledger import row_format
from services.ledger.row_format import schema


def array(*fields: Any, name: str = "Subject") -> Any:
    """A struct that is saved as an array of its fields."""
    return msgspec.defstruct(name, fields, array_like=True)


@pytest.mark.parametrize(
    "other",
    [
        array(("spent", int), ("held", int)),
        array(("held", int), ("balance", int)),
        array(("held", int)),
        array(("held", int), ("spent", int), ("rest", int, 0)),
        array(("held", int), ("spent", str)),
    ],
    ids=["fields swapped", "field renamed", "field gone", "field more", "another type"],
)
def test_a_row_of_another_shape_is_told_by_its_schema(monkeypatch: pytest.MonkeyPatch, other: Any) -> None:
    schemas = set()
    for shape in (array(("held", int), ("spent", int)), other):
        monkeypatch.setitem(row_format.LATER, "subjects", types.GenericAlias(tuple, (shape, int)))
        schemas.add(schema())

    assert len(schemas) == 2


def test_a_shape_inside_of_another_is_part_of_its_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    schemas = set()
    for fields in ((("held", int), ("spent", int)), (("spent", int), ("held", int))):
        inner = types.GenericAlias(tuple, (array(*fields, name="Inner"), ...))
        monkeypatch.setitem(row_format.LATER, "subjects", array(("inner", inner | None)))
        schemas.add(schema())

    assert len(schemas) == 2


def test_rows_that_come_to_mean_something_else_have_another_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    before = schema()
    assert schema() == before

    monkeypatch.setattr(row_format, "_FORMAT", row_format._FORMAT + 1)

    assert schema() != before
