"""The interfaces between a projection and the code that runs and queries it: tables, sessions, queries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from keyledger_language.events import Event

Row = tuple[Any, ...]
Handler = Callable[[Sequence[Any], int], None]
"""Receives events of the type it is registered for that follow each other in the log, and the position
of the first of them."""


class Run(NamedTuple):
    """Events of one type that follow each other in the log."""

    first: int
    """The position of the first."""
    events: Sequence[Event]


class Column(NamedTuple):
    """The values of one column, for `unnest`; None is null, if the kind allows it."""

    kind: Literal["text", "bigint", "integer", "boolean", "bytes", "uuid"]
    values: Sequence[Any]


class ProjectionTable(NamedTuple):
    """A table of a projection, and the columns that identify a row."""

    name: str
    key: tuple[str, ...]


class SchemaTransaction(Protocol):
    """One transaction on one schema; `{schema}` in a statement stands for that schema."""

    def rows(self, statement: str, *columns: Column) -> list[Row]:
        """The rows of a SELECT."""
        ...

    def write(self, statement: str, *columns: Column) -> None:
        """Run an INSERT, UPDATE or DELETE."""
        ...


Writing = Callable[[SchemaTransaction], None]
"""Writes what a projection collected from one batch."""


class Projection(Protocol):
    """Rows derived from the log: the same log gives the same rows, however it is divided into batches."""

    name: str
    """Names its checkpoint; never changes."""
    version: int
    """Raised when the same events give different rows: then the projections are rebuilt."""
    definition: str
    """The DDL of its tables, with `{schema}`."""
    tables: tuple[ProjectionTable, ...]

    def handlers(self) -> Mapping[type[Event], Handler]:
        """The handler for each type of event; a handler only collects."""
        ...

    def held(self) -> int:
        """The approximate number of collected rows and events."""
        ...

    def take(self) -> Writing:
        """A function that writes what was collected since the last call.

        It runs on another thread, while the next batch is already being collected.
        """
        ...

    def forget(self) -> None:
        """After a lost transaction: drop what was collected, and what was assumed to be written."""
        ...


class Queries(Protocol):
    """Queries the projections; `{schema}` stands for their schema."""

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of a SELECT."""
        ...


class FoundEvent(NamedTuple):
    """An event that was read back from the log."""

    position: int
    version: int
    """Its number in its stream."""
    event: Event


class EventReader(Protocol):
    """Reads single events back: rows that would only repeat the log store a position instead."""

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
        """Events of one stream after the version `after`, in the requested order."""
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
    """A column of booleans."""
    return Column("boolean", values)


def byte_strings(values: Sequence[bytes]) -> Column:
    """A column of byte strings."""
    return Column("bytes", values)


def uuids(values: Sequence[bytes]) -> Column:
    """A column of UUIDs, 16 bytes each."""
    return Column("uuid", values)
