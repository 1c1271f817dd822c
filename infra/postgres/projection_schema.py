"""The schema that holds the projections: how it is created, recognised and replaced."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, Self

from psycopg import Connection

from domain.projecting import Column, Handler, Projection, Row, Run, Writing
from infra.postgres.arrays import (
    BigintArray,
    BooleanArray,
    ByteaArray,
    IntegerArray,
    PackedArray,
    TextArray,
    UuidArray,
    register_packed_arrays,
)
from infra.postgres.connections import ADVISORY_CLASS, connect
from infra.postgres.tracking import LedgerTrackingRecorder
from keyledger_language.events import Event
from keyledger_language.history import HistoryPoint
from keyledger_reading.datastore import SessionDatastore

LIVE: Final = "projections"
REBUILD: Final = "projections_rebuild"
OLD: Final = "projections_old"

PROJECTING_CLASS: Final = ADVISORY_CLASS + 1
"""Of the lock that one projector per partition holds."""
REBUILDING_CLASS: Final = ADVISORY_CLASS + 2

_DEFINITIONS: Final = """
CREATE TABLE {schema}.definitions (
    name text COLLATE "C" PRIMARY KEY, -- of a projection
    fingerprint text COLLATE "C" NOT NULL -- of its tables and version
);
"""
_CHECKPOINT_VERSION: Final = 3

_ConnectionOf = Connection[tuple[Any, ...]]


class ProjectionSession:
    """One transaction on one schema, in which a projection saves its rows."""

    def __init__(self, connection: _ConnectionOf, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._statements: dict[str, bytes] = {}

    def rows(self, statement: str, *columns: Column) -> list[Row]:
        """What a SELECT finds."""
        cursor = self._connection.execute(
            self._in_schema(statement), _packed(columns), prepare=True, binary=True
        )
        return cursor.fetchall()

    def write(self, statement: str, *columns: Column) -> None:
        """Carry out a change."""
        self._connection.execute(self._in_schema(statement), _packed(columns), prepare=True)

    def _in_schema(self, statement: str) -> bytes:
        text = self._statements.get(statement)
        if text is None:
            text = self._statements[statement] = statement.replace("{schema}", self._schema).encode()
        return text


class ProjectionTables:
    """All projections in one schema, and their common checkpoint, announced on a NOTIFY channel."""

    def __init__(
        self,
        connection: _ConnectionOf,
        schema: str,
        projections: Sequence[Projection],
        *,
        partition: int = 0,
        told_on: str | None = None,
    ) -> None:
        self.connection = connection
        self.schema = schema
        self.projections = projections
        self._session = ProjectionSession(connection, schema)
        self._handlers = _handlers_by_type(projections)
        self._tracking = LedgerTrackingRecorder(
            SessionDatastore(lambda: connection, schema=schema), partition=partition, told_on=told_on
        )

    def exist(self) -> bool:
        """Whether the schema has tables."""
        tables = "SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = %s)"
        row = self.connection.execute(tables, (self.schema,)).fetchone()
        return bool(row and row[0])

    def are_current(self) -> bool:
        """Whether they are the tables of this program's projections."""
        definitions = f"{self.schema}.definitions"
        row = self.connection.execute("SELECT to_regclass(%s) IS NULL", (definitions,)).fetchone()
        if row and row[0]:
            return False  # of an earlier version of the program
        found: dict[str, str] = dict(
            self.connection.execute(f"SELECT name, fingerprint FROM {definitions}".encode()).fetchall()
        )
        return found == {projection.name: fingerprint(projection) for projection in self.projections}

    def create(self) -> None:
        """Create the tables, empty, at position 0."""
        connection = self.connection
        with connection.transaction():
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}".encode())
            connection.execute(_DEFINITIONS.replace("{schema}", self.schema).encode())
            self._tracking.create_table()
            for projection in self.projections:
                connection.execute(projection.definition.replace("{schema}", self.schema).encode())
                connection.execute(
                    f"INSERT INTO {self.schema}.definitions VALUES (%s, %s)".encode(),
                    (projection.name, fingerprint(projection)),
                )

    def drop(self) -> None:
        """Drop the schema and everything in it."""
        self.connection.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE".encode())

    def checkpoint(self) -> HistoryPoint:
        """What they show: position and mark, and the epoch in which these were known to be in the log."""
        return self._tracking.point()

    def enter(self, epoch: int) -> None:
        """Record that what they show is in the log of this epoch, too."""
        self._tracking.enter(epoch)

    def remember(self, runs: Iterable[Run]) -> None:
        """Pass events to the projections that handle them."""
        nobody: list[Handler] = []
        for run in runs:
            for handle in self._handlers.get(type(run.events[0]), nobody):
                handle(run.events, run.first)

    def held(self) -> int:
        """About how many rows and events they remember."""
        return sum(projection.held() for projection in self.projections)

    def take(self) -> list[Writing]:
        """What the projections write for all that they remember."""
        return [projection.take() for projection in self.projections]

    def write(self, writings: Sequence[Writing], before: tuple[int, int], after: tuple[int, int]) -> None:
        """Within a transaction: move the checkpoint from `before` to `after`, and write the rows.

        Both are a position and its mark. Raises MovedCheckpointError.
        """
        self._tracking.move(before, after)
        for write in writings:
            write(self._session)

    def forget(self) -> None:
        """Have the projections forget what they remember: the transaction was lost."""
        for projection in self.projections:
            projection.forget()


