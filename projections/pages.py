"""Lists by pages: a cursor names the last row seen, so that a page costs the same at any depth."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from domain.projecting import Queries

MOST_INDEXED = 200
"""Longer texts are cut before they go into an index: a B-tree refuses entries over 2.7 kB."""


class Page(NamedTuple):
    """Ids in the requested order, and where the next page begins."""

    ids: list[str]
    next_cursor: str | None


class Sort(NamedTuple):
    """An order of rows: by one column, then by id."""

    name: str
    column: str
    value_type: type[int | str]
    descending: bool

    @property
    def order(self) -> str:
        """For ORDER BY."""
        direction = "DESC" if self.descending else "ASC"
        return f"{self.column} {direction}, id {direction}"

    @property
    def behind(self) -> str:
        """For WHERE: the rows after a cursor."""
        return f"({self.column}, id) {'<' if self.descending else '>'} (%s, %s)"


class _Cursor(msgspec.Struct, array_like=True, frozen=True):
    sort: str
    value: int | str
    id: str


def sort_of(text: str | None, columns: Mapping[str, tuple[str, type[int | str]]], default: str) -> Sort:
    """Parse `created_at` (ascending) or `-created_at`; ValueError for anything that is not sortable."""
    name = text or default
    column = columns.get(name.removeprefix("-"))
    if column is None:
        raise ValueError(f"sort must be one of {', '.join(columns)}, with - in front for descending order")
    return Sort(name, *column, descending=name.startswith("-"))


def encode_cursor(sort: Sort, value: int | str, last_id: str) -> str:
    """The row with which a page ended, as an opaque text."""
    return _encode(_Cursor(sort.name, value, last_id))


def decode_cursor(sort: Sort, text: str) -> tuple[int | str, str]:
    """The (value, id) after which to continue; ValueError if the text is not a cursor of this list."""
    cursor = _decode(text, _Cursor)
    if cursor.sort != sort.name or type(cursor.value) is not sort.value_type:
        raise ValueError("the cursor belongs to another list")
    value = storable(cursor.value) if isinstance(cursor.value, str) else cursor.value
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("the cursor belongs to another list")
    return value, storable(cursor.id)


def encode_number(number: int) -> str:
    """A cursor that is a position or a version."""
    return _encode([number])


def decode_number(text: str) -> int:
    """The number in a cursor; ValueError if the text is not a cursor of this list."""
    number: int = _decode(text, tuple[int])[0]
    if not 0 <= number < 2**63:
        raise ValueError("the cursor belongs to another list")
    return number


def encode_place(position: int, passed: int) -> str:
    """A cursor that names one of the lines at a position."""
    return _encode([position, passed])


def decode_place(text: str) -> tuple[int, int]:
    """(position, how many of its lines to skip); ValueError if the text is not a cursor of this list."""
    position, passed = _decode(text, tuple[int, int])
    if not (0 <= position < 2**63 and 0 <= passed < 2**31):
        raise ValueError("the cursor belongs to another list")
    return position, passed


class Filters:
    """The conditions that rows must meet, and their values."""

    def __init__(self) -> None:
        self.conditions: list[str] = []
        self.values: list[Any] = []

    def only(self, condition: str, *values: Any) -> None:
        """Add a condition."""
        self.conditions.append(condition)
        self.values.extend(values)

    def equal(self, **wanted: str | None) -> None:
        """Add a condition for each column that must hold a text; None filters nothing."""
        for column, text in wanted.items():
            if text is not None:
                self.only(f"{column} = %s", indexed(text))


async def page(
    queries: Queries,
    table: str,
    filters: Filters,
    *,
    branches: tuple[str, Sequence[Any]],
    sort: Sort,
    limit: int,
    cursor: str | None,
) -> Page:
    """One page of the rows that pass the filters and have one of the branches' values in their column.

    The column leads the indexes, so the scan for each of its values is already in order; PostgreSQL
    merges the scans, and a page costs the same at any depth.
    """
    column, choices = branches
    behind: tuple[Any, ...] = () if cursor is None else decode_cursor(sort, cursor)
    conditions = " AND ".join((f"{column} = %s", *filters.conditions, *([sort.behind] if behind else [])))
    scan = (
        f"(SELECT id, {sort.column} FROM {{schema}}.{table} WHERE {conditions}"
        f" ORDER BY {sort.order} LIMIT {limit + 1:d})"
    )
    statement = scan
    if len(choices) > 1:
        statement = f"{' UNION ALL '.join([scan] * len(choices))} ORDER BY {sort.order} LIMIT {limit + 1:d}"
    parameters = [value for choice in choices for value in (choice, *filters.values, *behind)]
    rows = await queries.rows(statement, parameters)
    if len(rows) <= limit:
        return Page([row[0] for row in rows], None)
    last_id, last_value = rows[limit - 1]
    return Page([row[0] for row in rows[:limit]], encode_cursor(sort, last_value, last_id))


def storable(text: str) -> str:
    """A text as PostgreSQL can store it: NUL and lone surrogates are replaced."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def indexed(text: str | None) -> str | None:
    """A text as stored in an indexed column; the same for writing and for queries."""
    return None if text is None else storable(text[:MOST_INDEXED])


def sortable(name: str) -> str:
    """A name as people look for it in a sorted list."""
    return storable(name.strip().casefold()[:MOST_INDEXED])


def searchable(*parts: str | None) -> str:
    """The text that a search looks at, in lower case."""
    return storable("\n".join(part for part in parts if part).lower())


def containing(q: str) -> str:
    """The LIKE pattern of a search."""
    escaped = storable(q).lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def _encode(value: Any) -> str:
    return urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def _decode(text: str, shape: Any) -> Any:
    try:
        return msgspec.json.decode(
            urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4)), type=shape
        )
    except (ValueError, msgspec.MsgspecError):
        raise ValueError("the cursor is not one that a list has returned") from None
