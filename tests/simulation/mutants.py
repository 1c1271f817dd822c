"""Each rule of the fence switched off, one at a time: the checker must notice."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

from msgspec.structs import replace

from keyledger_edge import (
    Change,
    ChangeMessage,
    EdgeIdentity,
    FillAnswer,
    Grant,
    LeasedCache,
    LeaseRequest,
    Membership,
    Verifier,
    read_changes,
)
from services.ledger.fence import FenceKeeper, _Fence
from services.ledger.lease_table import LeasedEdge, LeaseTable, derive_edge_key
from tests.simulation.cluster import Parts


class AcknowledgementWithoutProof(FenceKeeper):
    """Rule 10: the ledger believes an edge's position, whoever told the edge."""

    def _heard(self, edge: LeasedEdge, request: LeaseRequest, now: int) -> None:
        self._recent._chains.setdefault(request.chain, request.position)
        super()._heard(edge, request, now)


class StaleBoundNotBooked(FenceKeeper):
    """Rule 11: the fence does not wait for edges that chose to serve stale."""

    def _book(self, edge: LeasedEdge, now: int, stale_ms: int) -> None:
        super()._book(edge, now, 0)


class LeaseFromReceipt(LeasedCache):
    """Rule 1: the lease counts from when the grant came."""

    def _extend(self, grant: Grant, sent: int) -> None:
        super()._extend(grant, self._clock())


class GrantWithoutChanges(FenceKeeper):
    """Rule 3: a grant says how long, but not what changed."""

    def _changes_since(self, request: LeaseRequest) -> tuple[Change, ...] | None:
        changes = super()._changes_since(request)
        return None if changes is None else ()


class AcknowledgeOverAGap(LeasedCache):
    """Rule 4: a hole is stepped over, and what was missed is never asked for."""

    def _follows(self, message: ChangeMessage) -> bool:
        if message.epoch != self._epoch:
            return False
        self._vouched = max(self._vouched, message.position)
        return True


class AcknowledgeBeforeApplying(LeasedCache):
    """Rule 5: the edge says that it has applied what it is about to apply."""

    _later: tuple[Change, ...] = ()

    def changed(self, data: bytes) -> bytes | None:
        message = read_changes(data)
        follows = message is not None and message.position > self._position and self._follows(message)
        if message is None or not follows:
            return super().changed(data)
        self._catch_up_with_later()
        self._later = message.changes
        return super().changed(data)

    def _apply(self, change: Change) -> None:
        if change not in self._later:
            super()._apply(change)

    def request(self) -> bytes | None:
        self._catch_up_with_later()
        return super().request()

    def _catch_up_with_later(self) -> None:
        changes, self._later = self._later, ()
        for change in changes:
            super()._apply(change)


class NoSnapshot(FenceKeeper):
    """Rule 6: a fence asks nobody."""

    def _add_fence(self, fence: _Fence) -> None:
        fence.waiting.clear()
        super()._add_fence(fence)


class NoAsOfCheck(LeasedCache):
    """Rule 7: whatever the ledger said is remembered, however old it is."""

    def believes(self, answer: FillAnswer) -> bool:
        return True


class AsOfOfTheKeyAlone(LeasedCache):
    """Rule 7: the fill is compared with changes of its key, and with nothing else it rests on."""

    def believes(self, answer: FillAnswer) -> bool:
        tombstones = self._tombstones
        facts = answer.facts
        return facts is None or not (
            answer.as_of < tombstones.floor or tombstones._changed(facts.key_id, answer.as_of)
        )


class JoinAnyFlight(Verifier):
    """Rule 8: a look-up is shared whenever it began."""

    def _may_share(self, flight: Any, arrived: int, answer: FillAnswer | None) -> bool:
        return True


class SecondGranter(FenceKeeper):
    """Rule 9: who once owned the partition goes on granting."""

    def _remaining_ns(self, now: int) -> int:
        return self._terms.granted_ns if self.owner_until_ns else 0


class LedgerForgetsLeases(FenceKeeper):
    """Rule 9: a new owner does not wait for what the one before granted."""

    def _add_fence(self, fence: _Fence) -> None:
        self._quiet_until = 0
        super()._add_fence(fence)


