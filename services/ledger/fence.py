"""The fence on the ledger's side: which edges may still accept what, and when none can any more.

It does no I/O: bytes come in and go out, and clock and publisher are parameters, so that a simulation
can run it. Rules with a number are those of docs/fence.md.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from domain.ids import format_position
from domain.ports import FenceClock
from keyledger_language import (
    Change,
    ChangeMessage,
    EdgeIdentity,
    Grant,
    LeaseRequest,
    position_prefix,
    read_request,
    seal_grant,
    write_changes,
)
from services.ledger.fence_results import EdgeView, FenceReceipt, FenceResult
from services.ledger.lease_table import EdgeBounds, LeasedEdge, LeaseTable
from services.ledger.lease_terms import LeaseTerms
from services.ledger.recent_changes import RecentChanges

_QUIET: Final = 0
"""No event has this position: the fence that holds once no lease of the previous owner runs (rule 9)."""
_KEPT_FENCES: Final = 10_000
_EXPECTS_NS: Final = 60 * 1_000_000_000
"""An edge of the previous owner that was silent for so long connects again, over HTTP."""
_EXPECTED_EDGES: Final = 100


def _nothing() -> None:
    pass


class _Fence:
    """One commit that took something away, and the edges that may not know of it yet."""

    __slots__ = (
        "acknowledged", "committed_at", "committed_ns", "edges", "expired", "held_ns",
        "position", "positions", "subjects", "waiters", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        positions: tuple[int, ...],
        committed_ns: int,
        committed_at: int,
        waiting: dict[EdgeIdentity, int],
        subjects: frozenset[str] | None,
    ) -> None:
        self.subjects = subjects
        """The ids from which something was taken away; None: unknown, so it may be any."""
        self.positions = positions
        self.position = positions[-1]
        self.committed_ns = committed_ns
        self.committed_at = committed_at
        self.waiting = waiting
        self.edges = len(waiting)
        self.acknowledged = 0
        self.expired = 0
        self.held_ns: int | None = None
        self.waiters: list[asyncio.Future[None]] = []


class FenceKeeper:
    """The lease table of a partition's owner, its grants, and the fences that wait for them.

    Call `confirmed` whenever the partition's lock was found held, `committed` right after each
    commit, `handle` with what edges send, and `advance` when `next_deadline_ns` has come.
    """

    lease_table = LeaseTable

    def __init__(
        self,
        clock: FenceClock,
        *,
        terms: LeaseTerms,
        partition: int,
        epoch: int,
        head: int,
        mark: int = 0,
        master_key: bytes,
        publish: Callable[[bytes], None],
        record_receipt: Callable[[FenceReceipt], None],
        may_connect: Callable[[str], bool] = lambda _root_key_id: True,
        expects: Collection[str] = (),
        on_newcomer: Callable[[], None] = _nothing,
        bounds: EdgeBounds | None = None,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._clock = clock
        self._terms = terms
        self._partition = partition
        self._epoch = epoch
        self._prefix = position_prefix(partition, epoch)
        self._may_connect = may_connect
        self._expects = frozenset(expects)
        self._expects_until = clock.boottime_ns() + _EXPECTS_NS
        self._on_newcomer = on_newcomer
        self._publish = publish
        self._record_receipt = record_receipt
        self._lineage = random_bytes(8)
        self._recent = RecentChanges(head, mark, chain=random_bytes(16))
        self._head = head
        self._mark = mark
        self._leases = self.lease_table(clock, master_key, bounds or EdgeBounds(), random_bytes)
        self._open: dict[int, _Fence] = {}
        """By first position, in the order in which they were raised."""
        self._fences: dict[int, _Fence] = {}
        """Open fences and the latest that held, kept for their figures only."""
        self._knows_all = False
        """Rule 13: whether every fence that the previous owner left open is among these."""
        self._lost = False
        self.owner_until_ns = 0
        """Until then this process may verify, fill, grant and answer fences (boottime)."""
        # Rule 9: leases that the previous owner granted may still run.
        self._quiet_until = clock.boottime_ns() + terms.booked_ns(terms.max_serve_stale_ms)

    # -- ownership --------------------------------------------------------------------------

    def confirmed(self, asked_ns: int) -> None:
        """The partition's lock was held; `asked_ns` is when the check was sent (boottime)."""
        self.owner_until_ns = max(self.owner_until_ns, asked_ns + self._terms.granted_ns)

    def lost(self) -> None:
        """The lock is lost: grant and answer nothing more."""
        self.owner_until_ns = 0
        self._lost = True
        for fence in self._open.values():
            _wake(fence)

    def _remaining_ns(self, now: int) -> int:
        """The rest of L(1 - e) since the lock was last known to be held (rule 9)."""
        return self.owner_until_ns - now

    @property
    def head(self) -> int:
        """The position up to which grants carry everything."""
        return self._head

    @property
    def lineage(self) -> bytes:
        """Random for each time of ownership, whose messages form one chain."""
        return self._lineage

    @property
    def epoch(self) -> int:
        """The log's epoch."""
        return self._epoch

    # -- commits ----------------------------------------------------------------------------

    def preload(
        self, changes: Iterable[Change], *, after: int, marks: Iterable[tuple[int, int]] = ()
    ) -> None:
        """Changes in (after, head] from the log, so that edges of the previous owner keep their memory.

        `marks`: of the positions behind `after`, to recognise what that owner granted.
        """
        self._recent.preload(changes, after=after, marks=marks)

    def committed(self, position: int, changes: Sequence[Change] = (), *, mark: int = 0) -> None:
        """The log's head is now `position`, durably, with this mark; `changes` are those of the commit.

        Nothing may happen between the news of the commit and this call: grants carry everything up
        to the head, and a fence waits for each edge whose lease does not (rule 6).
        """
        assert position >= self._head, "the log only grows"
        self._head = position
        self._mark = mark
        if not changes:
            return
        self._recent.remember(changes)
        narrowing = [one for one in changes if one.narrowing]
        if narrowing:
            self._raise_fence(narrowing)
        self._broadcast(position, tuple(changes))

    def _broadcast(self, position: int, changes: tuple[Change, ...]) -> None:
        recent = self._recent
        data = write_changes(
            ChangeMessage(self._partition, self._epoch, self._lineage, recent.last_message, position, changes)
        )
        recent.sent(data, position)
        self._publish(data)

    def _raise_fence(self, narrowing: Sequence[Change]) -> None:
        now = self._clock.boottime_ns()
        positions = tuple(sorted({one.position for one in narrowing}))
        subjects = frozenset(one.id for one in narrowing)
        # An edge that never got a grant accepts nothing, so the fence does not wait for it.
        waiting = {edge.who: edge.ends for edge in self._leases if edge.ends > now}
        self._add_fence(_Fence(positions, now, self._clock.now(), waiting, subjects))

    def resume(self, left_open: Mapping[int, int]) -> None:
        """Take over the fences that the previous owner left without a receipt: positions and commit times.

        Until this was called, no fence is reported as held.
        """
        now = self._clock.boottime_ns()
        # Edges with a lease of the previous owner may accept anything, even from a history that was lost.
        self._open[_QUIET] = _Fence((_QUIET, self._head), now, self._clock.now(), {}, None)
        for position, committed_at in sorted(left_open.items()):
            self._add_fence(_Fence((position,), now, committed_at, {}, None))
        self._knows_all = True

    def _add_fence(self, fence: _Fence) -> None:
        self._open[fence.positions[0]] = fence
        for position in fence.positions:
            self._fences[position] = fence
        while len(self._fences) > _KEPT_FENCES and not self._fences_are_open():
            del self._fences[next(iter(self._fences))]
        self._settle(fence, self._clock.boottime_ns())

    def _fences_are_open(self) -> bool:
        return self._fences[next(iter(self._fences))].held_ns is None

    # -- what edges send --------------------------------------------------------------------

    def admit(self, root_key_id: str, edge_id: str, incarnation: bytes) -> LeasedEdge:
        """Admit a new incarnation. Raises IncarnationTakenError or TooManyEdgesError."""
        edge = self._leases.admit(root_key_id, edge_id, incarnation)
        self._on_newcomer()
        return edge

    def readmit(self, who: EdgeIdentity, proof: bytes) -> LeasedEdge:
        """Give an incarnation the terms again; it keeps its key, which is not sent again."""
        edge = self._leases.readmit(who, proof)
        self._on_newcomer()
        return edge

    def speakers(self) -> dict[str, int]:
        """The root keys whose edges' messages are received, with how many edges each may have.

        Those with admitted edges; and for a while those that had edges with the previous owner.
        """
        edges = self._leases.edges_by_root_key()
        if self._clock.boottime_ns() < self._expects_until:
            for root_key_id in self._expects:
                edges[root_key_id] = edges.get(root_key_id, 0) + _EXPECTED_EDGES
        return {root_key_id: count for root_key_id, count in edges.items() if self._may_connect(root_key_id)}

    def handle(self, data: bytes) -> tuple[str, bytes] | None:
        """Handle a request or an acknowledgement; the edge to answer and its grant, if it gets one."""
        request = read_request(data)
        if request is None or request.partition != self._partition:
            return None
        edge = self._leases.speaker(data, request, self._may_connect)
        if edge is None:
            return None
        now = self._clock.boottime_ns()
        if request.epoch == self._epoch and request.vouched > self._head:
            # It knows more than this process: another one owns the partition, or the log has lost events.
            edge.note_ahead(request, now)
            return None
        self._heard(edge, request, now)
        grant = self._grant(edge, request, now) if self._may_be_granted(edge, request, now) else None
        if grant is None:
            return None
        return f"{edge.who.root_key_id}.{edge.who.edge_id}", seal_grant(grant, edge.key)

    def _may_be_granted(self, edge: LeasedEdge, request: LeaseRequest, now: int) -> bool:
        """Whether it asks (0 only acknowledges), for the first time, and its root key still admits it."""
        return (
            request.number > 0
            and self._leases.takes_number(edge, request.number, now)
            and self._may_connect(edge.who.root_key_id)
        )

    def _heard(self, edge: LeasedEdge, request: LeaseRequest, now: int) -> None:
        edge.heard = now
        edge.spoke = True
        # A position of another epoch is no position of this log.
        edge.position = request.position if request.epoch == self._epoch else 0
        edge.version = request.version
        if request.epoch == self._epoch:
            known = max(edge.proven_head(request.vouched), self._recent.heard_up_to(request.chain))
            if known > edge.known:
                edge.known = known
                self._acknowledge(edge, now)

    def _acknowledge(self, edge: LeasedEdge, now: int) -> None:
        """The edge applied everything up to `known`, and what it applied is what this process sent."""
        for fence in list(self._open.values()):
            if fence.position <= edge.known and fence.waiting.pop(edge.who, None) is not None:
                fence.acknowledged += 1
                if not fence.waiting:
                    self._settle(fence, now)

    def _grant(self, edge: LeasedEdge, request: LeaseRequest, now: int) -> Grant | None:
        remaining = self._remaining_ns(now)
        if remaining <= 0:
            return None
        stale_ms = self._terms.stale_ms(request.serve_stale_ms)
        self._book(edge, now, stale_ms)
        edge.note_grant(self._head)
        recent = self._recent
        recent.note_mark(self._head, self._mark)
        changes = self._changes_since(request)
        return Grant(
            request.who,
            request.number,
            self._partition,
            self._epoch,
            self._lineage,
            self._head,
            self._mark,
            recent.last_message,
            recent.chain,
            recent.knows(request.chain),
            changes is None,
            changes or (),
            remaining + self._terms.stale_ns(stale_ms),
            self._clock.now(),
        )

    def _book(self, edge: LeasedEdge, now: int, stale_ms: int) -> None:
        edge.ends = max(edge.ends, now + self._terms.booked_ns(stale_ms))

    def _is_of_our_history(self, request: LeaseRequest) -> bool:
        """Rule 15: whether what the edge knows is a part of this log. This owner's chains are random."""
        return self._recent.knows(request.chain) or self._recent.has_mark(request.vouched, request.mark)

    def _changes_since(self, request: LeaseRequest) -> tuple[Change, ...] | None:
        """Rule 3: the changes in (vouched, head]; None when they are not kept any more.

        Counted from what was granted, or from what the edge proves to have received from this owner.
        """
        if request.epoch != self._epoch or not self._is_of_our_history(request):
            return None
        return self._recent.since(max(request.vouched, self._recent.heard_up_to(request.chain)))

    # -- fences -----------------------------------------------------------------------------

    @property
    def next_deadline_ns(self) -> int | None:
        """When `advance` has something to do at the latest; None while no fence is open."""
        if not self._open:
            return None
        return min(
            max(self._quiet_until, max(fence.waiting.values(), default=0)) for fence in self._open.values()
        )

    def advance(self) -> None:
        """Do what is due: leases and quiet periods end, edges are forgotten."""
        now = self._clock.boottime_ns()
        for fence in list(self._open.values()):
            self._settle(fence, now)
        self._leases.forget_old(now)

    def _settle(self, fence: _Fence, now: int) -> None:
        if fence.held_ns is not None or now < self._quiet_until or self._remaining_ns(now) <= 0:
            return
        if any(ends > now for ends in fence.waiting.values()):
            return
        fence.expired = len(fence.waiting)
        fence.waiting = {}
        fence.held_ns = now
        del self._open[fence.positions[0]]
        if fence.positions[0] != _QUIET:
            self._record_receipt(self._receipt_of(fence))
        _wake(fence)

    def _receipt_of(self, fence: _Fence) -> FenceReceipt:
        return FenceReceipt(
            positions=fence.positions,
            committed_at=fence.committed_at,
            fenced_at=max(fence.committed_at, self._clock.now()),
            edges_acknowledged=fence.acknowledged,
            edges_expired=fence.expired,
        )

    def newest_open(self, subjects: Collection[str] | None = None) -> int | None:
        """The position of the newest fence that does not hold yet, of those that may concern the subjects.

        Waiting for it with `fence` waits for all older ones, too.
        """
        self._settle_quiet()
        for fence in reversed(self._open.values()):
            if subjects is None or fence.subjects is None or not fence.subjects.isdisjoint(subjects):
                return fence.position
        return None

    async def fence(self, position: int) -> FenceResult:
        """Wait until nothing that was taken away up to this position is accepted anywhere (rule 13).

        Answers `held: false` only when this process ceased to be the owner meanwhile, or does not
        know the position.
        """
        while (fence := self._newest_open_up_to(position)) is not None and not self._lost:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            fence.waiters.append(waiter)
            await waiter
        return self.fence_of(position)

    def fence_of(self, position: int) -> FenceResult:
        """The state of the fence, with the figures of the change itself while they are kept."""
        waits_for = self._newest_open_up_to(position)
        held = waits_for is None and self._knows_all and position <= self._head
        fence = self._fences.get(position) or waits_for
        if fence is None:
            return self._result(position, held=held)
        until = fence.held_ns if held and fence.held_ns is not None else self._clock.boottime_ns()
        waited_ms = round((until - fence.committed_ns) / 1_000_000, 3)
        return self._result(position, held=held, fence=fence, waited_ms=waited_ms)

    def _result(
        self, position: int, *, held: bool, fence: _Fence | None = None, waited_ms: float = 0.0
    ) -> FenceResult:
        return FenceResult(
            position=format_position(self._prefix, position),
            held=held,
            edges=0 if fence is None else fence.edges,
            acknowledged=0 if fence is None else fence.acknowledged,
            expired=0 if fence is None else fence.expired,
            waited_ms=waited_ms,
        )

    def _settle_quiet(self) -> None:
        quiet = self._open.get(_QUIET)
        if quiet is not None:
            self._settle(quiet, self._clock.boottime_ns())

    def _newest_open_up_to(self, position: int) -> _Fence | None:
        self._settle_quiet()
        oldest = next(iter(self._open.values()), None)
        if oldest is None or oldest.positions[0] > position:
            return None
        return next(one for one in reversed(self._open.values()) if one.positions[0] <= position)

    @property
    def open_fences(self) -> int:
        """How many fences do not hold yet."""
        return len(self._open) - (_QUIET in self._open)

    def edges(self) -> list[EdgeView]:
        """The edges that sent something lately."""
        now = self._clock.boottime_ns()
        return [
            EdgeView(
                edge_id=edge.who.edge_id,
                root_key_id=edge.who.root_key_id,
                incarnation=edge.who.incarnation.hex(),
                version=edge.version,
                position=format_position(self._prefix, edge.position),
                lease_left_ms=max(0, edge.ends - now) // 1_000_000,
                last_heard_ms=(now - edge.heard) // 1_000_000,
            )
            for edge in self._leases
            if edge.spoke
        ]


def _wake(fence: _Fence) -> None:
    for waiter in fence.waiters:
        if not waiter.done():
            waiter.set_result(None)
    fence.waiters.clear()
