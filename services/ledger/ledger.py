"""The ledger: what the API, the command line and the wiring use of one partition. Its parts do the work."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable

from domain.accounts import Reservation
from domain.commands import Asking, Command
from domain.desk import Desk
from domain.state import Books, Draft
from infra.position_watch import PositionWatch
from keyledger_language import RateLimiter
from keyledger_language.instants import Instant
from services.ledger.bus import Bus
from services.ledger.edge_rights import may_connect
from services.ledger.errors import OtherHistoryHereError
from services.ledger.fence import FenceKeeper
from services.ledger.group import Tools
from services.ledger.jobs import Done, Idempotency, Render
from services.ledger.ledger_time import LedgerTime
from services.ledger.memory import LedgerMemory
from services.ledger.ownership import Ownership
from services.ledger.ports import Ports, Terms
from services.ledger.root_key import make_root_key
from services.ledger.saved_state import SavedState
from services.ledger.sightings import Refused, Sightings
from services.ledger.standing import Standing
from services.ledger.tenure import Tenure


class Ledger:
    """One partition: decides while this process owns it, and follows the owner while it does not."""

    def __init__(self, ports: Ports, terms: Terms | None = None) -> None:
        self.partition = ports.log.partition
        self.terms = terms or Terms()
        self._ports = ports
        self._memory = memory = LedgerMemory(self.partition)
        self._sightings = Sightings()
        self._saved = SavedState(ports, memory)
        self.books: Books = memory.state
        """The committed state, for reading only."""
        self.facts = memory.facts
        """What verdicts need to know of keys."""
        self.time = LedgerTime(ports.clock, ports.fence_clock, self.books)
        self.limiter = RateLimiter(lambda: ports.fence_clock.boottime_ns() / 1e9)
        """How much of each rate limit is used."""
        self.head_watch = PositionWatch(lambda: self.books.head)
        """Wakes those that wait for the log to grow."""
        self.seen = self._sightings.seen
        """(key id, when) A use was found valid; recorded at most once a minute."""
        nobody = Tenure("", ports, self.terms, memory, master_key=os.urandom(32))
        self.standing = Standing(nobody, self.head_watch, ports.fence_clock.boottime_ns)
        """Whether this process may answer."""
        self._bus = Bus(
            ports,
            memory,
            Tools(
                memory.facts,
                self.limiter,
                lambda: secrets.randbits(80),
                self.partition,
                self.terms.idempotency_seconds,
            ),
            self.standing,
            find_reservation=self._saved.find_reservation,
            max_waiting=self.terms.max_waiting,
        )
        self._ownership = Ownership(
            ports,
            self.terms,
            memory,
            standing=self.standing,
            saved=self._saved,
            bus=self._bus,
            sightings=self._sightings,
            head_watch=self.head_watch,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Own the partition whenever no other process does, until `stop` is set."""
        await self._ownership.run(stop)

    # -- commands

    def execute(
        self,
        command: Command,
        asking: Asking,
        *,
        idempotency: Idempotency | None = None,
        render: Render | None = None,
    ) -> asyncio.Future[Done]:
        """Carry out a command; the future is done when what it wrote is durable.

        Raises, or the future does, LedgerError (refused) or CannotAnswerError (try again later).
        """
        self.standing.must_own()
        return self._bus.queue.submit(command, asking, idempotency, render)

    def denied(self, key_id: str, code: str, request: str | Refused | None = None) -> None:
        """Note a refused use of a known key (`request`: its id, or the whole use); recorded in bulk."""
        self._sightings.denied(key_id, code, self._ports.clock.now(), request)

    async def bootstrap(self, secret: str | None = None) -> str | None:
        """Make the first root key, or the one with this secret; return the secret if it was made here.

        None if there is a root key already. One that is given and new is made beside the existing
        ones: the log and the audit report it.
        """
        return await make_root_key(self._bus, self.books, secret)

    @property
    def waiting(self) -> int:
        """How many commands wait to be decided."""
        return len(self._bus.queue)

    # -- what was committed

    @property
    def head(self) -> int:
        """The position of the last event that was committed here, or read."""
        return self.books.head

    @property
    def epoch(self) -> int:
        """The log's epoch, as it was read last; 0 before that."""
        return self._memory.epoch

    @property
    def position_prefix(self) -> str:
        """The beginning of every position that is given out in this epoch."""
        return self._memory.position_prefix

    @property
    def shared_key(self) -> bytes | None:
        """A secret that all processes of this ledger share: seals leases and forwarded requests."""
        return self._memory.shared_key

    @property
    def caught_up(self) -> bool:
        """Whether the log was read to its end since the start: memory then has what was committed."""
        return self._memory.caught_up

    def at_new_epoch(self, forget: Callable[[], None]) -> None:
        """Register a function to call at a new epoch, for code that keeps positions as they were written."""
        self._memory.at_new_epoch(forget)

    def desk(self, asking: Asking) -> Desk:
        """The domain's own rules over the committed state, for reading it as a caller sees it."""
        desk = Desk(
            Draft(self._memory.state),
            now=self.time.now(),
            facts=self.facts,
            limiter=self.limiter,
            entropy=lambda: 0,
            partition=self.partition,
        )
        desk.asking = asking
        return desk

    def last_used_at(self, key_id: str) -> Instant | None:
        """When the key was last charged or seen."""
        recorded = self.books.last_used.get(key_id)
        seen = self._sightings.last_seen(key_id)
        if recorded is None or seen is None:
            return recorded or seen
        return max(recorded, seen)

    async def find_reservation(self, reservation_id: str) -> Reservation | None:
        """The reservation as it is now, a settled one included."""
        if reservation_id not in self.books.reservations:
            await self._saved.find_reservation(reservation_id)
        return self.books.reservations.get(reservation_id)

    async def wait_for_projections(self, position: int, timeout: float = 2.0) -> bool:
        """Whether the projections reach this position before the time is over."""
        return await self._ports.projected(position, timeout)

    # -- status

    @property
    def owner(self) -> bool:
        """Whether this process owns the partition; if not, requests are forwarded to the one that does."""
        return self.standing.owner

    @property
    def confirmed(self) -> bool:
        """Whether it is certain that no other process decides: answers from memory are then true."""
        return self.standing.confirmed

    def must_own(self) -> None:
        """Raise unless this process may answer for the partition now."""
        self.standing.must_own()

    @property
    def stands_by(self) -> bool:
        """Whether another process owns the partition."""
        return self.standing.stands_by

    @property
    def reachable(self) -> bool:
        """Whether the log answered when it was last asked."""
        return self.standing.reachable

    @property
    def waits_for_standby(self) -> bool:
        """Whether PostgreSQL completes no commit because its standby is not connected."""
        return self.standing.waits_for_standby

    @property
    def other_history(self) -> OtherHistoryHereError | None:
        """Why this process answers nothing: what it knows is not in the log."""
        return self.standing.other_history

    @property
    def tenure(self) -> str:
        """The name of this process's latest tenure: another one each time that it becomes the owner."""
        return self.standing.tenure.name

    # -- edges

    @property
    def fences(self) -> FenceKeeper:
        """Which edges may still accept what was taken away; another object in each tenure."""
        return self.standing.tenure.fences

    def hear(self, data: bytes) -> tuple[str, bytes] | None:
        """Take what an edge sent; return the recipient and the answer, if this process owns the partition."""
        return self.fences.handle(data) if self.standing.owner else None

    def speakers(self) -> dict[str, int]:
        """The root keys whose edges must be listened to, with how many each has; none if not the owner."""
        return self.fences.speakers() if self.standing.owner else {}

    def may_connect(self, root_key_id: str) -> bool:
        """Whether this root key works, as committed, and edges may take part with it."""
        return may_connect(self.books, root_key_id, self._ports.clock.now())