class BooksTooLittle(FenceKeeper):
    """Rule 1: the ledger waits only for half of what it granted."""

    def _book(self, edge: LeasedEdge, now: int, stale_ms: int) -> None:
        edge.ends = max(edge.ends, now + self._terms.booked_ns(stale_ms) // 2)


class NumberWithoutMark(FenceKeeper):
    """Rule 15: an edge's number is taken for a place in this log, whichever log it was heard of."""

    def _is_of_our_history(self, request: LeaseRequest) -> bool:
        return True


class HeldForAFenceNotFound(FenceKeeper):
    """Rule 13: where the position itself has no fence, nothing is waited for."""

    def newest_open(self, subjects: Collection[str] | None = None) -> int | None:
        return None

    def _newest_open_up_to(self, position: int) -> _Fence | None:
        return self._open.get(position)


class _KeyOfIdsAlone(LeaseTable):
    @staticmethod
    def _of_ids(master_key: bytes, who: EdgeIdentity) -> bytes:
        return derive_edge_key(master_key, replace(who, nonce=bytes(24)))

    derive = _of_ids


class NonceLeftOutOfTheKey(FenceKeeper):
    """Rule 14: whoever connects with ids that it overheard is told the key of the edge that has them."""

    lease_table = _KeyOfIdsAlone


class _FoundByIncarnation(LeaseTable):
    def speaker(
        self, data: bytes, request: LeaseRequest, may_connect: Callable[[str], bool]
    ) -> LeasedEdge | None:
        speaker = super().speaker(data, request, may_connect)
        if speaker is None:
            return None
        return next(one for one in self if one.who.incarnation == request.who.incarnation)


class AnotherEdgeAcknowledgesInItsName(FenceKeeper):
    """Rule 14: an edge is known by its incarnation, whoever speaks of that."""

    lease_table = _FoundByIncarnation


class _AnyNumber(LeaseTable):
    def takes_number(self, edge: LeasedEdge, number: int, now: int) -> bool:
        taken = number > edge.number
        edge.number = max(edge.number, number)
        return taken


class NumberThatJumps(FenceKeeper):
    """Rule 14: whatever number is higher is taken, and makes those below old."""

    lease_table = _AnyNumber


class _Unbounded(LeaseTable):
    def _make_room(self, root_key_id: str, now: int) -> None:
        pass


class EdgesWithoutBound(FenceKeeper):
    """Rule 14: a root key takes part with as many edges as it likes."""

    lease_table = _Unbounded


class VouchedIsBelieved(FenceKeeper):
    """Rule 14: an edge knows what it says that it was vouched for, whoever vouched."""

    def _heard(self, edge: LeasedEdge, request: LeaseRequest, now: int) -> None:
        edge.note_grant(request.vouched)
        super()._heard(edge, request, now)


class GrantLongerThanItsTerms(LeasedCache):
    """Rule 14: a grant runs for as long as it says."""

    def join(self, member: Membership) -> None:
        super().join(replace(member, longest_lease_ns=1 << 62))


class HeadWithoutItsChain(LeasedCache):
    """Rule 14: a head that moves is followed, whether or not its chain explains it."""

    def _goes_on(self, grant: Grant, asked: Any) -> bool:
        return True


MUTANTS: Final[dict[str, Parts]] = {
    "lease from receipt": Parts(cache=LeaseFromReceipt),
    "no as_of check": Parts(cache=NoAsOfCheck),
    "join any flight": Parts(verifier=JoinAnyFlight),
    "no drift margin": Parts(drift_counted=False),
    "grant without changes": Parts(keeper=GrantWithoutChanges),
    "ledger forgets leases": Parts(keeper=LedgerForgetsLeases),
    "acknowledge before applying": Parts(cache=AcknowledgeBeforeApplying),
    "acknowledge over a gap": Parts(cache=AcknowledgeOverAGap),
    "a second granter": Parts(keeper=SecondGranter),
    "as_of compared with the key alone": Parts(cache=AsOfOfTheKeyAlone),
    "a number without its mark": Parts(keeper=NumberWithoutMark),
    "another edge acknowledges in its name": Parts(keeper=AnotherEdgeAcknowledgesInItsName),
    "a request number that jumps": Parts(keeper=NumberThatJumps),
    "a grant longer than its terms": Parts(cache=GrantLongerThanItsTerms),
    # Beyond those of docs/fence.md:
    "the nonce left out of the key": Parts(keeper=NonceLeftOutOfTheKey),
    "edges without bound": Parts(keeper=EdgesWithoutBound),
    "a head that was never granted": Parts(keeper=VouchedIsBelieved),
    "a head that moves without its chain": Parts(cache=HeadWithoutItsChain),
    "an event loop's cached clock": Parts(cached_clock=True),
    "no snapshot at commit": Parts(keeper=NoSnapshot),
    "books too little": Parts(keeper=BooksTooLittle),
    "an acknowledgement without proof": Parts(keeper=AcknowledgementWithoutProof),
    "a stale bound that is not booked": Parts(keeper=StaleBoundNotBooked),
    "held for a fence not found": Parts(keeper=HeldForAFenceNotFound),
    "confirmation by a read": Parts(confirmed_by_a_read=True),
}

CAUGHT_BY: Final[dict[str, int]] = {
    "lease from receipt": 53,
    "join any flight": 12,
    "grant without changes": 8,
    "acknowledge over a gap": 7,
    "a second granter": 4,
    "a number without its mark": 50,
    "another edge acknowledges in its name": 3,
    "a grant longer than its terms": 30,
    "the nonce left out of the key": 5,
    "a head that was never granted": 5,
    "a head that moves without its chain": 15,
    "an event loop's cached clock": 10,
    "books too little": 9,
    "an acknowledgement without proof": 7,
    "a stale bound that is not booked": 11,
    "confirmation by a read": 4,
}
"""The first seed that catches a mutant which many do not, to be tried before the others: this saves minutes.

Whoever changes the simulation may find other seeds here; `make simulate` prints them.
"""
