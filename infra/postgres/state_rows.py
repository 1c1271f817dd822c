"""State rows in PostgreSQL: one per subject, flushed with their checkpoint.

Rows that no start reads are in a separate table.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Final

import psycopg
from psycopg import Connection

from domain.ports import CheckpointMovedError, LogUnavailableError, StateBlock, StateRow
from infra.postgres.arrays import ByteaArray, TextArray
from infra.postgres.connections import connect
from infra.postgres.sessions import Sessions
from keyledger_language.history import BEGINNING, HistoryPoint

_PAGES: Final = 2_048
"""How many pages are read at once, some ten thousand rows: fewer cost PostgreSQL more time for each
row, and decoding many more would block the event loop."""
_AHEAD: Final = 2
_LARGE: Final = 2_000
"""PostgreSQL may keep a longer value outside of its page: how many such values there are is unknown."""
_SNAPSHOT: Final = (
    b"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    # Grouping rows as they arrive is right for a handful of tables; the planner would sort all rows first.
    b"SET LOCAL enable_sort = off",
)


class PostgresStateRows:
    """The state rows of one partition."""

    def __init__(self, conninfo: str, *, partition: int = 0) -> None:
        table = f"ledger.state_rows_p{partition}"
        settled = f"{table}_settled"
        self._conninfo = conninfo
        self._partition = partition
        self._sessions = Sessions(conninfo, f"keyledger p{partition} state", most=2)
        # Concatenated by PostgreSQL: a separate row for each would cost the reader twice as much. Large
        # ones stay separate: a value cannot have more than 1 GB, and a ledger with more could never start.
        self._select_blocks = (
            "SELECT split_part(subject, '/', 1), count(*), string_agg(data, ''::bytea)"
            f" FROM {table} WHERE ctid >= %s::tid AND ctid < %s::tid"
            f" GROUP BY 1, CASE WHEN octet_length(data) > {_LARGE} THEN subject END"
        ).encode()
        # Locked, so that rows are not moved to other pages while they are read.
        self._lock = f"LOCK TABLE {table} IN ACCESS SHARE MODE".encode()
        # Values outside of their page are read with it: then fewer pages are enough.
        self._count_pages = (
            f"SELECT pg_relation_size('{table}') / size,"
            f" {_PAGES} * pg_relation_size('{table}') / greatest(size, pg_table_size('{table}')) + 1"
            " FROM (SELECT current_setting('block_size')::bigint AS size) AS block"
        ).encode()
        self._select_some = (
            f"SELECT subject, data, true FROM {table} WHERE subject = ANY(%s)"
            f" UNION ALL SELECT subject, data, false FROM {settled} WHERE subject = ANY(%s)"
        ).encode()
        self._upsert, self._upsert_settled = _upsert(table), _upsert(settled)
        self._delete, self._delete_settled = _delete(table), _delete(settled)
        self._delete_all = f"DELETE FROM {table}; DELETE FROM {settled}".encode()

    async def save(
        self, through: HistoryPoint, rows: Sequence[StateRow], removed: Sequence[str], *, behind: HistoryPoint
    ) -> None:
        """Write rows and checkpoint in one transaction, if the checkpoint is the one expected."""
        await self._sessions.run(lambda connection: self._save(connection, through, rows, removed, behind))

    async def through(self) -> HistoryPoint:
        """The checkpoint."""
        select = b"SELECT through, mark, epoch FROM ledger.checkpoints WHERE partition = %s"
        rows = await self._sessions.run(lambda c: c.execute(select, (self._partition,)).fetchall())
        return HistoryPoint(*rows[0]) if rows else BEGINNING

    async def load(self) -> AsyncIterator[StateBlock]:
        """All resident rows, in blocks, from one snapshot, page by page in their order on disk."""
        connection, pages, step = await asyncio.to_thread(self._open_snapshot)
        reader = ThreadPoolExecutor(1, f"keyledger p{self._partition} loading")
        try:
            slices = iter([(start, start + step) for start in range(0, pages, step)])
            # While blocks are decoded, PostgreSQL reads the next ones.
            ahead = deque(reader.submit(self._fetch, connection, *one) for one in islice(slices, _AHEAD))
            while ahead:
                blocks = await asyncio.wrap_future(ahead.popleft())
                ahead.extend(reader.submit(self._fetch, connection, *one) for one in islice(slices, 1))
                for block in blocks:
                    yield block
        finally:
            await asyncio.to_thread(reader.shutdown, cancel_futures=True)
            connection.close()

    def _open_snapshot(self) -> tuple[Connection[Any], int, int]:
        """A connection that reads; how many pages there are, and how many to read at once."""
        try:
            connection = connect(self._conninfo, f"keyledger p{self._partition} state")
            for statement in (*_SNAPSHOT, self._lock):
                connection.execute(statement)
            [(pages, step)] = connection.execute(self._count_pages).fetchall()
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error
        return connection, pages, step

    def _fetch(self, connection: Connection[Any], start: int, end: int) -> list[StateBlock]:
        pages = f"({start},0)", f"({end},0)"
        try:
            cursor = connection.execute(self._select_blocks, pages, prepare=True, binary=True)
            return [StateBlock(*row) for row in cursor.fetchall()]
        except psycopg.Error as error:
            raise LogUnavailableError(f"PostgreSQL: {error}") from error

    async def find(self, subjects: Sequence[str]) -> list[StateRow]:
        """These rows, resident or not."""
        if not subjects:
            return []
        array = TextArray(subjects)
        rows = await self._sessions.run(
            lambda connection: connection.execute(
                self._select_some, (array, array), prepare=True, binary=True
            ).fetchall()
        )
        return [StateRow(*row) for row in rows]

    async def clear(self) -> None:
        """Delete all rows and the checkpoint."""
        await self._sessions.run(self._clear)

    async def close(self) -> None:
        """Close the connections."""
        await self._sessions.close()

    def _save(
        self,
        connection: Connection[Any],
        through: HistoryPoint,
        rows: Sequence[StateRow],
        removed: Sequence[str],
        behind: HistoryPoint,
    ) -> None:
        resident = [row for row in rows if row.resident]
        settled = [row for row in rows if not row.resident]
        # It waits for the disk: after a crash of the server the checkpoint must be the one we
        # know, or the next save would miss the rows that changed between the two.
        with connection.transaction():
            self._move_checkpoint(connection, behind, through)
            if gone := [*removed, *(row.subject for row in settled)]:
                connection.execute(self._delete, (TextArray(gone),), prepare=True)
            if removed:
                connection.execute(self._delete_settled, (TextArray(removed),))
            for upsert, changed in ((self._upsert, resident), (self._upsert_settled, settled)):
                if changed:
                    subjects, datas, _ = zip(*changed, strict=True)
                    connection.execute(upsert, (TextArray(subjects), ByteaArray(datas)), prepare=True)

    def _move_checkpoint(
        self, connection: Connection[Any], behind: HistoryPoint, through: HistoryPoint
    ) -> None:
        connection.execute(
            "INSERT INTO ledger.checkpoints (partition, through) VALUES (%s, 0) ON CONFLICT DO NOTHING",
            (self._partition,),
        )
        moved = connection.execute(
            "UPDATE ledger.checkpoints SET through = %s, mark = %s, epoch = %s"
            " WHERE partition = %s AND through = %s AND mark = %s",
            (*through, self._partition, behind.position, behind.mark),
        )
        if moved.rowcount != 1:
            raise CheckpointMovedError(
                f"The checkpoint is no longer {behind.position}, or belongs to another history."
            )

    def _clear(self, connection: Connection[Any]) -> None:
        with connection.transaction():
            connection.execute(self._delete_all)
            connection.execute("DELETE FROM ledger.checkpoints WHERE partition = %s", (self._partition,))


def _upsert(table: str) -> bytes:
    return (
        f"INSERT INTO {table} (subject, data) SELECT * FROM unnest(%s, %s)"
        " ON CONFLICT (subject) DO UPDATE SET data = excluded.data"
    ).encode()


def _delete(table: str) -> bytes:
    return f"DELETE FROM {table} WHERE subject = ANY(%s)".encode()
