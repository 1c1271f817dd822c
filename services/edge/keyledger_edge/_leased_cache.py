"""An edge's memory and its lease: the edge's side of the fence.

No I/O here: bytes come in and go out, and the clock is a parameter, so that a simulation can run it.
The rules are those of docs/fence.md, by number.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from keyledger_edge._memory import Entry, Memory
from keyledger_edge._tombstones import Tombstones
from keyledger_edge._views import ViewsAsOf
from keyledger_language.bounded_dicts import NewestDict
from keyledger_language.facts import KeyFacts
from keyledger_language.messages import (
    Change,
    ChangeMessage,
    EdgeIdentity,
    FillAnswer,
    Grant,
    LeaseRequest,
    next_chain,
    open_grant,
    read_changes,
    seal_request,
)
from keyledger_language.positions import position_prefix
from keyledger_language.verdicts import Verdict

_MAX_OUTSTANDING: Final = 64
_MAX_UNVOUCHED: Final = 65_536
_NO_CHAIN: Final = bytes(16)
_HURRY_NS: Final = 20_000_000


class Unknown(msgspec.Struct, frozen=True):
    """The memory has no answer: ask the ledger."""


UNKNOWN: Final = Unknown()


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """The identity and terms of this edge, in this incarnation."""

    who: EdgeIdentity
    key: bytes
    """Seals this incarnation's requests and grants."""
    longest_lease_ns: int
    """By the terms that it received: it accepts no longer lease, whatever a grant says (rule 14)."""
    partition: int = 0
    serve_stale_ms: int = 0
    version: str = ""


class _Asked(NamedTuple):
    """A request that is not answered yet."""

    at: int
    chain: bytes
    last_message: int


class CacheCounters:
    """The memory's counters since the start."""

    __slots__ = (
        "changes", "fills", "grants", "grants_refused", "holes", "lapsed", "misses", "resets", "stale_fills",
    )  # fmt: skip

    def __init__(self) -> None:
        self.changes = 0
        self.fills = 0
        self.grants = 0
        self.grants_refused = 0
        self.holes = 0
        self.lapsed = 0
        self.misses = 0
        self.resets = 0
        self.stale_fills = 0


class Lease:
    """Until when memory may be relied on, and the verdicts that need no further check until then.

    A verifier reads these fields directly: a call costs as much as a tenth of a whole check.
    """

    __slots__ = ("clock", "ends", "hits", "keyspace_changes", "prefix", "welcomes")

    def __init__(self, clock_ns: Callable[[], int], welcomes: dict[bytes, Verdict]) -> None:
        self.clock = clock_ns
        self.ends = 0
        self.welcomes = welcomes
        """Verdicts on uses that name nothing: valid at any time until a change or the lease's end."""
        self.hits = 0
        self.prefix = position_prefix(0, 1)
        """The prefix of positions in the epoch of the facts."""
        self.keyspace_changes = 0
        """Grows when the known keyspaces may be out of date."""