def projected_channel(partition: int) -> str:
    """The NOTIFY channel on which the checkpoint is announced."""
    return f"keyledger_projected_p{partition}"


def connect_for_projections(conninfo: str, application_name: str) -> _ConnectionOf:
    """A session that writes projections."""
    connection = connect(conninfo, application_name)
    # What a crash of the server loses is derived again, together with its checkpoint.
    connection.execute("SET synchronous_commit = off")
    register_packed_arrays(connection)
    return connection


def _handlers_by_type(projections: Sequence[Projection]) -> dict[type[Event], list[Handler]]:
    """The handlers to call for events of a type."""
    combined: dict[type[Event], list[Handler]] = {}
    for projection in projections:
        for event_type, handler in projection.handlers().items():
            combined.setdefault(event_type, []).append(handler)
    return combined


def fingerprint(projection: Projection) -> str:
    """Changes when the projection's tables or their meaning do."""
    described = f"{_CHECKPOINT_VERSION}\n{projection.version}\n{projection.definition}"
    return sha256(described.encode()).hexdigest()[:32]


class _NullableTextArray(TextArray):
    """text[] with nulls."""

    __slots__ = ()

    def __new__(cls, values: Sequence[str | None]) -> Self:
        """Pack texts and nulls."""
        encoded = ByteaArray([None if value is None else value.encode() for value in values])
        return bytes.__new__(cls, _relabelled(encoded, cls.element_oid))


class _NullableBigintArray(BigintArray):
    """bigint[] with nulls."""

    __slots__ = ()

    def __new__(cls, values: Sequence[int | None]) -> Self:
        """Pack integers and nulls."""
        encoded = ByteaArray([None if value is None else value.to_bytes(8, signed=True) for value in values])
        return bytes.__new__(cls, _relabelled(encoded, cls.element_oid))


def _relabelled(packed: bytes, element_oid: int) -> bytes:
    """The same array, labelled as one of another type: the element's oid is at byte 8."""
    return packed[:8] + element_oid.to_bytes(4) + packed[12:]


_PLAIN: Final[dict[str, type[PackedArray]]] = {
    "text": TextArray,
    "bigint": BigintArray,
    "integer": IntegerArray,
    "boolean": BooleanArray,
    "bytes": ByteaArray,
    "uuid": UuidArray,
}
_NULLABLE: Final[dict[str, type[PackedArray]]] = {"text": _NullableTextArray, "bigint": _NullableBigintArray}


def _packed(columns: Sequence[Column]) -> list[PackedArray]:
    return [_pack(column) for column in columns]


def _pack(column: Column) -> PackedArray:
    kinds = _NULLABLE if column.kind in _NULLABLE and None in column.values else _PLAIN
    return kinds[column.kind](column.values)
