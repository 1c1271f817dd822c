"""The projector: follows the log and applies it, batch by batch, to the projections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import psycopg
from psycopg import Connection

from domain.ports import OtherHistoryError
from domain.projecting import Projection
from infra.postgres.connections import SERVICE_ROLE
from infra.postgres.mapper import EventMapper
from infra.postgres.migrate import wait_for_migration
from infra.postgres.projecting_log import RunReader
from infra.postgres.projection_pipeline import BATCH, MOST, Pipeline, Progress
from infra.postgres.projection_schema import (
    LIVE,
    PROJECTING_CLASS,
    ProjectionTables,
    connect_for_projections,
    projected_channel,
)
from infra.postgres.rebuilding import RebuildRunningError, rebuild
from infra.postgres.recorder import LedgerRecorder
from infra.postgres.tracking import MovedCheckpointError
from keyledger_language.events import Event
from keyledger_reading.connections import prepare_session
from keyledger_reading.datastore import SessionDatastore
from keyledger_reading.notices import Listener, channel

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.05
_STANDBY_SECONDS: Final = 0.5
_OTHER_HISTORY_SECONDS: Final = 1.0
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

Numbers = Callable[["Progress"], None]


class _StoppedError(Exception):
    """Asked to stop while rebuilding."""


class Projector:
    """Follows one partition's log. One at a time: others wait for its lock, and take over."""

    def __init__(
        self,
        conninfo: str,
        projections: Sequence[Projection],
        mapper: EventMapper[Event],
        *,
        partition: int = 0,
        batch: int = BATCH,
        most: int = MOST,
        on_progress: Numbers | None = None,
    ) -> None:
        self._conninfo = conninfo
        self._projections = projections
        self._mapper = mapper
        self._partition = partition
        self._batch = batch
        self._most = most
        self._on_progress = on_progress
        self._stopping = threading.Event()
        self.position = 0
        """The checkpoint, as far as this process knows."""
        self.problem: str | None = None
        """What keeps it from projecting, in a sentence."""

    def stop(self) -> None:
        """Finish the batch, then return from `run`."""
        self._stopping.set()

    def run(self) -> None:
        """Follow until stopped, reconnecting whenever PostgreSQL comes back; blocks its thread."""
        failures = 0
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                with contextlib.closing(self._connect("projector")) as connection:
                    self._follow_on(connection)
            except OtherHistoryError as error:
                self._stop_at_other_history(error)
            except (psycopg.Error, MovedCheckpointError, RebuildRunningError, _StoppedError) as error:
                failures = 0 if time.monotonic() - started > _RETRY_SECONDS[-1] else failures
                log.warning(
                    "projector.interrupted: %s %s",
                    type(error).__name__,
                    getattr(error, "sqlstate", None),
                    # A server that cannot be reached needs no traceback, and is logged at every retry.
                    exc_info=not isinstance(error, psycopg.OperationalError),
                )
                self._stopping.wait(_RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)])
                failures += 1

    def _stop_at_other_history(self, error: OtherHistoryError) -> None:
        """Project nothing until the epoch is raised, or the log is again the one that was followed."""
        if self.problem is None:
            self.problem = (
                f"{error}: the log was restored, or a fail-over lost events. Once you are sure that this is"
                " the log to continue with, run `keyledger new-epoch`: the projections are then rebuilt."
            )
            log.error("projector.other_history: %s", self.problem)
        self._stopping.wait(_OTHER_HISTORY_SECONDS)

    def _go_on_unless_stopped(self, _: Progress) -> None:
        if self._stopping.is_set():
            raise _StoppedError

    def _connect(self, what: str) -> Connection[tuple[Any, ...]]:
        return connect_for_projections(self._conninfo, f"keyledger p{self._partition} {what}")

    def _follow_on(self, connection: Connection[tuple[Any, ...]]) -> None:
        if not self._acquire(connection):
            return
        told = projected_channel(self._partition)
        tables = ProjectionTables(
            connection, LIVE, self._projections, partition=self._partition, told_on=told
        )
        tables.forget()
        # Without the log's tables this fails: there is nothing to follow yet, and nothing blocks migrations.
        self._recorder(connection).max_notification_id()
        wait_for_migration(connection)
        prepare_session(
            connection, SERVICE_ROLE
        )  # tables created in another role would be closed to the service's role
        if not tables.exist():
            tables.create()
        elif not tables.are_current() or self._is_of_a_lost_history(connection, tables):
            log.info("projector.rebuilding")
            rebuild(
                self._conninfo,
                self._projections,
                self._mapper,
                partition=self._partition,
                on_progress=self._go_on_unless_stopped,
            )
        checkpoint = tables.checkpoint()
        self.position, self.problem = checkpoint.position, None
        with contextlib.closing(self._connect("projector's reader")) as reader:
            self._follow(tables, reader, checkpoint.mark)

    def _is_of_a_lost_history(
        self, connection: Connection[tuple[Any, ...]], tables: ProjectionTables
    ) -> bool:
        """Whether they show events that the log has lost, and the log's epoch was raised since.

        Raises OtherHistoryError if events were lost and the epoch was not raised.
        """
        checkpoint = tables.checkpoint()
        epoch = self._recorder(connection).end().epoch
        try:
            RunReader(connection, self._partition, self._mapper).read(
                checkpoint.position, 1, mark=checkpoint.mark
            )
        except OtherHistoryError:
            if checkpoint.epoch == epoch:
                raise
            return True
        if checkpoint.epoch != epoch:
            tables.enter(epoch)
        return False

    def _recorder(self, connection: Connection[Any]) -> LedgerRecorder:
        return LedgerRecorder(SessionDatastore(lambda: connection), partition=self._partition)

    def _acquire(self, connection: Connection[tuple[Any, ...]]) -> bool:
        """Wait until no other projector holds the lock, and take it; False if stopped before."""
        take = "SELECT pg_try_advisory_lock(%s, %s)"
        while not self._stopping.is_set():
            row = connection.execute(take, (PROJECTING_CLASS, self._partition)).fetchone()
            if row and row[0]:
                return True
            self._stopping.wait(_STANDBY_SECONDS)
        return False

    def _follow(self, tables: ProjectionTables, reader: Connection[tuple[Any, ...]], mark: int) -> None:
        def written(progress: Progress) -> None:
            self.position = progress.position
            if self._on_progress is not None:
                self._on_progress(progress)

        listener = Listener(reader, channel(self._partition))
        with Pipeline(
            tables,
            RunReader(reader, self._partition, self._mapper),
            position=self.position,
            mark=mark,
            batch=self._batch,
            most=self._most,
            on_written=written,
            is_stopping=self._stopping.is_set,
        ) as pipeline:
            while not self._stopping.is_set():
                pipeline.catch_up()
                _wait_beyond(pipeline.position, listener)


def _wait_beyond(position: int, listener: Listener) -> None:
    """Wait until a commit after this position is announced, or until it is time to poll."""
    while told := listener.wait(_POLL_SECONDS):
        if max(told) > position:
            return


async def run_projector(projector: Projector, stop: asyncio.Event) -> None:
    """Run a projector beside an event loop, until `stop` is set.

    Changes the settings of the process's garbage collector: with events by the thousand, none of them in a
    cycle, it took half of the projector's time.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)
    running = asyncio.create_task(asyncio.to_thread(projector.run), name="projector")
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        projector.stop()
        await running
