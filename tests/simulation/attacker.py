"""Somebody who hears all that the bus carries, has two root keys, and means harm.

What its root keys allow it does as itself; in others' names it repeats, jumps, forges and floods. Of each
edge it also has the key, and uses that for what the rules say is harmless even then (rule 14): one
number that jumps, a head that was never granted, a grant that is too long or keeps silent about changes.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from keyledger_edge import (
    EdgeIdentity,
    LeaseRequest,
    next_chain,
    open_grant,
    read_changes,
    read_request,
    seal_grant,
    seal_request,
)
from services.ledger.lease_table import IncarnationTakenError, TooManyEdgesError
from tests.simulation.checker import ViolationError
from tests.simulation.world import MS, SECOND

if TYPE_CHECKING:
    from services.ledger.fence import FenceKeeper
    from tests.simulation.cluster import Cluster, EdgeMachine, LedgerMachine

_KEPT: Final = 30
_ROOT_KEYS: Final = ("key_fleet", "key_stranger")
"""One that leaked, of the very edges it is after; and one of its own."""


class Attacker:
    """Lives outside all machines: nothing stops it, and its messages take a moment."""

    def __init__(self, cluster: Cluster, random: Random) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._random = random
        self._overheard: list[bytes] = []
        self._last: dict[str, LeaseRequest] = {}
        self._own: dict[tuple[bytes, str], tuple[EdgeIdentity, bytes, int]] = {}
        self.attacks = 0
        self.active = True

    def begin(self) -> None:
        """Do something every now and then."""
        self._world.after(int(self._random.uniform(50, 150) * MS), None, self._act)

    # -- what it hears ----------------------------------------------------------------------

    def overhear_request(self, edge: EdgeMachine, data: bytes) -> None:
        request = read_request(data)
        assert request is not None
        self._last[edge.name] = request
        self._overheard.append(data)
        if len(self._overheard) > _KEPT:
            del self._overheard[self._random.randrange(_KEPT)]

    def overhear_changes(self, data: bytes) -> None:
        """Acknowledge at once, in the name of every edge, what none of them can have heard yet."""
        message = read_changes(data)
        if not self.active or message is None or not any(one.narrowing for one in message.changes):
            return
        for edge in self._cluster.edges:
            last = self._last.get(edge.name)
            if last is None or last.who != edge.member.who:
                continue
            heard = replace(last, number=0, epoch=message.epoch, chain=next_chain(last.chain, data))
            for who, key, _ in self._keys_for(last.who):
                for name in (who, last.who):
                    self._say(seal_request(replace(heard, who=name), key))
            unproven = replace(heard, vouched=message.position, chain=bytes(16))
            self._soon(self._vouch, seal_request(unproven, edge.member.key), unproven)

    def _vouch(self, ledger: LedgerMachine, data: bytes, request: LeaseRequest) -> None:
        """With the edge's own key: a head that this owner did not grant it."""
        keeper = ledger.keeper
        if keeper is not None and not _was_granted(keeper, request):
            ledger.hear(data)

    def overhear_grant(self, edge: EdgeMachine, data: bytes) -> None:
        """With the edge's own key, and faster than the ledger: too long, or silent about what changed."""
        grant = open_grant(data, edge.member.key)
        if not self.active or grant is None:
            return
        # Harmless only where the true one runs for almost as long as the terms allow, too.
        terms = self._cluster.terms
        almost = edge.member.longest_lease_ns - int(terms.drift * terms.lease_ms * MS / 2)
        same_ledger = grant.lineage == edge.cache._lineage
        if grant.changes and grant.confirmed and not grant.reset and same_ledger:
            if self._random.random() < 0.4:  # whoever forgets everything time and again accepts nothing
                return
            forged = replace(grant, changes=())
        elif grant.lease_ns >= almost:
            forged = replace(grant, lease_ns=3_600 * SECOND)
        else:
            return
        self.attacks += 1
        if edge.bus.down:
            self._world.at(self._world.now, edge, edge.hear_grant, seal_grant(forged, edge.member.key))

    def meet_owner(self) -> None:
        """A new owner does not know yet who takes part: connect first, as everybody."""
        if self.active:
            for last in self._last.values():
                self._keys_for(last.who)

    # -- what it does -----------------------------------------------------------------------

    def _act(self) -> None:
        if not self.active:
            return
        self.begin()
        self._random.choice((self._repeat, self._repeat, self._speak_for_others, self._flood))()

    def _repeat(self) -> None:
        if self._overheard:
            self._say(self._random.choice(self._overheard))

    def _speak_for_others(self) -> None:
        """Ask for a lease and jump ahead, with keys of one's own, under the ids of others."""
        for last in list(self._last.values()):
            for who, key, number in self._keys_for(last.who):
                self._own[who.incarnation, who.root_key_id] = (who, key, number + 1)
                self._say(seal_request(replace(last, who=who, number=number + 1), key))
                self._say(seal_request(replace(last, number=1 << 62), key))

    def _flood(self) -> None:
        for ledger in self._cluster.ledgers:
            if ledger.keeper is not None:
                for _ in range(8):
                    self._invent(ledger.keeper, ledger)

    def _invent(self, keeper: FenceKeeper, ledger: LedgerMachine) -> None:
        try:
            edge = keeper.admit("key_stranger", "edge_x", self._random.randbytes(16))
        except TooManyEdgesError:
            return
        asked = LeaseRequest(edge.who, 1, 0, keeper.epoch, 0, 0, bytes(16), 0, 0, "")
        if self._random.random() < 0.1:
            self._world.at(self._world.now, ledger, ledger.hear, seal_request(asked, edge.key))
        taken = sum(one.who.root_key_id == "key_stranger" for one in keeper._leases)
        if taken > self._cluster.bounds.per_root_key:
            raise ViolationError(f"one root key has {taken} edges")

    def jump(self) -> None:
        """With each edge's own key, one request whose number no edge can have come to."""
        for edge in self._cluster.edges:
            request = LeaseRequest(edge.member.who, 1 << 62, 0, -1, 0, 0, bytes(16), 0, 0, "")
            self._say(seal_request(request, edge.member.key))

    def _keys_for(self, who: EdgeIdentity) -> list[tuple[EdgeIdentity, bytes, int]]:
        """What the ledger tells whoever connects with these overheard ids: each root key once."""
        for root_key_id in _ROOT_KEYS:
            for ledger in self._cluster.ledgers:
                known = (who.incarnation, root_key_id)
                if ledger.keeper is None or known in self._own:
                    continue
                try:
                    edge = ledger.keeper.admit(root_key_id, who.edge_id, who.incarnation)
                except (IncarnationTakenError, TooManyEdgesError):
                    continue
                self._own[known] = (edge.who, edge.key, 0)
        return [self._own[who.incarnation, one] for one in _ROOT_KEYS if (who.incarnation, one) in self._own]

    def _say(self, data: bytes) -> None:
        self.attacks += 1
        for ledger in self._cluster.ledgers:
            self._world.after(self._moment(), ledger, ledger.hear, data)

    def _soon(self, how: object, data: bytes, request: LeaseRequest) -> None:
        self.attacks += 1
        for ledger in self._cluster.ledgers:
            self._world.after(self._moment(), ledger, how, ledger, data, request)  # type: ignore[arg-type]

    def _moment(self) -> int:
        return int(self._random.uniform(0.05, 2) * MS)


def _was_granted(keeper: FenceKeeper, request: LeaseRequest) -> bool:
    return any(one.who == request.who and request.vouched in one.granted for one in keeper._leases)