class LeasedCache:
    """Answers from memory while its lease runs, and checks whether an entry can still be trusted."""

    def __init__(
        self,
        clock_ns: Callable[[], int],
        *,
        capacity: int = 1_000_000,
        negative_capacity: int = 65_536,
        tombstone_capacity: int = 65_536,
    ) -> None:
        self._clock = clock_ns
        self._memory = Memory(capacity, negative_capacity)
        self._hot = self._memory.hot
        self.welcome = self._memory.welcome
        self._tombstones = Tombstones(tombstone_capacity)
        self._member: Membership | None = None
        self.lease = Lease(clock_ns, self._memory.welcomes)
        self._utc_offset = 0
        self._number = 0
        self._sent = NewestDict[int, _Asked](_MAX_OUTSTANDING)
        self._epoch = -1
        self._lineage = b""
        self._vouched = self._mark = 0
        self._unvouched = OrderedDict[bytes, int]()
        """Fills whose positions no grant has reached yet."""
        self._position = 0
        self._chain = _NO_CHAIN
        self._last_message = self._granted_message = 0
        self._stale_from = 0
        self.at = 0
        """The ledger's time of day at the last look-up, microseconds."""
        self._hits = 0
        self.counters = CacheCounters()

    # -- called on every verification -----------------------------------------------------

    def facts_of(self, digest: bytes) -> KeyFacts | Unknown | None:
        """What is known of a secret: its facts, None for no such secret, or UNKNOWN."""
        # Rule 2: the clock is read here, after the request arrived.
        now = self._clock()
        if now >= self.lease.ends:
            self.counters.lapsed += 1
            return UNKNOWN
        self.at = now // 1000 + self._utc_offset
        facts = self._hot.get(digest)
        if facts is not None:
            self._hits += 1
            return facts
        return self._remembered(digest)

    def _remembered(self, digest: bytes) -> KeyFacts | Unknown | None:
        entry = self._memory.entry(digest)
        if entry is None:
            if self._memory.is_absent(digest):
                self._hits += 1
                return None
            self.counters.misses += 1
            return UNKNOWN
        if entry.as_of >= self._tombstones.last_wide:
            self._hits += 1
            return self._memory.unpack(digest, entry)
        return self._checked(digest, entry)

    def _checked(self, digest: bytes, entry: Entry) -> KeyFacts | Unknown:
        """The facts of an entry from before the last wide change, unless a change outdates them."""
        facts = self._memory.unpack(digest, entry)
        if self._tombstones.outdates(facts, entry.as_of):
            self._memory.drop(digest)
            self.counters.misses += 1
            return UNKNOWN
        # Nothing it depends on changed up to the position to which a grant confirms that we know all.
        # (Not up to unconfirmed messages: a forged one would then keep an entry alive.)
        entry.as_of = max(entry.as_of, self._vouched)
        self._hits += 1
        return facts

    @property
    def has_lease(self) -> bool:
        """Whether the memory may be relied on now."""
        return self._clock() < self.lease.ends

    @property
    def lease_left_ns(self) -> int:
        """How long the lease still runs; negative after its end."""
        return self.lease.ends - self._clock()

    @property
    def hits(self) -> int:
        """How often memory had the answer."""
        return self._hits + self.lease.hits

    @property
    def is_stale(self) -> bool:
        """Whether it answers only because of `serve_stale`."""
        return self._stale_from <= self._clock() < self.lease.ends

    @property
    def position(self) -> int:
        """The position up to which the edge believes to know all changes."""
        return self._position

    @property
    def epoch(self) -> int:
        """The log's epoch; -1 before the first grant."""
        return self._epoch

    @property
    def incarnation(self) -> bytes | None:
        """The incarnation under which the ledger knows this process."""
        return self._member.who.incarnation if self._member else None

    @property
    def keyspace_changes(self) -> int:
        """Grows when the known keyspaces may be out of date."""
        return self.lease.keyspace_changes

    def now_utc(self) -> int:
        """The ledger's time of day, advanced on our clock; microseconds."""
        return self._clock() // 1000 + self._utc_offset

    def __len__(self) -> int:
        return len(self._memory)

    # -- life ------------------------------------------------------------------------------

    def join(self, member: Membership) -> None:
        """Begin a new incarnation: no lease, an empty memory, no open requests."""
        self.leave()
        self._member = member
        self._name_positions()

    def retold(self, longest_lease_ns: int) -> None:
        """Apply the terms that the same incarnation has received again."""
        if self._member is not None:
            self._member = msgspec.structs.replace(self._member, longest_lease_ns=longest_lease_ns)

    def leave(self) -> None:
        """Drop lease and memory: after a fork, a restore of the machine, or at the end."""
        self._member = None
        self.lease.ends = self._stale_from = 0
        self._number = 0
        self._sent.clear()
        self._forget(0, -1)

    def _forget(self, position: int, epoch: int) -> None:
        self.lease.keyspace_changes += 1
        self._memory.clear()
        self._unvouched.clear()
        self._tombstones.start_from(position)
        self._epoch = epoch
        self._vouched = self._position = self._last_message = self._granted_message = position
        self._mark = 0
        self._chain = _NO_CHAIN
        self._lineage = b""
        self._name_positions()

    def _name_positions(self) -> None:
        partition = self._member.partition if self._member is not None else 0
        self.lease.prefix = self._memory.prefix = position_prefix(partition, self._epoch)

    # -- the lease ------------------------------------------------------------------------

    def request(self) -> bytes | None:
        """A request for a lease. Send it at once: the lease counts from this call (rule 1)."""
        if self._member is None:
            return None
        self._number += 1
        self._sent[self._number] = _Asked(self._clock(), self._chain, self._last_message)
        return self._sealed(self._number)

    def acknowledgement(self) -> bytes | None:
        """An acknowledgement of what was applied, without a request."""
        return self._sealed(0) if self._member is not None else None

    def _sealed(self, number: int) -> bytes:
        member = self._member
        assert member is not None, "only a member sends to the ledger"
        return seal_request(
            LeaseRequest(
                member.who,
                number,
                member.partition,
                self._epoch,
                self._vouched,
                self._mark,
                self._chain,
                self._position,
                member.serve_stale_ms,
                member.version,
            ),
            member.key,
        )

    def granted(self, data: bytes) -> bool:
        """Apply a grant; False if it is forged, late, for another edge, or does not follow the last one."""
        member = self._member
        grant = open_grant(data, member.key) if member is not None else None
        if (
            grant is None
            or member is None
            or grant.who != member.who
            or grant.partition != member.partition
            or (asked := self._sent.pop(grant.number, None)) is None
        ):
            self.counters.grants_refused += 1
            return False
        # Grants are applied only in the order of their requests: an older one knows less.
        for number in [one for one in self._sent if one < grant.number]:
            del self._sent[number]
        if not self._goes_on(grant, asked):
            self.counters.grants_refused += 1
            self._disown()
            return False
        self._catch_up(grant)
        self._extend(grant, asked.at)
        self.counters.grants += 1
        return True

    def _goes_on(self, grant: Grant, asked: _Asked) -> bool:
        """Rule 14: whether the head moves with its chain, and the chain with changes that explain it."""
        if grant.last_message > grant.head:
            return False
        if grant.reset or grant.epoch != self._epoch:
            return True
        if grant.head < self._vouched or (grant.head == self._vouched and grant.mark != self._mark):
            return False  # Rule 15: the log lost events, or is another one.
        if grant.lineage != self._lineage:
            return True  # Another ledger process: its grant carries all changes since `vouched`.
        if grant.confirmed and grant.chain == asked.chain:
            return grant.last_message == asked.last_message
        known = asked.last_message if grant.confirmed else self._granted_message
        return (not grant.confirmed and grant.last_message == known) or any(
            known < change.position <= grant.last_message for change in grant.changes
        )

    def _disown(self) -> None:
        """The messages received cannot all be true: clear the memory, and start over with the next grant."""
        self.counters.resets += 1
        self.lease.ends = 0
        self._forget(0, -1)

    def _catch_up(self, grant: Grant) -> None:
        """Rule 3: changes first, then the lease."""
        if grant.reset or grant.epoch != self._epoch:
            if self._epoch >= 0:
                self.counters.resets += 1
            self._forget(grant.head, grant.epoch)
        elif not grant.confirmed:
            self._tombstones.disbelieve_after(self._vouched, wide=grant.head)
            self._memory.cool()
        if grant.lineage != self._lineage:
            self.lease.keyspace_changes += 1
            self._memory.cool()  # the welcomes depend on a view from the previous process
            self._forget_unvouched()
        for change in grant.changes:
            self._apply(change)
        if self._unvouched:
            beyond = [(digest, as_of) for digest, as_of in self._unvouched.items() if as_of > grant.head]
            self._unvouched = OrderedDict(beyond)
        self._vouched = self._position = grant.head
        self._mark = grant.mark
        self._chain = grant.chain
        self._last_message = self._granted_message = grant.last_message
        self._lineage = grant.lineage

    def _extend(self, grant: Grant, sent: int) -> None:
        """Rule 1: the lease counts from the sending of the request, not from its answer."""
        member = self._member
        assert member is not None, "granted to a member"
        lease_ns = min(grant.lease_ns, member.longest_lease_ns)
        ends = sent + lease_ns
        if ends > self.lease.ends:
            self.lease.ends = ends
            self._stale_from = ends - min(lease_ns, member.serve_stale_ms * 1_000_000)
        # Rule 11. The ledger read its time after `sent`, so ours is never behind; and it never
        # goes back before a time by which something was judged.
        self._utc_offset = max(grant.utc - sent // 1000, self.at - self._clock() // 1000)

    # -- changes --------------------------------------------------------------------------

    def changed(self, data: bytes) -> bytes | None:
        """Apply a change message; returns the reply to send (an acknowledgement, or a request)."""
        message = read_changes(data)
        member = self._member
        if message is None or member is None or message.partition != member.partition:
            return None
        if message.epoch == self._epoch and message.position <= self._position:
            if message.lineage == self._lineage and message.position > self._last_message:
                # Rule 14: according to a grant nothing changed up to here, but something did.
                self._disown()
                return self._hurried_request()
            return None
        if not self._follows(message):
            # Rule 4: a gap, another ledger process or another epoch; only a grant can help.
            self.counters.holes += 1
            return self._hurried_request()
        for change in message.changes:
            self._apply(change)
        self._position = self._last_message = message.position
        self._chain = next_chain(self._chain, data)
        # Rule 5: only after they are applied.
        return self.acknowledgement()

    def _hurried_request(self) -> bytes | None:
        """An extra request, unless the last one was sent just now."""
        last = self._sent.get(self._number)
        if last is not None and self._clock() - last.at < _HURRY_NS:
            return None
        return self.request()

    def _follows(self, message: ChangeMessage) -> bool:
        return (
            message.epoch == self._epoch
            and message.lineage == self._lineage
            and message.prev <= self._position
        )

    def _apply(self, change: Change) -> None:
        """Drop what the change may affect. A change message can only take away (rule 10)."""
        self.counters.changes += 1
        for digest in change.fingerprints:
            self._memory.drop(digest)
        self._tombstones.add(change)
        if change.kind == "keyspace":
            self.lease.keyspace_changes += 1
        if change.kind != "key" or not change.fingerprints:
            self._memory.cool()

    # -- fills ----------------------------------------------------------------------------

    def filled(self, digest: bytes, answer: FillAnswer) -> bool:
        """Store the ledger's answer, unless it is older than a change received since (rule 7)."""
        if not self.believes(answer):
            self.counters.stale_fills += 1
            return False
        self.counters.fills += 1
        if answer.facts is not None:
            assert answer.facts.as_of == answer.as_of, "facts are as of the same position as their answer"
            self._memory.put(digest, answer.facts)
        else:
            self._memory.put_absent(digest)
        if answer.as_of > self._vouched:
            self._note_unvouched(digest, answer.as_of)
        return True

    def _note_unvouched(self, digest: bytes, as_of: int) -> None:
        if len(self._unvouched) >= _MAX_UNVOUCHED:
            oldest, _ = self._unvouched.popitem(last=False)
            self._memory.drop(oldest)
        self._unvouched[digest] = as_of

    def _forget_unvouched(self) -> None:
        """Rule 15: another ledger process confirms what the previous one had granted, and nothing more.

        What the previous one sent beyond that may be from a log that was restored since, and its positions
        may name other events now.
        """
        for digest in self._unvouched:
            self._memory.drop(digest)
        self._unvouched.clear()

    def believes(self, answer: FillAnswer) -> bool:
        """Whether the answer is at least as new as every change that is known."""
        member = self._member
        if member is None or answer.partition != member.partition or answer.epoch != self._epoch:
            return False
        if answer.lineage != self._lineage:
            return False  # Rule 15: its positions may belong to another history than our memory.
        if answer.facts is None:
            return answer.as_of >= max(self._tombstones.last_key, self._tombstones.floor)
        return not self._tombstones.outdates(answer.facts, answer.as_of)

    def believes_view(self, keyspace_id: str, told: ViewsAsOf) -> bool:
        """Rule 7: whether a keyspace as of `told` is at least as new as every change that is known."""
        member = self._member
        return (
            member is not None
            and told.partition == member.partition
            and told.epoch == self._epoch
            and told.lineage == self._lineage
            and not self._tombstones.outdates_keyspace(keyspace_id, told.as_of)
        )
