"""What a projection and those who run and ask it promise each other: tables, sessions, queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from keyledger_language.events import Event

Row = tuple[Any, ...]
Handler = Callable[[Sequence[Any], int], None]
"""Takes events of the type it is registered for that follow each other in the log, and the position of
the first of them."""


class Run(NamedTuple):
    """Events of one type that follow each other in the log."""

    first: int
    """The position of the first."""
    events: Sequence[Event]


class Column(NamedTuple):
    """The values of one column, for `unnest`; None is null where the kind allows it."""

    kind: Literal["text", "bigint", "integer", "boolean", "bytes", "uuid"]
    values: Sequence[Any]


class ProjectionTable(NamedTuple):
    """A table of a projection, and what names a row of it."""

    name: str
    key: tuple[str, ...]


class SchemaTransaction(Protocol):
    """One transaction on one schema; `{schema}` in a statement stands for that schema."""

    def rows(self, statement: str, *columns: Column) -> list[Row]:
        """What a SELECT finds."""
        ...

    def write(self, statement: str, *columns: Column) -> None:
        """Carry out an INSERT, UPDATE or DELETE."""
        ...


Writing = Callable[[SchemaTransaction], None]
"""Writes what a projection remembered of one batch."""


class Projection(Protocol):
    """Rows that follow from the log: the same log gives the same rows, however it is cut in batches."""

    name: str
    """Names its checkpoint; never changes."""
    version: int
    """Raised when the same events give other rows: the projections are then rebuilt."""
    definition: str
    """The DDL of its tables, with `{schema}`."""
    tables: tuple[ProjectionTable, ...]

    def handlers(self) -> Mapping[type[Event], Handler]:
        """What to call for which event; a handler only remembers."""
        ...

    def held(self) -> int:
        """About how many rows and events are remembered."""
        ...

    def take(self) -> Writing:
        """What was remembered since the last time, as the writing of it.

        It is carried out on another thread, while the next batch is remembered already.
        """
        ...

    def forget(self) -> None:
        """A transaction was lost: drop what was remembered, and what was thought to be written."""
        ...


class Queries(Protocol):
    """Asks the projections; `{schema}` stands for where they are."""

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """What a SELECT finds."""
        ...


class FoundEvent(NamedTuple):
    """An event as it was read back from the log."""

    position: int
    version: int
    """Its number in its stream."""
    event: Event


class EventReader(Protocol):
    """Reads single events back: rows that would only repeat the log name a position instead."""

    async def at(self, positions: Sequence[int]) -> list[FoundEvent]:
        """The events at these positions, in order of position."""
        ...

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[FoundEvent]:
        """The events of these types (names on disk) from position `first` to `last`, both included.

        Only those of one organization, if it is named.
        """
        ...

    async def stream(
        self, stream: str, types: Sequence[str] | None, *, after: int, limit: int, newest_first: bool
    ) -> list[FoundEvent]:
        """Events of one stream behind the version `after` in the order that is asked for."""
        ...

    async def claimed(self, digests: Sequence[bytes]) -> list[int]:
        """The positions that these claims point to."""
        ...


def texts(values: Sequence[str | None]) -> Column:
    """A column of texts."""
    return Column("text", values)


def bigints(values: Sequence[int | None]) -> Column:
    """A column of 64-bit integers."""
    return Column("bigint", values)


def integers(values: Sequence[int | None]) -> Column:
    """A column of 32-bit integers."""
    return Column("integer", values)


def booleans(values: Sequence[bool]) -> Column:
    """A column of truths."""
    return Column("boolean", values)


def byte_strings(values: Sequence[bytes]) -> Column:
    """A column of byte strings."""
    return Column("bytes", values)


def uuids(values: Sequence[bytes]) -> Column:
    """A column of UUIDs, 16 bytes each."""
    return Column("uuid", values)
