"""Owning the partition: standing by, taking it over, working, and leaving it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence

import structlog

from domain.ports import LogUnavailableError, NewDataKey, NotOwnerError, OtherHistoryError
from infra.position_watch import PositionWatch
from services.ledger.bus import Bus
from services.ledger.errors import (
    CannotAnswerError,
    Lost,
    NotOwnerHereError,
    OtherHistoryHereError,
    UnavailableError,
    WaitsForStandbyError,
)
from services.ledger.loading import garbage_kept
from services.ledger.memory import LedgerMemory
from services.ledger.ports import Ports, Terms
from services.ledger.saved_state import EDGE_KEYS_SUBJECT, SavedState
from services.ledger.sightings import Sightings
from services.ledger.standby_watch import StandbyWatch
from services.ledger.standing import Standing
from services.ledger.tenure import Tenure
from services.ledger.upkeep import Upkeep

log = structlog.get_logger()

_STAND_BY_SECONDS = 0.1
_MOST_PAUSE_BEFORE_STOP_SECONDS = 10.0
_LOOK_FOR_SILENCE_SECONDS = 2.0


class Ownership:
    """Owns the partition whenever no other process does; each time is a `Tenure` of its own."""

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
        head_watch: PositionWatch,
    ) -> None:
        self._ports = ports
        self._terms = terms
        self._memory = memory
        self._standing = standing
        self._saved = saved
        self._bus = bus
        self._sightings = sightings
        self._head_watch = head_watch
        self._standby = StandbyWatch(ports.log, standing, bus)
        self._upkeep = Upkeep(
            ports,
            terms,
            memory,
            standing=standing,
            saved=saved,
            bus=bus,
            sightings=sightings,
            standby=self._standby,
        )
        self._looked_for_silence_ns = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Own the partition whenever no other process does, until `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._stand_by_or_own(stopping)
                await asyncio.wait({stopping}, timeout=_STAND_BY_SECONDS)
        finally:
            stopping.cancel()
            self._step_down(NotOwnerHereError("This process is stopping."))
            with contextlib.suppress(LogUnavailableError):
                await self._ports.log.release()

    async def _stand_by_or_own(self, stopping: asyncio.Task[bool]) -> None:
        try:
            # Before the lock is requested, however long it takes: an owner that replays is silent.
            held = await self.follow(stopping) and await self._take(stopping)
        except LogUnavailableError as error:
            self._note_unreachable(error)
            return
        except OtherHistoryError as error:
            await self._stop_at_other_history(error)
            return
        except NotOwnerError:
            self._step_down(NotOwnerHereError("The partition's lock was lost again."))
            return
        if held:
            await self._work(stopping)

    # -- standing by

    async def follow(self, stopping: asyncio.Task[bool] | None = None) -> bool:
        """Bring memory up to the log's head, however long the log waits for its standby.

        False if the process stops before.
        """
        with contextlib.nullcontext() if self._memory.loaded else garbage_kept():
            reading = asyncio.create_task(self._read(), name="follow")
            try:
                return await self._standby.outlast_reading(reading, stopping)
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        end = await self._ports.log.end()
        if end.epoch != self._memory.epoch:
            self._enter(end.epoch)
        if await self._saved.catch_up():
            self._head_watch.moved()
        self._standing.other_history = None

    def _enter(self, epoch: int) -> None:
        """The log's epoch was raised: what is in memory may be of events that the log has lost."""
        was = self._memory.epoch
        self._memory.enter(epoch)
        if was:
            log.warning("log.epoch_raised", epoch=epoch, was=was)
            self._sightings.forget()
            self._ports.mapper.data_keys.forget_all()

    async def _stand_by(self) -> None:
        """Do what is needed while another process owns the partition."""
        now = self._ports.fence_clock.boottime_ns()
        if now - self._looked_for_silence_ns < _LOOK_FOR_SILENCE_SECONDS * 1e9:
            return
        self._looked_for_silence_ns = now
        await self._ports.end_silent_owner()
        await self._standby.look_now()
        await self._saved.leave_to_owner()

    def _note_unreachable(self, error: LogUnavailableError) -> None:
        standing = self._standing
        if standing.reachable:
            log.warning("log.unreachable", error=str(error).partition("\n")[0])
        standing.reachable = False
        standing.lost()
        self._bus.refuse_all(UnavailableError("postgresql", "PostgreSQL cannot be reached."))

    async def _stop_at_other_history(self, error: OtherHistoryError) -> None:
        """What this process knows is not in the log: it answers nothing until the operator has decided.

        It keeps looking: a raised epoch makes it read the log again, and it may have been
        connected to the wrong server for a moment.
        """
        standing = self._standing
        standing.reachable, standing.stands_by = True, False
        if standing.other_history is None:
            standing.other_history = OtherHistoryHereError(str(error))
            log.error("history.differs", problem=standing.other_history.detail)
        self._step_down(standing.other_history)
        # A process that has read this log may own the partition.
        with contextlib.suppress(LogUnavailableError):
            await self._ports.log.release()

    # -- taking over

    async def _take(self, stopping: asyncio.Task[bool]) -> bool:
        """Become the owner, if no other process is."""
        standing = self._standing
        held = await self._ports.log.acquire()
        standing.reachable = True
        standing.stands_by = not held
        if not held:
            self._step_down(NotOwnerHereError("Another process owns the partition."))
            await self._stand_by()
            return False
        if not await self.follow(stopping):
            return False
        asked = await self._outlast_predecessor(stopping)
        if asked is None:
            return False
        await self._become_owner(asked)
        return True

    async def _outlast_predecessor(self, stopping: asyncio.Task[bool]) -> int | None:
        """Wait until the previous owner answers nothing from memory any more.

        It may be alive, cut off from the log, and not know it: then it verifies for the rest of
        its lease, and a revocation that we acknowledge meanwhile would not reach it.
        What was read until now may be on this server alone: the log confirms, by a commit that its
        standby must have, that it is not. On a deposed primary that commit never returns.
        Returns the time at which the lock was last known to be held; None if it is not, or the
        process stops.
        """
        asked = self._ports.fence_clock.boottime_ns()
        if not await self._ports.succeeds_nobody():
            patience = self._terms.lease.booked_ns(0) / 1e9
            await asyncio.wait({stopping}, timeout=patience)
            asked = self._ports.fence_clock.boottime_ns()
        if stopping.done() or not await self._standby.answer_of(self._ports.log.confirm(), stopping):
            return None
        return asked

    async def _become_owner(self, asked: int) -> None:
        memory, new_keys = self._memory, tuple[NewDataKey, ...]()
        stored = await self._ports.log.data_keys([EDGE_KEYS_SUBJECT])
        material = stored.get(EDGE_KEYS_SUBJECT)
        if material is None:
            material = os.urandom(32)
            new_keys = (NewDataKey(EDGE_KEYS_SUBJECT, material),)
        memory.shared_key = material
        await self._saved.take_over()
        tenure = Tenure(secrets.token_hex(8), self._ports, self._terms, memory, master_key=material)
        tenure.fences.confirmed(asked)
        await tenure.resume()
        self._standing.begin(tenure)
        await self._ports.announce(tenure.name)
        self._standing.owner = True
        self._bus.accept(new_keys)
        self._ports.listen_to_edges()
        log.info("partition.owned", partition=self._ports.log.partition, head=memory.state.head)

    # -- while owning it

    async def _work(self, stopping: asyncio.Task[bool]) -> None:
        bus = asyncio.create_task(self._bus.run(), name="bus")
        others = self._upkeep.begin(stopping)
        try:
            await asyncio.wait({stopping, bus, *others}, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(bus, others, graceful=stopping.done())
        finally:
            waited = self._standing.waits_for_standby
            for task in (bus, *others):
                task.cancel()
            results = await asyncio.gather(bus, *others, return_exceptions=True)
            self._after_work(results)
        if stopping.done() and self._memory.loaded:
            if waited:
                # The last save would wait for the standby as well: the next owner manages without it.
                log.warning("partition.left_in_haste", error=WaitsForStandbyError.__name__)
            else:
                await self._part()

    # -- leaving it

    async def _finish(
        self, bus: asyncio.Task[None], others: list[asyncio.Task[None]], *, graceful: bool
    ) -> None:
        """Let the group under way end by itself: if its append were cut off, its outcome would be unknown."""
        if not graceful:
            for task in others:
                if task.done():
                    self._leave(_failure_of(task))
        self._bus.finish(drain=graceful)
        await asyncio.wait({bus}, timeout=_MOST_PAUSE_BEFORE_STOP_SECONDS)

    async def _part(self) -> None:
        """Leave in good order: the next owner need neither replay nor wait for us."""
        try:
            async with asyncio.timeout(_MOST_PAUSE_BEFORE_STOP_SECONDS):
                await self._saved.save()
                await self._ports.withdraw()
        except (LogUnavailableError, NotOwnerError, Lost, TimeoutError) as error:
            log.warning("partition.left_in_haste", error=type(error).__name__)

    def _after_work(self, results: Sequence[BaseException | None]) -> None:
        for result in results:
            self._leave(result)
            if isinstance(result, Exception) and not isinstance(result, Lost):
                log.error("ledger.failed", exc_info=result)
                self._saved.forget()
        self._leave(None)

    def _leave(self, why: BaseException | None) -> None:
        """Stop answering for the partition. Waiting commands were not begun: others may decide them."""
        if isinstance(why, Lost) and isinstance(why.answer, UnavailableError):
            self._note_unreachable(LogUnavailableError(why.answer.detail))
        else:
            self._step_down(NotOwnerHereError("This process does not own the partition."))

    def _step_down(self, answer: CannotAnswerError) -> None:
        if self._standing.owner:
            log.info("partition.left", partition=self._ports.log.partition)
        self._standing.lost()
        self._bus.refuse_all(answer)


def _failure_of(task: asyncio.Task[None]) -> BaseException | None:
    return None if task.cancelled() else task.exception()
