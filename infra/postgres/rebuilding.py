"""Rebuild the projections beside the live ones: to replace them, or to check whether they are correct."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection

from domain.projecting import Projection, ProjectionTable
from infra.postgres.mapper import EventMapper
from infra.postgres.projecting_log import RunReader
from infra.postgres.projection_pipeline import Pipeline, Progress
from infra.postgres.projection_schema import (
    LIVE,
    OLD,
    REBUILD,
    REBUILDING_CLASS,
    ProjectionTables,
    connect_for_projections,
)
from infra.postgres.tracking import TRACKING_TABLE, sql_tracked
from keyledger_language.events import Event

MOST_SHOWN: Final = 20
"""Differences that are shown per table; all are counted."""
_DROP_PATIENCE: Final = "200ms"

_ConnectionOf = Connection[tuple[Any, ...]]
OnProgress = Callable[[Progress], None]


class RebuildRunningError(Exception):
    """Another rebuild (or check) is under way."""

    def __init__(self) -> None:
        super().__init__("Another rebuild of the projections is running.")


class Difference(NamedTuple):
    """A row in which the live projections differ from the log."""

    table: str
    key: dict[str, Any]
    live: dict[str, Any] | None
    """None: the row is missing."""
    rebuilt: dict[str, Any] | None
    """None: there should be no such row."""


class TableCheck(NamedTuple):
    """What a comparison of one table found."""

    table: str
    rows: int
    """In the rebuilt table."""
    different: int
    differences: list[Difference]
    """The first of them, by key."""


class Check(NamedTuple):
    """What a comparison of all projections found."""

    position: int
    tables: list[TableCheck]

    @property
    def clean(self) -> bool:
        """Whether the projections match the log."""
        return not any(table.different for table in self.tables)


def rebuild(
    conninfo: str,
    projections: Sequence[Projection],
    mapper: EventMapper[Event],
    *,
    partition: int = 0,
    on_progress: OnProgress | None = None,
) -> int:
    """Rebuild everything and swap it in; returns the position reached. The live ones continue meanwhile."""
    with _rebuilding(conninfo, projections, mapper, partition, on_progress) as new:
        new.catch_up()
        connection = new.tables.connection
        connection.execute(f"ANALYZE {_names(REBUILD, projections)}".encode())
        new.catch_up()
        with connection.transaction():
            # The projector waits from here on, for at most a few thousand events.
            new.catch_up(until=_freeze_live(connection, partition))
            _swap(connection)
        _drop_old(connection)
        return new.position


def check(
    conninfo: str,
    projections: Sequence[Projection],
    mapper: EventMapper[Event],
    *,
    partition: int = 0,
    on_progress: OnProgress | None = None,
) -> Check:
    """Rebuild everything up to where the live projections are, compare, and discard it."""
    with _rebuilding(conninfo, projections, mapper, partition, on_progress) as new:
        new.catch_up(until=_live_position(new.tables.connection, partition))
        connection = new.tables.connection
        connection.execute(f"ANALYZE {_names(REBUILD, projections)}".encode())
        with connection.transaction():
            # One snapshot of the live rows and their checkpoint, while they move on.
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            connection.execute("SET LOCAL work_mem = '64MB'")
            position = _live_position(connection, partition)
            new.catch_up(until=position)
            tables = [_compare(connection, table) for p in projections for table in p.tables]
        return Check(position, tables)


@contextmanager
def _rebuilding(
    conninfo: str,
    projections: Sequence[Projection],
    mapper: EventMapper[Event],
    partition: int,
    on_progress: OnProgress | None,
) -> Generator[Pipeline]:
    """Empty tables in the second schema, for one rebuild at a time; what is left of them is dropped."""
    with (
        contextlib.closing(connect_for_projections(conninfo, "keyledger rebuild")) as connection,
        contextlib.closing(connect_for_projections(conninfo, "keyledger rebuild's reader")) as reader,
    ):
        row = connection.execute(
            "SELECT pg_try_advisory_lock(%s, %s)", (REBUILDING_CLASS, partition)
        ).fetchone()
        if not row or not row[0]:
            raise RebuildRunningError
        tables = ProjectionTables(connection, REBUILD, projections, partition=partition)
        tables.forget()
        tables.drop()
        tables.create()
        run = RunReader(reader, partition, mapper)
        try:
            with Pipeline(tables, run, position=0, on_written=on_progress) as new:
                yield new
        finally:
            tables.forget()
            if not connection.closed:
                tables.drop()
                # Closing releases it as well, but only once the server has noticed.
                connection.execute("SELECT pg_advisory_unlock_all()")


def _live_position(connection: _ConnectionOf, partition: int) -> int:
    row = connection.execute(f"SELECT {sql_tracked(LIVE, partition)}".encode()).fetchone()
    return int(row[0] or 0) if row else 0


def _freeze_live(connection: _ConnectionOf, partition: int) -> int:
    """Block the projector, and return how far it is: the new tables must not be behind it."""
    tracking = f"{LIVE}.{TRACKING_TABLE}"
    row = connection.execute("SELECT to_regclass(%s) IS NOT NULL", (tracking,)).fetchone()
    if not row or not row[0]:
        return 0
    connection.execute(f"LOCK TABLE {tracking} IN ACCESS EXCLUSIVE MODE".encode())
    return _live_position(connection, partition)


def _swap(connection: _ConnectionOf) -> None:
    connection.execute(f"DROP SCHEMA IF EXISTS {OLD} CASCADE".encode())
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {LIVE}".encode())
    connection.execute(f"ALTER SCHEMA {LIVE} RENAME TO {OLD}".encode())
    connection.execute(f"ALTER SCHEMA {REBUILD} RENAME TO {LIVE}".encode())


def _drop_old(connection: _ConnectionOf) -> None:
    """Drop the old tables; queries that still read them finish first, and no other queues up behind us."""
    connection.execute(f"SET lock_timeout = '{_DROP_PATIENCE}'".encode())
    for _ in range(50):
        with contextlib.suppress(psycopg.errors.LockNotAvailable):
            connection.execute(f"DROP SCHEMA IF EXISTS {OLD} CASCADE".encode())
            return
    # The next rebuild drops it.


def _names(schema: str, projections: Sequence[Projection]) -> str:
    return ", ".join(f"{schema}.{table.name}" for projection in projections for table in projection.tables)


# -- comparing ------------------------------------------------------------------------------------


def _compare(connection: _ConnectionOf, table: ProjectionTable) -> TableCheck:
    keys = ", ".join(table.key)
    same_key = " AND ".join(f"l.{column} = r.{column}" for column in table.key)
    # Whole rows are compared, including nulls; a row that only one side has is distinct from a missing one.
    different = f"""
        FROM {LIVE}.{table.name} AS l FULL JOIN {REBUILD}.{table.name} AS r ON {same_key}
        WHERE l IS DISTINCT FROM r
    """
    counted = connection.execute(
        f"SELECT (SELECT count(*) FROM {REBUILD}.{table.name}), (SELECT count(*) {different})".encode()
    ).fetchone()
    assert counted is not None, "a count is a row"
    rows, count = counted
    shown = []
    if count:
        order = ", ".join(f"coalesce(l.{column}, r.{column})" for column in table.key)
        select = f"SELECT to_jsonb(l), to_jsonb(r) {different} ORDER BY {order} LIMIT {MOST_SHOWN}"
        found = connection.execute(select.encode()).fetchall()
        shown = [_difference(table, keys.split(", "), live, rebuilt) for live, rebuilt in found]
    return TableCheck(table.name, rows, count, shown)


def _difference(
    table: ProjectionTable, keys: Sequence[str], live: dict[str, Any] | None, rebuilt: dict[str, Any] | None
) -> Difference:
    """Only the fields that differ, if both have the row."""
    either = live or rebuilt or {}
    key = {column: either[column] for column in keys}
    if live is None or rebuilt is None:
        return Difference(table.name, key, live, rebuilt)
    changed = [column for column in rebuilt if live.get(column) != rebuilt[column]]
    return Difference(
        table.name,
        key,
        {column: live.get(column) for column in changed},
        {column: rebuilt[column] for column in changed},
    )
