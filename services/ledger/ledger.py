"""The ledger: one partition's state and bus while this process owns it, standing by while not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from typing import Any

import msgspec
import structlog

from domain.accounts import Reservation
from domain.changes import change_of
from domain.commands import Asking, BootstrapRootKey, Command, RecordFence
from domain.decisions.access import is_root, permissions_of
from domain.desk import SYSTEM_ASKING, Desk
from domain.errors import LedgerError
from domain.facts import FactsBook
from domain.instants import Instant
from domain.keys import Key
from domain.keyspaces import ROOT_KEYSPACE_ID, ROOT_PREFIX, ROOT_SHAPE
from domain.ports import (
    CheckpointMovedError,
    Clock,
    Log,
    LogUnavailableError,
    NewDataKey,
    NotOwnerError,
    OtherHistoryError,
    StateRows,
)
from domain.state import Books, Draft, State
from keyledger_edge import Change, RateLimiter, fingerprint, hint, position_prefix
from services.ledger.bus import Bus
from services.ledger.errors import (
    CannotAnswerError,
    Lost,
    NotOwnerHereError,
    OtherHistoryHereError,
    UnavailableError,
    WaitsForStandbyError,
)
from services.ledger.fence import Clock as FenceClock
from services.ledger.fence import FenceKeeper, FenceReceipt, LeaseTerms
from services.ledger.following import Follower
from services.ledger.group import Tools
from services.ledger.head_watch import HeadWatch
from services.ledger.jobs import Done, Idempotency, Mapper, Render
from services.ledger.lease_table import EdgeBounds
from services.ledger.ledger_time import LedgerTime
from services.ledger.loading import garbage_kept
from services.ledger.saving import StateKeeper, take_part
from services.ledger.sightings import Refused, Sightings

log = structlog.get_logger()

EDGE_KEYS_SUBJECT = "edges"
"""The data key that leases are sealed with: every owner derives the same keys from it."""

_GIVEN_BESIDE_OTHERS = "KEYLEDGER_ROOT_KEY names one that was not there; the others still work"
_STAND_BY_SECONDS = 0.1
_EPOCH_LOOK_SECONDS = 1.0
_SAVE_LOOK_SECONDS = 1.0
_SAVE_SECONDS = 30.0
_SAVE_EVENTS = 200_000
"""State is saved when so much has happened since, or so long ago: the bound of a start's replay.

Saving each second doubled what PostgreSQL had to write under load (docs/decisions/state-rows.md).
"""
_CHANGES_TOLD = 2_000

_MOST_PAUSE_BEFORE_STOP_SECONDS = 10.0
_LOOK_FOR_SILENCE_SECONDS = 2.0
_STANDBY_LOOK_SECONDS = 1.0
"""A confirmation takes milliseconds: after so long we ask what it waits for, and again as often."""
_LONGEST_APPEND_SECONDS = 5.0
"""Whoever waits for an append that waits for a standby hears by then that its outcome is unknown."""
_FIRST_PRUNE_SECONDS = 300.0
_PRUNE_SECONDS = 3_600.0


async def _nothing() -> None:
    """Most tests need none of this."""


def _pass() -> None:
    """The same."""


async def _yes() -> bool:
    return True


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger needs of the world."""

    log: Log
    rows: StateRows
    mapper: Mapper
    clock: Clock
    fence_clock: FenceClock
    learn_data_keys: Callable[[dict[str, bytes]], None]
    announce: Callable[[str], Awaitable[None]]
    """(tenure) Tell other processes that this one is the owner now, and where it answers."""
    publish_change: Callable[[bytes], None]
    """Tell edges of a change, over the bus; may lose it."""
    listen_to_edges: Callable[[], None] = _pass
    """Other root keys may have edges by now: see `Ledger.speakers`."""
    projected: Callable[[int, float], Awaitable[bool]]
    """(position, timeout): have the projections reached it?"""
    withdraw: Callable[[], Awaitable[None]] = _nothing
    """Tell other processes that this owner stops, and answers nothing any more."""
    succeeds_nobody: Callable[[], Awaitable[bool]] = _yes
    """Was the last owner this very process, or did it withdraw? Else it may still be answering."""
    end_silent_owner: Callable[[], Awaitable[None]] = _nothing
    """End the session of an owner that holds the partition and has not been heard of for long."""
    prune: Callable[[], Awaitable[None]] = _nothing
    """Let the log forget claims and groups that nobody asks for any more."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How this ledger is set up."""

    lease: LeaseTerms = LeaseTerms()
    edges: EdgeBounds = EdgeBounds()
    max_waiting: int = 20_000
    idempotency_seconds: int = 86_400


