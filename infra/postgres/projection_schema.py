"""The schema that holds the projections: made, recognised, exchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any, Final, Self

from psycopg import Connection

from domain.events import Event
from domain.ports import BEGINNING, HistoryPoint
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

LIVE: Final = "projections"
REBUILD: Final = "projections_rebuild"
OLD: Final = "projections_old"

PROJECTING_CLASS: Final = ADVISORY_CLASS + 1
"""Of the lock that one projector per partition holds."""
REBUILDING_CLASS: Final = ADVISORY_CLASS + 2

_CHECKPOINTS: Final = """
CREATE TABLE {schema}.checkpoints (
    name text COLLATE "C" PRIMARY KEY,
    fingerprint text COLLATE "C" NOT NULL, -- of the projection's definition and version
    position bigint NOT NULL,
    mark bigint NOT NULL, -- of the log's history up to there
    epoch integer NOT NULL -- of the log, when it was last seen that this is its history
) WITH (fillfactor = 20);
"""
_MOVE: Final = "UPDATE {schema}.checkpoints SET position = %s, mark = %s WHERE position = %s AND mark = %s"
_CHECKPOINT_VERSION: Final = 2
_TELL: Final = "RETURNING pg_notify(%s, %s)"  # once per transaction, however many rows

_ConnectionOf = Connection[tuple[Any, ...]]


class MovedCheckpointError(Exception):
    """Somebody else has moved the checkpoint: a rebuild was swapped in, or a second projector runs."""


class ProjectionSession:
    """One transaction on one schema, for a projection to save itself with."""

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
    """All projections in one schema, with their common checkpoint; its moves are told on a NOTIFY channel."""

    def __init__(
        self,
        connection: _ConnectionOf,
        schema: str,
        projections: Sequence[Projection],
        *,
        told_on: str | None = None,
    ) -> None:
        self.connection = connection
        self.schema = schema
        self.projections = projections
        self._session = ProjectionSession(connection, schema)
        self._handlers = _handlers_by_type(projections)
        self._told_on = told_on
        self._move = f"{_MOVE.replace('{schema}', schema)} {_TELL if told_on else ''}".encode()

    def exist(self) -> bool:
        """Has the schema been filled with tables?"""
        row = self.connection.execute(
            "SELECT to_regclass(%s) IS NOT NULL", (f"{self.schema}.checkpoints",)
        ).fetchone()
        return bool(row and row[0])

    def are_current(self) -> bool:
        """Are they the tables of this program's projections?"""
        select = f"SELECT name, fingerprint FROM {self.schema}.checkpoints"
        found: dict[str, str] = dict(self.connection.execute(select.encode()).fetchall())
        return found == {projection.name: fingerprint(projection) for projection in self.projections}

    def create(self) -> None:
        """Make the tables, empty, at position 0."""
        connection = self.connection
        with connection.transaction():
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {self.schema}".encode())
            connection.execute(_CHECKPOINTS.replace("{schema}", self.schema).encode())
            for projection in self.projections:
                connection.execute(projection.definition.replace("{schema}", self.schema).encode())
                connection.execute(
                    f"INSERT INTO {self.schema}.checkpoints SELECT %s, %s, 0, 0, epoch"
                    " FROM ledger.identity".encode(),
                    (projection.name, fingerprint(projection)),
                )

    def drop(self) -> None:
        """Away with all of it."""
        self.connection.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE".encode())

    def position(self) -> int:
        """The position that all projections have reached."""
        select = f"SELECT coalesce(min(position), 0) FROM {self.schema}.checkpoints"
        row = self.connection.execute(select.encode()).fetchone()
        return int(row[0]) if row else 0

    def checkpoint(self) -> HistoryPoint:
        """The same with its mark, and the epoch in which it was known to be in the log."""
        select = f"SELECT position, mark, epoch FROM {self.schema}.checkpoints ORDER BY position LIMIT 1"
        row = self.connection.execute(select.encode()).fetchone()
        return HistoryPoint(*row) if row else BEGINNING

    def enter(self, epoch: int) -> None:
        """What they show is in the log of this epoch, too."""
        self.connection.execute(f"UPDATE {self.schema}.checkpoints SET epoch = %s".encode(), (epoch,))

    def remember(self, runs: Iterable[Run]) -> None:
        """Hand events to the projections that want them."""
        nobody: list[Handler] = []
        for run in runs:
            for handle in self._handlers.get(type(run.events[0]), nobody):
                handle(run.events, run.first)

    def held(self) -> int:
        """About how many rows and events they remember."""
        return sum(projection.held() for projection in self.projections)

    def take(self) -> list[Writing]:
        """What the projections make of all that they remember."""
        return [projection.take() for projection in self.projections]

    def write(self, writings: Sequence[Writing], before: tuple[int, int], after: tuple[int, int]) -> None:
        """Within a transaction: move the checkpoint from `before` to `after`, and the rows along.

        Both are a position and its mark.
        """
        told = () if self._told_on is None else (self._told_on, str(after[0]))
        moved = self.connection.execute(self._move, (*after, *before, *told), prepare=True).rowcount
        if moved != len(self.projections):
            raise MovedCheckpointError(f"the checkpoint in {self.schema} is not {before[0]}")
        for write in writings:
            write(self._session)

    def forget(self) -> None:
        """The transaction was lost."""
        for projection in self.projections:
            projection.forget()


def projected_channel(partition: int) -> str:
    """The NOTIFY channel on which the checkpoint is announced."""
    return f"keyledger_projected_p{partition}"


def connect_for_projections(conninfo: str, application_name: str) -> _ConnectionOf:
    """A session that writes projections."""
    connection = connect(conninfo, application_name)
    # What a crash of the server takes back is derived again, together with its checkpoint.
    connection.execute("SET synchronous_commit = off")
    register_packed_arrays(connection)
    return connection


def _handlers_by_type(projections: Sequence[Projection]) -> dict[type[Event], list[Handler]]:
    """Whom to call for an event of a type."""
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
    """The same array, said to be of another type: the element's oid stands at byte 8."""
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
