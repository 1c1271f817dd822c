"""State rows in PostgreSQL: one per subject, flushed with their checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import Connection, Cursor

from domain.ports import CheckpointMovedError, LogUnavailableError, StateBlock, StateRow
from infra.postgres.arrays import BooleanArray, ByteaArray, TextArray
from infra.postgres.connections import connect
from infra.postgres.sessions import Sessions

_PAGES: Final = 128
"""So many pages are read at once, some thousand rows: more cost PostgreSQL more time for each row."""
_SNAPSHOT: Final = (
    b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    # Grouping as rows come is right for a handful of tables; the planner would sort all of them first.
    b"SET LOCAL enable_sort = off",
)


class PostgresStateRows:
    """The state rows of one partition."""

    def __init__(self, conninfo: str, *, partition: int = 0) -> None:
        table = f"ledger.state_rows_p{partition}"
        self._conninfo = conninfo
        self._partition = partition
        self._sessions = Sessions(conninfo, f"keyledger p{partition} state", most=2)
        select = f"SELECT subject, data, resident FROM {table}"
        # Joined by PostgreSQL: a row of its own for each would cost both sides as much again.
        self._select_blocks = (
            "SELECT split_part(subject, '/', 1), count(*), string_agg(data, ''::bytea)"
            f" FROM {table} WHERE resident AND ctid >= %s::tid AND ctid < %s::tid GROUP BY 1"
        ).encode()
        # Locked, so that nobody moves rows to other pages while they are read.
        self._lock = f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode()
        self._count_pages = (
            f"SELECT pg_relation_size('{table}') / current_setting('block_size')::bigint"
        ).encode()
        self._select_some = f"{select} WHERE subject = ANY(%s)".encode()
        self._upsert = (
            f"INSERT INTO {table} (subject, data, resident) SELECT * FROM unnest(%s, %s, %s)"
            " ON CONFLICT (subject) DO UPDATE SET data = excluded.data, resident = excluded.resident"
        ).encode()
        self._delete = f"DELETE FROM {table} WHERE subject = ANY(%s)".encode()
        self._delete_all = f"DELETE FROM {table}".encode()

    async def save(
        self, through: int, rows: Sequence[StateRow], removed: Sequence[str], *, behind: int
    ) -> None:
        """Write rows and checkpoint in one transaction, if the checkpoint is the one expected."""
        await self._sessions.run(lambda connection: self._save(connection, through, rows, removed, behind))

    async def through(self) -> int:
        """The checkpoint."""
        select = b"SELECT through FROM ledger.checkpoints WHERE partition = %s"
        rows = await self._sessions.run(lambda c: c.execute(select, (self._partition,)).fetchall())
        return int(rows[0][0]) if rows else 0

    async def load(self) -> AsyncIterator[StateBlock]:
        """All resident rows, in blocks, out of one snapshot, page by page as they lie on disk."""
        connection, pages = await asyncio.to_thread(self._open_snapshot)
        fetching: asyncio.Future[list[StateBlock]] | None = None
        try:
            for start in range(0, pages + _PAGES, _PAGES):
                fetched = fetching
                # While these are decoded, PostgreSQL reads the next.
                fetching = asyncio.ensure_future(asyncio.to_thread(self._fetch, connection, start))
                if fetched is not None:
                    for block in await fetched:
                        yield block
        finally:
            if fetching is not None:
                await asyncio.wait({fetching})
            connection.close()

    def _open_snapshot(self) -> tuple[Connection[Any], int]:
        try:
            connection = connect(self._conninfo, f"keyledger p{self._partition} state")
            for statement in (*_SNAPSHOT, self._lock):
                connection.execute(statement)
            [(pages,)] = connection.execute(self._count_pages).fetchall()
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error
        return connection, pages

    def _fetch(self, connection: Connection[Any], start: int) -> list[StateBlock]:
        pages = f"({start},0)", f"({start + _PAGES},0)"
        try:
            cursor = connection.execute(self._select_blocks, pages, prepare=True, binary=True)
            return [StateBlock(*row) for row in cursor.fetchall()]
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error

    async def find(self, subjects: Sequence[str]) -> list[StateRow]:
        """These rows, resident or not."""
        return await self._select(self._select_some, TextArray(subjects)) if subjects else []

    async def clear(self) -> None:
        """Forget all rows and the checkpoint."""
        await self._sessions.run(self._clear)

    async def close(self) -> None:
        """Close the connections."""
        await self._sessions.close()

    async def _select(self, select: bytes, parameter: str | TextArray) -> list[StateRow]:
        return await self._sessions.run(lambda connection: _select(connection, select, parameter))

    def _save(
        self,
        connection: Connection[Any],
        through: int,
        rows: Sequence[StateRow],
        removed: Sequence[str],
        behind: int,
    ) -> None:
        subjects, datas, residents = zip(*rows, strict=True) if rows else ((),) * 3
        # It waits for the disk: after a crash of the server the checkpoint must be the one we
        # know, or the rows that changed between the two would be missed by the next save.
        with connection.transaction():
            self._move_checkpoint(connection, behind, through)
            if removed:
                connection.execute(self._delete, (TextArray(removed),))
            if rows:
                arrays = TextArray(subjects), ByteaArray(datas), BooleanArray(residents)
                connection.execute(self._upsert, arrays, prepare=True)

    def _move_checkpoint(self, connection: Connection[Any], behind: int, through: int) -> None:
        connection.execute(
            "INSERT INTO ledger.checkpoints (partition, through) VALUES (%s, 0) ON CONFLICT DO NOTHING",
            (self._partition,),
        )
        moved = connection.execute(
            "UPDATE ledger.checkpoints SET through = %s WHERE partition = %s AND through = %s",
            (through, self._partition, behind),
        )
        if moved.rowcount != 1:
            raise CheckpointMovedError(f"The checkpoint is not {behind} any more.")

    def _clear(self, connection: Connection[Any]) -> None:
        with connection.transaction():
            connection.execute(self._delete_all)
            connection.execute("DELETE FROM ledger.checkpoints WHERE partition = %s", (self._partition,))


def _select(connection: Connection[Any], select: bytes, parameter: str | TextArray) -> list[StateRow]:
    cursor = Cursor(connection, row_factory=_state_row)
    return cursor.execute(select, (parameter,), prepare=True, binary=True).fetchall()


def _state_row(_: Any) -> Callable[[Sequence[Any]], StateRow]:
    return StateRow._make