class Ledger:
    """One partition: the committed state, the bus in front of the log, fences, and who owns it."""

    epoch: int = 0
    """The log's epoch, as it was read last; 0 before that."""
    position_prefix: str
    """What every position begins with that is told in this epoch."""

    def __init__(self, ports: Ports, terms: Terms | None = None) -> None:
        self.ports = ports
        self.terms = terms or Terms()
        self.partition = ports.log.partition
        self.state = State()
        self.books: Books = self.state
        """The committed state, to be read."""
        self.time = LedgerTime(ports.clock, ports.fence_clock, self.books)
        self.facts = FactsBook(self.state)
        self.limiter = RateLimiter(lambda: ports.fence_clock.boottime_ns() / 1e9)
        self.sightings = Sightings()
        self.seen = self.sightings.seen
        """(key id, when) A use was found valid; recorded at most once a minute."""
        self.tenure = ""
        """What this process calls the time since it became the owner last: another one each time."""
        self.owner = False
        """Does this process own the partition? Else requests are forwarded to the one that does."""
        self.stands_by = False
        """Does another process own the partition?"""
        self.reachable = False
        """Did the log answer when it was last asked?"""
        self.waits_for_standby = False
        """Does PostgreSQL let no commit pass because its standby is away?"""
        self.caught_up = False
        """Was the log read to its end since the start? What is in memory is then what was committed."""
        self.position_prefix = position_prefix(self.partition, self.epoch)
        self._at_new_epoch: list[Callable[[], None]] = []
        self.other_history: OtherHistoryHereError | None = None
        """Why this process answers nothing: what it knows is not in the log."""
        self.shared_key: bytes | None = None
        """A secret of all processes of this ledger: seals leases, and what one forwards to another."""
        self._loaded = False
        self._everything_dirty = False
        self._older_dirty: dict[str, set[Any]] = {}
        self._older_head = 0
        self._looked_for_silence_ns = 0
        tools = Tools(
            self.facts,
            self.limiter,
            lambda: secrets.randbits(80),
            self.partition,
            self.terms.idempotency_seconds,
        )
        self.bus = Bus(
            ports.log,
            self.state,
            ports.mapper,
            ports.clock,
            tools,
            max_waiting=self.terms.max_waiting,
        )
        self._keeper = StateKeeper(ports.rows, self.state, self.bus.narrowings, ports.mapper.data_keys)
        self.bus.find_reservation = self._keeper.find_reservation
        self._listen_to_bus()
        self._stops = asyncio.Event()
        """Set when this process is told to stop."""
        self._appended_ns = 0
        """When the last append left that came back since the last confirmation."""
        self.follower = Follower(
            ports.log,
            self.state,
            ports.mapper,
            self.bus.narrowings,
            note_changed=self.bus.note_changed,
            find_reservation=self._keeper.find_reservation,
        )
        self.head_watch = HeadWatch(lambda: self.state.head)
        self.fences = self._new_fences(os.urandom(32))
        self._receipts: list[FenceReceipt] = []
        self._fence_woken = asyncio.Event()

    def _listen_to_bus(self) -> None:
        self.bus.committed = self._committed
        self.bus.newest_open = self._newest_open
        self.bus.is_sure = lambda: self.confirmed
        self.bus.appends.doubted = self._doubt
        self.bus.appends.boottime_ns = self.ports.fence_clock.boottime_ns
        self.bus.appends.held = self._append_held

    # -- what it offers

    def execute(
        self,
        command: Command,
        asking: Asking,
        *,
        idempotency: Idempotency | None = None,
        render: Render | None = None,
    ) -> asyncio.Future[Done]:
        """Carry out a command; the future is done when what it wrote is durable.

        Raises, or the future does, LedgerError (refused) or CannotAnswerError (ask again later).
        """
        self.must_own()
        return self.bus.submit(command, asking, idempotency, render)

    @property
    def head(self) -> int:
        """The position of the last event that was committed here, or read."""
        return self.books.head

    @property
    def waiting(self) -> int:
        """How many commands wait to be decided."""
        return self.bus.waiting

    def desk(self, asking: Asking) -> Desk:
        """The domain's own rules over the committed state, for reading as somebody sees it."""
        desk = Desk(
            Draft(self.state),
            now=self.time.now(),
            facts=self.facts,
            limiter=self.limiter,
            entropy=lambda: 0,
            partition=self.partition,
        )
        desk.asking = asking
        return desk

    def at_new_epoch(self, forget: Callable[[], None]) -> None:
        """Have it called when the epoch is another: for who keeps positions as they were written."""
        self._at_new_epoch.append(forget)

    @property
    def confirmed(self) -> bool:
        """Is it certain that nobody else decides? Then answers from memory are the truth."""
        return self.owner and self.ports.fence_clock.boottime_ns() < self.fences.owner_until_ns

    @property
    def owner_until_ns(self) -> int:
        """Until then (boottime) answers from memory are the truth; 0 while another process may decide."""
        return self.fences.owner_until_ns if self.owner else 0

    def must_own(self) -> None:
        """Raise unless this process may answer for the partition now."""
        if self.confirmed:
            return
        if self.other_history is not None:
            raise self.other_history
        if not self.reachable:
            raise UnavailableError("postgresql", "PostgreSQL cannot be reached.")
        if self.waits_for_standby and not self.stands_by:
            raise WaitsForStandbyError
        raise NotOwnerHereError("This process does not own the partition.")

    def denied(
        self,
        key_id: str,
        code: str,
        request: str | Refused | None = None,
    ) -> None:
        """A use of a known key was refused (its id, or all that it asked for); recorded in bulk."""
        self.sightings.denied(key_id, code, self.ports.clock.now(), request)

    def last_used_at(self, key_id: str) -> Instant | None:
        """When the key was last charged or seen."""
        recorded = self.state.last_used.get(key_id)
        seen = self.sightings.last_seen(key_id)
        if recorded is None or seen is None:
            return recorded or seen
        return max(recorded, seen)

    async def wait_for_projections(self, position: int, timeout: float = 2.0) -> bool:
        """Have the projections reached this position, at the latest when the time is over?"""
        return await self.ports.projected(position, timeout)

    async def find_reservation(self, reservation_id: str) -> Reservation | None:
        """The reservation as it stands, a settled one included."""
        if reservation_id not in self.state.reservations:
            await self._keeper.find_reservation(reservation_id)
        return self.state.reservations.get(reservation_id)

    async def bootstrap(self, secret: str | None = None) -> str | None:
        """Make the first root key, or the one with this secret; the secret if it was made here.

        None when there is a root key already. One that is given and new is made beside those that
        there are: the log and the audit say so.
        """
        others = any(key.keyspace_id == ROOT_KEYSPACE_ID for key in self.state.keys.values())
        if secret is None and others:
            return None
        text = ROOT_SHAPE.generate() if secret is None else secret
        command = BootstrapRootKey(
            name="bootstrap",
            fingerprint=fingerprint(text),
            hint=hint(text, ROOT_PREFIX),
            reason=_GIVEN_BESIDE_OTHERS if others else None,
        )
        done = await self.bus.submit(command, SYSTEM_ASKING)
        if done.wrote and others:
            log.warning(
                "root_key.added", key_id=done.result.id, hint=command.hint, reason=_GIVEN_BESIDE_OTHERS
            )
        return text if secret is None else None

    # -- owning the partition

    async def run(self, stop: asyncio.Event) -> None:
        """Own the partition whenever nobody else does, until told to stop."""
        self._stops = stop
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._stand_by_or_own(stopping)
                await asyncio.wait({stopping}, timeout=_STAND_BY_SECONDS)
        finally:
            stopping.cancel()
            self._step_down(NotOwnerHereError("This process stops."))
            with contextlib.suppress(LogUnavailableError):
                await self.ports.log.release()

    async def _stand_by_or_own(self, stopping: asyncio.Task[Any]) -> None:
        try:
            # Before the lock is asked for, however long it takes: an owner that replays is silent.
            held = await self._follow(stopping) and await self._take(stopping)
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

    async def _take(self, stopping: asyncio.Task[Any]) -> bool:
        """Become the owner, if nobody else is."""
        held = await self.ports.log.acquire()
        self.reachable = True
        self.stands_by = not held
        if not held:
            self._step_down(NotOwnerHereError("Another process owns the partition."))
            await self._stand_by()
            return False
        if not await self._follow(stopping):
            return False
        asked = await self._outlast_predecessor(stopping)
        if asked is None:
            return False
        await self._become_owner(asked)
        return True

    def _note_unreachable(self, error: LogUnavailableError) -> None:
        if self.reachable:
            log.warning("log.unreachable", error=str(error).partition("\n")[0])
        self.owner = self.reachable = False
        self.fences.lost()
        self.bus.refuse_all(UnavailableError("postgresql", "PostgreSQL cannot be reached."))

    async def _follow(self, stopping: asyncio.Task[Any] | None = None) -> bool:
        """Bring the state up to the log's head, however long that waits for its standby.

        False when this stops before.
        """
        with contextlib.nullcontext() if self._loaded else garbage_kept():
            following = asyncio.create_task(self._load_and_catch_up(), name="follow")
            try:
                return await self._until_read(following, stopping)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _until_read(self, following: asyncio.Task[bool], stopping: asyncio.Task[Any] | None) -> bool:
        either: set[asyncio.Task[Any]] = {following} if stopping is None else {following, stopping}
        looked = False
        try:
            while not following.done() and not (stopping and stopping.done()):
                await asyncio.wait(either, timeout=_STANDBY_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    looked = True
                    await self._look_for_standby(0)
            return following.done() and following.result()
        finally:
            if looked:
                self.waits_for_standby = False

    async def _stop_at_other_history(self, error: OtherHistoryError) -> None:
        """What this process knows is not in the log: it answers nothing until the operator has decided.

        Looked at again and again: a raised epoch makes it read the log anew, and it may be
        that it was led to the wrong server for a moment.
        """
        self.reachable, self.stands_by = True, False
        if self.other_history is None:
            self.other_history = OtherHistoryHereError(str(error))
            log.error("history.differs", problem=self.other_history.detail)
        self._step_down(self.other_history)
        # Whoever has read this log may own the partition.
        with contextlib.suppress(LogUnavailableError):
            await self.ports.log.release()

    async def _load_and_catch_up(self) -> bool:
        end = await self.ports.log.end()
        if end.epoch != self.epoch:
            self._enter(end.epoch)
        if not self._loaded:
            await self._load()
        stored: dict[str, bytes] = {}
        if self.shared_key is None:
            stored = await self.ports.log.data_keys([EDGE_KEYS_SUBJECT])
        if await self.follower.catch_up():
            self.bus.drop_settled_due()
            self.facts.forget_all()
            self.head_watch.moved()
        # It was written with events: it is durable when they are.
        self.shared_key = self.shared_key or stored.get(EDGE_KEYS_SUBJECT)
        self.caught_up = True
        self.other_history = None
        return True

    def _enter(self, epoch: int) -> None:
        """The log's epoch was raised: whatever is known may be of events that it has lost."""
        was, self.epoch = self.epoch, epoch
        self.bus.epoch = self._keeper.epoch = epoch
        self.position_prefix = position_prefix(self.partition, epoch)
        for forget in self._at_new_epoch:
            forget()
        if was:
            log.warning("log.epoch_raised", epoch=epoch, was=was)
            self._loaded = False
            self.shared_key = None
            self.sightings.forget()
            self.ports.mapper.data_keys.forget_all()

    async def _load(self) -> None:
        self._forget_state()
        await self._keeper.load(self._learn_data_keys)
        saved = self._keeper.checkpoint
        if saved.epoch < self.epoch and not await self.follower.is_in_log(saved):
            # Of events that were lost before the epoch was raised: the owner will drop them.
            log.warning("state.of_another_history", through=saved.position)
            self._forget_state()
        self.facts.forget_all()
        self._loaded = True

    async def _learn_data_keys(self) -> None:
        self.ports.learn_data_keys(await self.ports.log.data_keys())

    def _forget_state(self) -> None:
        """Start from nothing: what is in memory cannot be relied on."""
        State.__init__(self.state)
        self.bus.forget()
        self.facts.forget_all()
        self._older_dirty = {}
        self._loaded = self.caught_up = False

    async def _stand_by(self) -> None:
        """What is to be done while another process owns the partition."""
        now = self.ports.fence_clock.boottime_ns()
        if now - self._looked_for_silence_ns < _LOOK_FOR_SILENCE_SECONDS * 1e9:
            return
        self._looked_for_silence_ns = now
        await self.ports.end_silent_owner()
        self.waits_for_standby = await self.ports.log.waits_for_standby()
        if (await self.ports.rows.through()).position >= self._older_head:
            # The owner has saved these rows: neither need we, nor keep what is settled in memory.
            self._keeper.forget_settled(
                self._older_dirty.get("reservations", ()), self.bus.dirty.get("reservations", ())
            )
            self._older_dirty, self.bus.dirty = self.bus.dirty, {}
            self._older_head = self.state.head

    async def _outlast_predecessor(self, stopping: asyncio.Task[Any]) -> int | None:
        """Wait until the owner before us answers nothing from memory any more.

        It may be alive, cut off from the log, and not know: then it verifies for what is left of
        its lease, and a revocation that we acknowledge meanwhile would not be heard there.
        What was read until now may be on this server alone: the log confirms, by a commit that its
        standby must have, that it is not. On a primary that was deposed that never comes.
        Answers when the lock was last known to be held; None when it is not, or this stops.
        """
        asked = self.ports.fence_clock.boottime_ns()
        if not await self.ports.succeeds_nobody():
            patience = self.terms.lease.booked_ns(0) / 1e9
            await asyncio.wait({stopping}, timeout=patience)
            asked = self.ports.fence_clock.boottime_ns()
        if stopping.done() or not await self._patiently(self.ports.log.confirm(), stopping):
            return None
        return asked

    async def _patiently(
        self, confirming: Coroutine[Any, Any, bool], stopping: asyncio.Task[Any] | None = None
    ) -> bool:
        """The log's answer, however long it waits for its standby; false when this stops before.

        While it waits, leases run out, and those who ask are told why.
        """
        asked = asyncio.get_running_loop().time()
        answering = asyncio.ensure_future(confirming)
        either = {answering} if stopping is None else {answering, stopping}
        try:
            while True:
                await asyncio.wait(either, timeout=_STANDBY_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
                if stopping is not None and stopping.done():
                    return False
                await self._look_for_standby(asyncio.get_running_loop().time() - asked)
        finally:
            answering.cancel()
            self.waits_for_standby = False

    async def _look_for_standby(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(_STANDBY_LOOK_SECONDS):
                waits = await self.ports.log.waits_for_standby()
        except (LogUnavailableError, TimeoutError):
            return
        self.reachable = True
        if waits and not self.waits_for_standby:
            log.warning("log.waits_for_standby")
        self.waits_for_standby = waits
        if waits:
            long = seconds >= _LONGEST_APPEND_SECONDS or self._stops.is_set()
            self.bus.give_up_waiting(WaitsForStandbyError(), on_appends=long)

    async def _become_owner(self, asked: int) -> None:
        stored = await self.ports.log.data_keys([EDGE_KEYS_SUBJECT])
        material = stored.get(EDGE_KEYS_SUBJECT)
        if material is None:
            material = os.urandom(32)
            self.bus.new_data_keys = (NewDataKey(EDGE_KEYS_SUBJECT, material),)
        self.shared_key = material
        await self._take_over_rows()
        self.fences = self._new_fences(material)
        self.fences.confirmed(asked)
        self._appended_ns = 0
        await self._resume_fences()
        self.tenure = secrets.token_hex(8)
        await self.ports.announce(self.tenure)
        self.owner = True
        self.bus.accepting = True
        self.ports.listen_to_edges()
        log.info("partition.owned", partition=self.partition, head=self.state.head)

    async def _take_over_rows(self) -> None:
        older, self._older_dirty = self._older_dirty, {}
        self._mark_dirty(older)
        if not await self._keeper.take_over(self.follower.is_in_log):
            self._everything_dirty = True

    def _mark_dirty(self, dirty: dict[str, set[Any]]) -> None:
        for table, rows in dirty.items():
            self.bus.dirty.setdefault(table, set()).update(rows)

    def _new_fences(self, master_key: bytes) -> FenceKeeper:
        return FenceKeeper(
            self.ports.fence_clock,
            terms=self.terms.lease,
            partition=self.partition,
            epoch=self.epoch,
            head=self.state.head,
            mark=self.state.mark,
            master_key=master_key,
            publish=self.ports.publish_change,
            record_receipt=self._receipt,
            may_connect=self.may_connect,
            expects=self._root_keys_with_edges(),
            on_newcomer=self.ports.listen_to_edges,
            bounds=self.terms.edges,
        )

    def _root_keys_with_edges(self) -> list[str]:
        # Root keys are read at once when a state is loaded; the rows of others stay as they are.
        decoded = dict[str, Key].values(self.state.keys)
        return [key.id for key in decoded if is_root(key) and self.may_connect(key.id)]

    def speakers(self) -> dict[str, int]:
        """The root keys whose edges are to be listened to, with how many each has; none if not the owner."""
        return self.fences.speakers() if self.owner else {}

    def may_connect(self, root_key_id: str) -> bool:
        """Is this a root key that works, as committed, and may edges take part with it?"""
        key = self.state.keys.get(root_key_id)
        if key is None or not is_root(key) or key.deleted or key.status(self.ports.clock.now()) != "active":
            return False
        organization = self.state.organizations.get(key.organization_id) if key.organization_id else None
        suspended = organization is not None and organization.suspended
        return not suspended and "edges:connect" in permissions_of(key)

    async def _resume_fences(self) -> None:
        """Fences without a receipt go on, however long ago; edges are told of the latest changes."""
        after = max(0, self.state.head - _CHANGES_TOLD)
        changes: list[Change] = []
        read = await self.ports.log.read(after, _CHANGES_TOLD)
        for recorded in read:
            event = self.ports.mapper.decode(recorded)
            change = change_of(event, self.state, recorded.position)
            if change is not None:
                changes.append(change)
        self.fences.preload(changes, after=after, marks=[(one.position, one.mark) for one in read])
        self._receipts.clear()
        self.fences.resume(self.bus.narrowings.open)

    def _doubt(self) -> None:
        """The lock's session is lost: somebody else may own the partition, or may have in between."""
        self.owner = self.bus.accepting = False
        self.fences.lost()

    def _append_held(self, sent_ns: int) -> None:
        """An append that is durable shows what a confirmation would."""
        if self.owner:
            self._appended_ns = sent_ns
            self.fences.confirmed(sent_ns)

    def _step_down(self, answer: CannotAnswerError) -> None:
        if self.owner:
            log.info("partition.left", partition=self.partition)
        self.owner = False
        self.fences.lost()
        self.bus.refuse_all(answer)

    # -- while owning it

    async def _work(self, stopping: asyncio.Task[Any]) -> None:
        bus = asyncio.create_task(self.bus.run(), name="bus")
        others = [
            asyncio.create_task(self._confirm(), name="confirm"),
            asyncio.create_task(self._watch_epoch(), name="epoch"),
            asyncio.create_task(self._save(), name="save"),
            asyncio.create_task(self._watch_fences(), name="fences"),
            asyncio.create_task(self._write_sightings(), name="sightings"),
            asyncio.create_task(self._prune(), name="prune"),
        ]
        try:
            await asyncio.wait({stopping, bus, *others}, return_when=asyncio.FIRST_COMPLETED)
            await self._finish(bus, others, graceful=stopping.done())
        finally:
            waited = self.waits_for_standby
            for task in (bus, *others):
                task.cancel()
            results = await asyncio.gather(bus, *others, return_exceptions=True)
            self._after_work(results)
        if stopping.done() and self._loaded:
            if waited:
                # What parting writes would wait for the standby as well: the next owner does without.
                log.warning("partition.left_in_haste", error=WaitsForStandbyError.__name__)
            else:
                await self._part()

    async def _finish(
        self, bus: asyncio.Task[None], others: list[asyncio.Task[None]], *, graceful: bool
    ) -> None:
        """Let the group under way end as it will: cut off in its append, nobody knew what became of it."""
        if not graceful:
            for task in others:
                if task.done():
                    self._leave(_failure_of(task))
        self.bus.finish(drain=graceful)
        await asyncio.wait({bus}, timeout=_MOST_PAUSE_BEFORE_STOP_SECONDS)

    async def _part(self) -> None:
        """Leave in good order: the next owner need not replay, nor wait for us."""
        try:
            async with asyncio.timeout(_MOST_PAUSE_BEFORE_STOP_SECONDS):
                await self._save_once()
                await self.ports.withdraw()
        except (LogUnavailableError, NotOwnerError, Lost, TimeoutError) as error:
            log.warning("partition.left_in_haste", error=type(error).__name__)

    def _after_work(self, results: Sequence[BaseException | None]) -> None:
        for result in results:
            self._leave(result)
            if isinstance(result, Exception) and not isinstance(result, Lost):
                log.error("ledger.failed", exc_info=result)
                self._forget_state()
        self._leave(None)

    def _leave(self, why: BaseException | None) -> None:
        """Answer for the partition no more. What waits was not begun: others may decide it."""
        if isinstance(why, Lost) and isinstance(why.answer, UnavailableError):
            self._note_unreachable(LogUnavailableError(why.answer.detail))
        else:
            self._step_down(NotOwnerHereError("This process does not own the partition."))

    async def _confirm(self) -> None:
        """Rules 9 and 16 of the fence: be sure of the lock, every quarter of a lease.

        While the log waits for its standby nothing is confirmed: the lease runs out, by our own clock,
        and the partition is ours still when the standby is back and nobody took it.
        """
        pause_ns = self.terms.lease.lease_ms * 250_000
        wait_ns = 0
        while True:
            await asyncio.sleep(wait_ns / 1e9)
            asked = self.ports.fence_clock.boottime_ns()
            appended, self._appended_ns = self._appended_ns, 0
            if appended and appended + pause_ns > asked:
                wait_ns = appended + pause_ns - asked
                continue
            try:
                held = await self._patiently(self.ports.log.confirm())
            except LogUnavailableError as error:
                raise Lost(UnavailableError("postgresql", str(error))) from error
            if not held:
                raise Lost(NotOwnerHereError("The partition's lock is lost."))
            self.fences.confirmed(asked)
            wait_ns = max(0, asked + pause_ns - self.ports.fence_clock.boottime_ns())

    async def _watch_epoch(self) -> None:
        """An owner that writes nothing must notice, too, that the epoch was raised."""
        while True:
            await asyncio.sleep(_EPOCH_LOOK_SECONDS)
            with contextlib.suppress(LogUnavailableError):
                if (await self.ports.log.end()).epoch != self.epoch:
                    raise Lost(NotOwnerHereError("The log's epoch was raised."))

    async def _save(self) -> None:
        saved_at = self.ports.fence_clock.boottime_ns()
        while True:
            await asyncio.sleep(_SAVE_LOOK_SECONDS)
            now = self.ports.fence_clock.boottime_ns()
            behind = self.state.head - self._keeper.through
            if behind < _SAVE_EVENTS and now - saved_at < _SAVE_SECONDS * 1e9:
                continue
            saved_at = now
            try:
                await self._save_once()
            except LogUnavailableError:
                log.warning("state.not_saved")

    async def _save_once(self) -> None:
        if self._everything_dirty:
            self._everything_dirty = False
            self._mark_dirty(self._all_rows())
        while self._keeper.begins and (part := take_part(self.bus.dirty)) is not None:
            if not await self._save_rows(part, in_parts=True):
                return
        dirty, self.bus.dirty = self.bus.dirty, {}
        if await self._save_rows(dirty, in_parts=False):
            changed = self.bus.dirty.get("reservations", ())
            self._keeper.forget_settled(dirty.get("reservations", ()), changed)

    async def _save_rows(self, dirty: dict[str, set[Any]], *, in_parts: bool) -> bool:
        """False: the rows were not as they were left, and all of them will be written anew."""
        try:
            await self._keeper.save(dirty, in_parts=in_parts)
        except CheckpointMovedError as error:
            # An owner of old saved once more before it noticed, or somebody cleared the rows.
            self._everything_dirty = True
            if not await self.ports.log.confirm():
                raise Lost(NotOwnerHereError("Another process owns the partition.")) from error
            await self._keeper.take_over(self.follower.is_in_log)
            return False
        except BaseException:
            self._mark_dirty(dirty)
            raise
        return True

    def _all_rows(self) -> dict[str, set[Any]]:
        names = (
            "keyspaces", "organizations", "projects", "plans", "keys", "wallets", "counters",
            "reservations", "refunds", "last_used", "versions",
        )  # fmt: skip
        return {name: set(getattr(self.state, name)) for name in names}

    async def _write_sightings(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            command = self.sightings.take(self.ports.clock.now())
            if command is None:
                continue
            try:
                await self.bus.submit(command, SYSTEM_ASKING)
            except (LedgerError, CannotAnswerError):
                self.sightings.put_back(command)

    async def _prune(self) -> None:
        pause = _FIRST_PRUNE_SECONDS
        while True:
            await asyncio.sleep(pause)
            pause = _PRUNE_SECONDS
            try:
                await self.ports.prune()
            except LogUnavailableError:
                log.warning("log.not_pruned")

    # -- fences

    def _committed(self, position: int, changes: Sequence[Change]) -> None:
        self.fences.committed(position, changes, mark=self.state.mark)
        self.head_watch.moved()
        if self.fences.open_fences:
            self._fence_woken.set()

    def _newest_open(self, subjects: Collection[str] | None) -> int | None:
        return self.fences.newest_open(subjects)

    def _receipt(self, receipt: FenceReceipt) -> None:
        self._receipts.append(receipt)
        self._fence_woken.set()

    async def _watch_fences(self) -> None:
        """Let leases end in time, and write receipts."""
        while True:
            deadline = self.fences.next_deadline_ns
            now = self.ports.fence_clock.boottime_ns()
            seconds = 1.0 if deadline is None else max(0.001, (deadline - now) / 1e9)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, seconds)):
                    await self._fence_woken.wait()
            self._fence_woken.clear()
            self.fences.advance()
            self._write_receipts()

    def _write_receipts(self) -> None:
        while self._receipts:
            try:
                written = self.bus.submit(_receipt_command(self._receipts[0]), SYSTEM_ASKING)
            except CannotAnswerError:
                return  # too much waits: with the next look
            # One that is not written is written by the next owner: the fence stays open till then.
            written.add_done_callback(_look_at)
            del self._receipts[0]


def _look_at(future: asyncio.Future[Any]) -> None:
    """Failed or not: nobody else waits for it."""
    if not future.cancelled() and (error := future.exception()) is not None:
        log.info("fence.receipt_not_written", reason=type(error).__name__)


def _failure_of(task: asyncio.Task[Any]) -> BaseException | None:
    return None if task.cancelled() else task.exception()


def _receipt_command(receipt: FenceReceipt) -> RecordFence:
    return RecordFence(
        fenced=receipt.positions,
        committed_at=receipt.committed_at,
        fenced_at=receipt.fenced_at,
        edges_acknowledged=receipt.edges_acknowledged,
        edges_expired=receipt.edges_expired,
    )
