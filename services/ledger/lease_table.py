"""The leases: every incarnation of an edge, by its whole identity, and what it may still claim.

No I/O here. An entry is found by (root key, edge id, incarnation, nonce) and by nothing less, so
whatever a stranger sends in an edge's name concerns an entry of the stranger's own (rule 14).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Final

import msgspec

from domain.ports import FenceClock
from keyledger_language import EdgeIdentity, LeaseRequest, prove_identity, request_is_sealed

_NS: Final = 1_000_000_000
_MICROS: Final = 1_000_000
_FORGET_AFTER_NS: Final = 600 * _NS
_DEAD_AFTER_NS: Final = 10 * _NS
"""An entry that has had no lease for this long is removed when there is no room for another."""
_KEPT_HEADS: Final = 64
"""An edge never has more requests under way."""
_TIME_BYTES: Final = 8
_RANDOM_BYTES: Final = 16

# An edge sends a request every ping (10 ms or more), and out of turn at most every 20 ms.
_NUMBERS_AT_ONCE: Final = 100
_NUMBERS_PER_SECOND: Final = 200
_CLOCKS_APART_SECONDS: Final = 60
"""Allowed between the hosts of two owners; a nonce contains the time of the one that drew it."""


class EdgeBounds(msgspec.Struct, frozen=True, kw_only=True):
    """How many edges may take part."""

    per_root_key: int = 1_000
    total: int = 10_000


class IncarnationTakenError(Exception):
    """The incarnation took part already, and the caller does not prove to be it."""


class TooManyEdgesError(Exception):
    """The root key, or all root keys together, have as many edges as they may have."""

    def __init__(self, bound: str, most: int) -> None:
        super().__init__(f"{bound} has {most} edges, and no more may take part.")
        self.most = most


class LeasedEdge:
    """One incarnation of an edge, as this owner knows it."""

    __slots__ = (
        "ends", "granted", "heard", "key", "known", "number", "numbered", "position", "spoke", "version",
        "who",
    )  # fmt: skip

    def __init__(self, who: EdgeIdentity, key: bytes, now: int) -> None:
        self.who = who
        self.key = key
        self.ends = 0
        self.heard = now
        self.known = 0
        self.number = 0
        self.numbered = 0
        self.position = 0
        self.spoke = False
        self.version = ""
        self.granted: dict[int, None] = {}
        """The heads that this owner granted to it: those that it may report as `vouched`."""

    def note_grant(self, head: int) -> None:
        """It is granted this head: once it takes the grant, it knows everything up to there."""
        self.granted.pop(head, None)
        self.granted[head] = None
        if len(self.granted) > _KEPT_HEADS:
            del self.granted[next(iter(self.granted))]

    def note_ahead(self, request: LeaseRequest, now: int) -> None:
        """It reports that it knows more than the log has: this is displayed, but not relied on."""
        self.heard, self.spoke = now, True
        self.position, self.version = request.vouched, request.version

    def proven_head(self, vouched: int) -> int:
        """The head that it reports as `vouched`, if this owner granted it exactly that; else 0."""
        return vouched if vouched in self.granted else 0


def derive_edge_key(master_key: bytes, who: EdgeIdentity) -> bytes:
    """One key for one incarnation under one nonce; all owners of a ledger derive the same."""
    return hmac.digest(master_key, msgspec.msgpack.encode(who), sha256)


class LeaseTable:
    """The edges of one partition's owner."""

    derive = staticmethod(derive_edge_key)

    def __init__(
        self,
        clock: FenceClock,
        master_key: bytes,
        bounds: EdgeBounds,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._clock = clock
        self._master_key = master_key
        self._bounds = bounds
        self._random_bytes = random_bytes
        self._edges: dict[EdgeIdentity, LeasedEdge] = {}
        self._of_root_key: dict[str, dict[EdgeIdentity, LeasedEdge]] = {}
        self._incarnations: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[LeasedEdge]:
        return iter(self._edges.values())

    def __len__(self) -> int:
        return len(self._edges)

    def edges_by_root_key(self) -> dict[str, int]:
        """How many edges of each root key are known."""
        return {root_key_id: len(edges) for root_key_id, edges in self._of_root_key.items()}

    # -- taking part ------------------------------------------------------------------------

    def key_of(self, who: EdgeIdentity) -> bytes:
        """The key that seals what this incarnation sends and receives; any owner derives the same."""
        return self.derive(self._master_key, who)

    def admit(self, root_key_id: str, edge_id: str, incarnation: bytes) -> LeasedEdge:
        """Admit a new incarnation, under a nonce that was never used.

        Raises IncarnationTakenError if an edge with that incarnation takes part already, and
        TooManyEdgesError. After a fail-over the same ids may be admitted once more: under another
        nonce they are another edge.
        """
        if incarnation in self._incarnations:
            raise IncarnationTakenError
        who = EdgeIdentity(root_key_id, edge_id, incarnation, self._draw_nonce())
        return self._add(who, self.key_of(who))

    def readmit(self, who: EdgeIdentity, proof: bytes) -> LeasedEdge:
        """Admit an incarnation again: it proves that it holds the key that it was given."""
        key = self.key_of(who)
        if not hmac.compare_digest(proof, prove_identity(who, key)):
            raise IncarnationTakenError
        return self._edges.get(who) or self._add(who, key)

    def _draw_nonce(self) -> bytes:
        # With the time, so that an owner that is new to the edge knows how many requests it can have sent.
        drawn_at = max(0, self._clock.now())
        return drawn_at.to_bytes(_TIME_BYTES, "big") + self._random_bytes(_RANDOM_BYTES)

    def _add(self, who: EdgeIdentity, key: bytes) -> LeasedEdge:
        now = self._clock.boottime_ns()
        self._make_room(who.root_key_id, now)
        edge = self._edges[who] = LeasedEdge(who, key, now)
        self._of_root_key.setdefault(who.root_key_id, {})[who] = edge
        self._incarnations[who.incarnation] = self._incarnations.get(who.incarnation, 0) + 1
        return edge

    def _make_room(self, root_key_id: str, now: int) -> None:
        mine = self._of_root_key.get(root_key_id, {})
        if len(mine) >= self._bounds.per_root_key:
            self._forget_dead(mine, now - _DEAD_AFTER_NS)
            if len(mine) >= self._bounds.per_root_key:
                raise TooManyEdgesError("This root key", self._bounds.per_root_key)
        if len(self._edges) >= self._bounds.total:
            self._forget_dead(self._edges, now - _DEAD_AFTER_NS)
            if len(self._edges) >= self._bounds.total:
                raise TooManyEdgesError("The ledger", self._bounds.total)

    def _forget_dead(self, edges: dict[EdgeIdentity, LeasedEdge], since: int) -> None:
        for edge in [one for one in edges.values() if one.heard < since and one.ends < since]:
            self._drop(edge.who)

    def _drop(self, who: EdgeIdentity) -> None:
        del self._edges[who]
        del self._of_root_key[who.root_key_id][who]
        self._incarnations[who.incarnation] -= 1
        if not self._incarnations[who.incarnation]:
            del self._incarnations[who.incarnation]
        if not self._of_root_key[who.root_key_id]:
            del self._of_root_key[who.root_key_id]

    def forget_old(self, now: int) -> None:
        """Forget edges that have been silent for long."""
        self._forget_dead(self._edges, now - _FORGET_AFTER_NS)

    # -- what edges send --------------------------------------------------------------------

    def speaker(
        self, data: bytes, request: LeaseRequest, may_connect: Callable[[str], bool]
    ) -> LeasedEdge | None:
        """The edge that sealed this message; None if the seal is wrong, or there is no place for the edge.

        An owner admits an edge that it does not know: that the edge holds the key proves that a
        ledger drew its nonce. It must ask for a lease, and its root key must still allow edges.
        """
        edge = self._edges.get(request.who)
        if edge is not None:
            return edge if request_is_sealed(data, edge.key) else None
        if request.number == 0:
            return None
        key = self.key_of(request.who)
        if not request_is_sealed(data, key) or not may_connect(request.who.root_key_id):
            return None
        try:
            return self._add(request.who, key)
        except TooManyEdgesError:
            return None

    def takes_number(self, edge: LeasedEdge, number: int, now: int) -> bool:
        """Whether this can be the number of the next request: not an old one, and not out of its reach.

        A number that jumped would make all that come after it old.
        """
        if not edge.number < number <= edge.number + self._most_numbers(edge, now):
            return False
        edge.number, edge.numbered = number, now
        return True

    def _most_numbers(self, edge: LeasedEdge, now: int) -> int:
        if edge.number:
            seconds = (now - edge.numbered) / _NS
        else:
            drawn_at = int.from_bytes(edge.who.nonce[:_TIME_BYTES], "big")
            seconds = _CLOCKS_APART_SECONDS + max(0, self._clock.now() - drawn_at) / _MICROS
        return _NUMBERS_AT_ONCE + int(_NUMBERS_PER_SECOND * seconds)
