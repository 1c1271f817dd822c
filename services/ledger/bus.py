"""The command bus: every write goes through it. Waiting commands are decided and committed in groups.

A group is decided on a draft over the committed state, appended with one call, and only then merged
and acknowledged: no answer depends on anything that is not durable. While one group is being appended,
the next is decided on its draft, if it consists of charges only, and is ready to be sent the moment the
first is durable; if the first fails, the second is discarded.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from heapq import heappop, heappush
from typing import Protocol

import structlog

from domain.ports import ClaimTakenError, Group, LogUnavailableError, NewClaim, NewDataKey, NewEvent
from domain.state import Due
from keyledger_language import Change
from keyledger_language.history import HistoryPoint
from services.ledger.command_queue import MAX_GROUP, CommandQueue, fail, fail_all
from services.ledger.errors import Lost, NotOwnerHereError, UnavailableError, UnknownOutcomeError
from services.ledger.group import DecidedGroup, KnownClaim, PoisonedError, Tools
from services.ledger.jobs import Done, Job
from services.ledger.kept_answers import close_answers
from services.ledger.look_ups import LookUps
from services.ledger.memory import LedgerMemory
from services.ledger.ports import Ports
from services.ledger.recent_refusals import RecentRefusals
from services.ledger.sure_append import SureAppends

log = structlog.get_logger()

_MAX_TRIES = 50
_UNAVAILABLE_PAUSE_SECONDS = 0.1
_LONGEST_WAIT_SECONDS = 3_600.0


class PartitionOwnership(Protocol):
    """Who owns the partition: says whether it is certain, and is notified of what appends show."""

    @property
    def confirmed(self) -> bool:
        """Whether it is certain, without a look at the log, that no other process decides."""
        ...

    def newest_open(self, subjects: Collection[str] | None) -> int | None:
        """The newest open fence, of all or of those that concern these subjects."""
        ...

    def committed(self, position: int, changes: Sequence[Change]) -> None:
        """Called for each commit, as soon as it is known: the new head, and the changes for the edges."""
        ...

    def held(self, sent_ns: int) -> None:
        """Called with the time (boottime) at which a now durable append was sent: the lock was held then."""
        ...

    def lost(self) -> None:
        """Called when another process may own the partition, or may have owned it in between."""
        ...


class _Batch:
    """Jobs that are decided together, on their way into the log."""

    __slots__ = ("appending", "group", "jobs", "keys", "to_write")

    def __init__(self, jobs: list[Job], group: DecidedGroup) -> None:
        self.jobs = jobs
        self.group = group
        self.to_write: Group | None = None
        """The encoded group; None: not encoded yet, or nothing to write."""
        self.keys: tuple[NewDataKey, ...] = ()
        """Data keys that encoding made."""
        self.appending: asyncio.Task[None] | None = None


class Bus:
    """Carries out the commands of its queue, and answers each once what it wrote is durable."""

    def __init__(
        self,
        ports: Ports,
        memory: LedgerMemory,
        tools: Tools,
        owner: PartitionOwnership,
        *,
        find_reservation: Callable[[str], Awaitable[None]],
        max_waiting: int = 20_000,
    ) -> None:
        self._log = ports.log
        self._memory = memory
        self._state = memory.state
        self._mapper = ports.mapper
        self._clock = ports.clock
        self._tools = tools
        self._owner = owner
        self._look_ups = LookUps(ports, memory, find_reservation)
        self.queue = CommandQueue(max_waiting)
        self._refusals = RecentRefusals()
        self._ahead: _Batch | None = None
        """Decided while the group before it was being appended."""
        self._under_way: _Batch | None = None
        """The group that is being appended."""
        self._finishing = False
        self._draining = False
        self._appends = SureAppends(
            ports.log, boottime_ns=ports.fence_clock.boottime_ns, held=owner.held, doubted=self._doubted
        )
        self._new_data_keys: tuple[NewDataKey, ...] = ()
        """To be written with the next group."""

    # -- while the partition is owned

    def accept(self, new_data_keys: tuple[NewDataKey, ...]) -> None:
        """Take commands: this process owns the partition now. These data keys are written with the first."""
        self._new_data_keys = new_data_keys
        self.queue.accepting = True

    def _doubted(self) -> None:
        self.queue.accepting = False
        self._owner.lost()

    def refuse_all(self, answer: Exception) -> None:
        """Take no more commands, and answer the waiting ones with this error."""
        self.queue.accepting = False
        self.queue.refuse(answer)

    def give_up_waiting(self, answer: Exception, *, on_appends: bool) -> None:
        """Answer all waiting callers: nothing is decided or written for a while. A sent group continues.

        `on_appends`: also answer those whose group is being appended, that its outcome is unknown.
        """
        if self._ahead is not None and self._ahead.appending is None:
            self._forget_ahead()
        self.queue.refuse(answer)
        for batch in (self._under_way, self._ahead):
            if batch is not None and batch.appending is None:
                fail_all(batch.jobs, answer)
            elif batch is not None and on_appends:
                fail_all(batch.jobs, _unknown())

    def finish(self, *, drain: bool) -> None:
        """Take no more commands and let `run` end: after all that wait (`drain`), or after this group."""
        self.queue.accepting = False
        self._finishing = True
        self._draining = drain
        self.queue.wake()

    # -- the loop

    async def run(self) -> None:
        """Decide and commit until told to finish, or the partition is lost. Raises Lost."""
        self._finishing = False
        self._appends.reset()
        try:
            while not self._finishing or self._is_on_its_way() or (self._draining and self._has_work()):
                await self._next_group()
        finally:
            # Jobs that were decided ahead wait again, and are refused with all others that wait.
            self._forget_ahead()

    def _is_on_its_way(self) -> bool:
        return self._ahead is not None and self._ahead.appending is not None

    def _has_work(self) -> bool:
        return self._ahead is not None or bool(self.queue)

    async def _next_group(self) -> None:
        if self._ahead is None:
            await self._wait()
        jobs = self.queue.take_group() if self._ahead is None else self._ahead.jobs
        try:
            await self._commit(jobs)
        except LogUnavailableError as error:
            # Nothing was written. The lock's watch finds out whether the partition is still held.
            fail_all(jobs, _down(error))
            await asyncio.sleep(_UNAVAILABLE_PAUSE_SECONDS)
        except BaseException as error:
            fail_all(jobs, self._answer_to(error))
            raise

    def _answer_to(self, error: BaseException) -> Exception:
        """The answer for jobs whose group was not finished; `NotOwnerHereError` means: not carried out."""
        in_doubt, self._appends.in_doubt = self._appends.in_doubt, False
        if in_doubt:
            return _unknown()
        if isinstance(error, Lost):
            return error.answer
        return NotOwnerHereError("This process is stopping.")

    async def _wait(self) -> None:
        """Until a command waits, or something on the agenda is due."""
        if self.queue:
            # Let callers that were just answered send their next command: it joins this group.
            await asyncio.sleep(0)
            return
        self.queue.forget_wakes()
        if self._finishing:
            return
        agenda = self._state.agenda
        seconds = (agenda[0][0] - self._now()) / 1e6 if agenda else _LONGEST_WAIT_SECONDS
        await self.queue.wait(min(max(seconds, 0.001), _LONGEST_WAIT_SECONDS))

    def _now(self) -> int:
        return max(self._clock.now(), self._state.at)

    async def _commit(self, jobs: list[Job]) -> None:
        """Decide these jobs as one group, make it durable, answer.

        Raises Lost, or LogUnavailableError (nothing was written).
        """
        known: dict[bytes, KnownClaim] = {}
        checked: set[bytes] = set()
        if self._ahead is None:
            await self._look_ups.before(jobs, known)
        tries = 0
        while tries < _MAX_TRIES:
            try:
                if await self._try(jobs, known, checked):
                    return
            except PoisonedError as poisoned:
                # The other jobs of the group are decided again, without it.
                _report(poisoned)
                jobs.remove(poisoned.job)
                fail(poisoned.job, poisoned.cause)
                await asyncio.sleep(0)
            else:
                tries += 1
        raise Lost(NotOwnerHereError("The group could not be committed; nothing was written."))

    async def _try(self, jobs: list[Job], known: dict[bytes, KnownClaim], checked: set[bytes]) -> bool:
        """Decide once. False: decide again, since more is known now."""
        due: list[Due] = []
        batch, self._ahead = self._ahead, None
        decided = batch is not None
        if batch is None:
            due = self._pop_due()
            now = self._clock.now()
            batch = _Batch(jobs, self._group(now, self._look_ups.finder(known)))
        group = batch.group
        done = False
        try:
            if not decided:
                group.decide(due, jobs, frozenset(checked))
            checked |= await self._look_ups.settle(group, known)
            self._under_way = batch
            done = await self._append(batch)
            if not done:
                checked |= await self._look_ups.look_up([one.digest for one in group.desk.claims], known)
        finally:
            self._under_way = None
            if not done:
                self._forget_ahead()
                group.desk.undo()
                self._push_due(due)
        if done:
            self._begin_ahead()
            self._finish(group)
            self._rest_ahead_on_state()
            if self._appends.session_lost:
                raise Lost(NotOwnerHereError("The lock's session was lost; nothing was written."))
        return done

    def _group(
        self,
        now: int,
        find_known: Callable[[bytes], KnownClaim | None],
        *,
        above: DecidedGroup | None = None,
    ) -> DecidedGroup:
        return DecidedGroup(self._state, self._tools, now, find_known, above=above, refusals=self._refusals)

    # -- making it durable

    def _prepare(self, batch: _Batch) -> None:
        """Encode what the group writes, if anything. Raises PoisonedError."""
        desk = batch.group.desk
        if batch.to_write is None and (desk.placed or desk.claims):
            events = self._encoded(batch.group)
            claims: Sequence[NewClaim] = desk.claims
            if kept := batch.group.answers_kept:
                # After the events: an organization's data key is made with its first.
                claims = close_answers(claims, kept, self._mapper.data_keys)
            batch.keys = self._mapper.take_new_data_keys()
            behind = HistoryPoint(batch.group.base, batch.group.base_mark, self._memory.epoch)
            batch.to_write = Group(os.urandom(16), behind, events, claims, batch.keys)
            batch.group.draft.mark = batch.to_write.end.mark

    def _begin(self, batch: _Batch, to_write: Group) -> asyncio.Task[None]:
        """Send it, with data keys that are still to be written."""
        if self._new_data_keys:
            to_write = to_write._replace(data_keys=(*batch.keys, *self._new_data_keys))
        batch.appending = self._appends.begin(to_write)
        return batch.appending

    async def _append(self, batch: _Batch) -> bool:
        """Make the group durable. False: nothing was written, decide again."""
        self._prepare(batch)
        if batch.to_write is None:
            if batch.group.outcomes:
                await self._be_sure()
            return True
        appending = batch.appending or self._begin(batch, batch.to_write)
        try:
            await self._decide_ahead(batch.group)
            await asyncio.shield(appending)
        except ClaimTakenError:
            self._mapper.forget_data_keys(batch.keys)
            return False
        except BaseException:
            # Nothing waits for it any more; what was sent may still be written: its outcome is unknown.
            appending.cancel()
            self._mapper.forget_data_keys(batch.keys)
            raise
        self._new_data_keys = ()
        return True

    async def _decide_ahead(self, under_way: DecidedGroup) -> None:
        """While one group is being written, decide the next, if it is of charges and nothing is due."""
        await asyncio.sleep(0)
        agenda, now = self._state.agenda, self._now()
        if self._finishing or (agenda and agenda[0][0] <= now):
            return
        jobs = self.queue.take_simple()
        if not jobs:
            return
        group = self._group(self._clock.now(), self._memory.recent.find, above=under_way)
        ahead = self._ahead = _Batch(jobs, group)
        try:
            group.decide((), jobs, frozenset())
            if not group.unsure:
                self._prepare(ahead)
        except Exception as error:  # noqa: BLE001  # nothing may come between an append and its outcome
            # They are decided again with all the others, and then left out or answered.
            log.debug("group.not_decided_ahead", error=type(error).__name__)
            self._forget_ahead()

    def _begin_ahead(self) -> None:
        """The group under way is durable: send the next before anything else."""
        ahead = self._ahead
        if ahead is not None and ahead.to_write is not None and not self._appends.session_lost:
            self._begin(ahead, ahead.to_write)

    def _rest_ahead_on_state(self) -> None:
        """The group under way is durable: the group that was decided on it now builds on the state."""
        if self._ahead is not None:
            self._ahead.group.rest_on_state()

    def _forget_ahead(self) -> None:
        """What was decided ahead built on a group that was not written: its jobs wait again."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return
        if ahead.appending is not None:
            # It was sent already, and nothing waits for its outcome.
            fail_all(ahead.jobs, _unknown())
            return
        ahead.group.desk.undo()
        self._mapper.forget_data_keys(ahead.keys)
        self.queue.put_back(ahead.jobs)

    async def _be_sure(self) -> None:
        """Check that this process still owns the partition: answers without an append are true only then.

        A process that was paused finds out here that its lease on the partition has ended.
        """
        if not self._owner.confirmed and not await self._log.confirm():
            raise Lost(NotOwnerHereError("Another process may own the partition."))

    def _encoded(self, group: DecidedGroup) -> list[NewEvent]:
        new_event = self._mapper.new_event
        events: list[NewEvent] = []
        try:
            for placed in group.desk.placed:
                events.append(new_event(*placed))  # noqa: PERF401  # the length shows whose event failed
        except Exception as error:
            job = group.job_of(len(events))
            if job is None:
                raise
            raise PoisonedError(job, error) from error
        return events

    # -- after the commit

    def _finish(self, group: DecidedGroup) -> None:
        if group.desk.placed:
            group.merge()
            self._memory.remember(group)
            self._owner.committed(self._state.head, group.changes)
        # Rule 13 of the fence; nothing may happen between the commit and this.
        for waiting in group.take_aways:
            waiting.settle(self._owner.newest_open(waiting.subjects))
        self.queue.put_back(group.deferred)
        for job, outcome in group.outcomes:
            if job.future.done():
                continue
            if isinstance(outcome, Done):
                job.future.set_result(outcome)
            else:
                job.future.set_exception(outcome)

    # -- time

    def _pop_due(self) -> list[Due]:
        agenda, now = self._state.agenda, self._now()
        due: list[Due] = []
        while agenda and agenda[0][0] <= now and len(due) < MAX_GROUP:
            due.append(heappop(agenda))
        return due

    def _push_due(self, due: list[Due]) -> None:
        for entry in due:
            heappush(self._state.agenda, entry)


def _unknown() -> UnknownOutcomeError:
    return UnknownOutcomeError("The ledger stopped while it wrote; ask whether it was carried out.")


def _report(poisoned: PoisonedError) -> None:
    if poisoned.foreseen:
        return
    log.error(
        "command.failed",
        command=type(poisoned.job.command).__name__,
        error=type(poisoned.cause).__name__,
        exc_info=poisoned.cause,
    )


def _down(error: LogUnavailableError) -> UnavailableError:
    reason = str(error).partition("\n")[0]
    refused = reason.startswith("PostgreSQL refused")
    return UnavailableError("postgresql", reason if refused else "PostgreSQL cannot be reached.")
