"""Catching up with the log: one batch is read while the previous is summed and earlier ones are written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

from domain.projecting import Writing
from infra.postgres.projecting_log import Batch, RunReader
from infra.postgres.projection_schema import ProjectionTables

BATCH: Final = 2_000
"""Events of the first read. While the projector is behind, reads double in size."""
MOST: Final = 16_000
"""Most events of one read; about as many are in memory."""
LEAST_FOLD, FOLD = 2, 8
"""Far behind, this many reads are summed before they are written, the more the longer the writer is busy: a
row is written once for all of them."""
MOST_HELD: Final = 65_536
"""Rows and events that are remembered before they are written, however far behind the projector is."""


class Progress(NamedTuple):
    """What one write did."""

    position: int
    events: int
    seconds: float


class Pipeline:
    """Reads, sums and writes, each on a thread of its own; the caller's does the summing."""

    def __init__(
        self,
        tables: ProjectionTables,
        reader: RunReader,
        *,
        position: int,
        mark: int = 0,
        batch: int = BATCH,
        most: int = MOST,
        on_written: Callable[[Progress], None] | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.position = position
        """Everything up to here is written."""
        self._mark = mark
        """Of the history up to there: each read compares it."""
        self.tables = tables
        self._reader = reader
        self._batch = batch
        self._most = most
        self._on_written = on_written
        self._is_stopping = is_stopping
        self._taken = position
        self._taken_mark = mark
        self._gathered = 0
        """Events up to `_taken` that are summed and not handed to the writer yet."""
        self._writing: Future[None] | None = None
        self._closing = ExitStack()
        self._ahead = self._thread("reader")
        self._behind = self._thread("writer")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def _thread(self, name: str) -> ThreadPoolExecutor:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"projections' {name}")
        return self._closing.enter_context(thread)

    def catch_up(self, until: int | None = None) -> int:
        """Apply what is in the log (up to `until`), and return how many events. All of it is then written."""
        before, limit = self._taken, self._batch
        if until is not None and until <= before:
            # A rebuild beside a live projector may be ahead of it.
            return 0
        batch = self._reader.read(before, _most(before, limit, until), mark=self._taken_mark)
        while batch.is_full and not self._is_stopping():
            near = limit < self._most
            limit = min(limit * 2, self._most)
            most = _most(batch.last, limit, until)
            coming = self._ahead.submit(self._reader.read, batch.last, most, mark=batch.mark)
            self._sum(batch)
            if self._is_due(near=near):
                self._await_writer()
                self._writing = self._behind.submit(self._write, *self._take())
            batch = coming.result()
        self._sum(batch)
        self._await_writer()
        if self._gathered:
            self._write(*self._take())
        return self._taken - before

    def _sum(self, batch: Batch) -> None:
        self.tables.remember(batch.runs)
        self._taken, self._taken_mark = batch.last, batch.mark
        self._gathered += batch.size

    def _is_due(self, *, near: bool) -> bool:
        """Whether it is time to write: near the end of the log, whenever the writer is free."""
        if self._gathered >= FOLD * self._most or self.tables.held() >= MOST_HELD:
            return True
        idle = self._writing is None or self._writing.done()
        return idle and (near or self._gathered >= LEAST_FOLD * self._most)

    def _take(self) -> tuple[list[Writing], int, int, int]:
        events, self._gathered = self._gathered, 0
        return self.tables.take(), self._taken, self._taken_mark, events

    def _await_writer(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _write(self, writings: Sequence[Writing], last: int, mark: int, events: int) -> None:
        started = time.perf_counter()
        with self.tables.connection.transaction():
            self.tables.write(writings, (self.position, self._mark), (last, mark))
        self.position, self._mark = last, mark
        if self._on_written is not None:
            self._on_written(Progress(last, events, time.perf_counter() - started))


def _most(after: int, limit: int, until: int | None) -> int:
    return limit if until is None else min(limit, until - after)
