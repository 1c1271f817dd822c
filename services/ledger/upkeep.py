"""What an owner does periodically, besides deciding."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog

from domain.desk import SYSTEM_ASKING
from domain.errors import LedgerError
from domain.ports import LogUnavailableError
from services.ledger.bus import Bus
from services.ledger.errors import CannotAnswerError, Lost, NotOwnerHereError, UnavailableError
from services.ledger.memory import LedgerMemory
from services.ledger.ports import Ports, Terms
from services.ledger.saved_state import SavedState
from services.ledger.sightings import Sightings
from services.ledger.standby_watch import StandbyWatch
from services.ledger.standing import Standing
from services.ledger.tenure import Tenure

log = structlog.get_logger()

_EPOCH_LOOK_SECONDS = 1.0
_SAVE_LOOK_SECONDS = 1.0
_SAVE_SECONDS = 30.0
_SAVE_EVENTS = 200_000
"""State is saved after this many events or this much time, which bounds the replay of a start.

Saving each second doubled what PostgreSQL had to write under load (docs/decisions/state-rows.md).
"""
_FIRST_PRUNE_SECONDS = 300.0
_PRUNE_SECONDS = 3_600.0


class Upkeep:
    """The periodic tasks of an owner. A task that ends has found out that the partition is lost."""

    def __init__(
        self,
        ports: Ports,
        terms: Terms,
        memory: LedgerMemory,
        *,
        standing: Standing,
        saved: SavedState,
        bus: Bus,
        sightings: Sightings,
        standby: StandbyWatch,
    ) -> None:
        self._ports = ports
        self._lease_ns = terms.lease.lease_ms * 1_000_000
        self._memory = memory
        self._standing = standing
        self._saved = saved
        self._bus = bus
        self._sightings = sightings
        self._standby = standby
        self._boottime_ns: Callable[[], int] = ports.fence_clock.boottime_ns

    def begin(self, stopping: asyncio.Task[bool]) -> list[asyncio.Task[None]]:
        """Start all tasks, for the tenure that has begun."""
        tenure = self._standing.tenure
        return [
            asyncio.create_task(self._confirm(tenure, stopping), name="confirm"),
            asyncio.create_task(self._watch_epoch(), name="epoch"),
            asyncio.create_task(self._save(), name="save"),
            asyncio.create_task(tenure.watch_fences(self._bus), name="fences"),
            asyncio.create_task(self._write_sightings(), name="sightings"),
            asyncio.create_task(self._prune(), name="prune"),
        ]

    async def _confirm(self, tenure: Tenure, stopping: asyncio.Task[bool]) -> None:
        """Rules 9 and 16 of the fence: confirm the lock every quarter of a lease.

        While the log waits for its standby nothing is confirmed: the lease runs out by our own clock,
        and the partition is still ours when the standby is back, if no other process took it.
        """
        pause_ns = self._lease_ns // 4
        wait_ns = 0
        while True:
            await asyncio.sleep(wait_ns / 1e9)
            asked = self._boottime_ns()
            appended = self._standing.take_appended()
            if appended and appended + pause_ns > asked:
                wait_ns = appended + pause_ns - asked
                continue
            try:
                held = await self._standby.answer_of(self._ports.log.confirm(), stopping, till_the_end=True)
            except LogUnavailableError as error:
                raise Lost(UnavailableError("postgresql", str(error))) from error
            if not held:
                raise Lost(NotOwnerHereError("The partition's lock is lost."))
            tenure.fences.confirmed(asked)
            wait_ns = max(0, asked + pause_ns - self._boottime_ns())

    async def _watch_epoch(self) -> None:
        """An owner that writes nothing must also notice that the epoch was raised."""
        while True:
            await asyncio.sleep(_EPOCH_LOOK_SECONDS)
            with contextlib.suppress(LogUnavailableError):
                if (await self._ports.log.end()).epoch != self._memory.epoch:
                    raise Lost(NotOwnerHereError("The log's epoch was raised."))

    async def _save(self) -> None:
        saved_at = self._boottime_ns()
        while True:
            await asyncio.sleep(_SAVE_LOOK_SECONDS)
            now = self._boottime_ns()
            if self._saved.behind < _SAVE_EVENTS and now - saved_at < _SAVE_SECONDS * 1e9:
                continue
            saved_at = now
            try:
                await self._saved.save()
            except LogUnavailableError:
                log.warning("state.not_saved")

    async def _write_sightings(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            command = self._sightings.take(self._ports.clock.now())
            if command is None:
                continue
            try:
                await self._bus.queue.submit(command, SYSTEM_ASKING)
            except (LedgerError, CannotAnswerError):
                self._sightings.put_back(command)

    async def _prune(self) -> None:
        pause = _FIRST_PRUNE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _PRUNE_SECONDS
            try:
                await self._ports.prune()
            except LogUnavailableError:
                log.warning("log.not_pruned")
