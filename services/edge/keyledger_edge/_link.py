"""An edge's link to its ledger: takes part, keeps the lease, and reports its state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from keyledger_edge._leased_cache import LeasedCache, Membership
from keyledger_edge._ledger_client import LedgerClient
from keyledger_edge._views import KeyspaceViews, ViewsAsOf
from keyledger_edge.errors import EdgeError, LedgerUnreachableError, RefusedByLedgerError
from keyledger_language.messages import (
    ConnectAnswer,
    ConnectRequest,
    EdgeIdentity,
    prove_identity,
)

if TYPE_CHECKING:
    from keyledger_edge._nats import NatsConnection

_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 1.0
_LOST_AFTER_LEASES: Final = 2
_CONFLICT: Final = 409
_MOST_UNANSWERED: Final = 2
_CANCEL_AGAIN_SECONDS: Final = 2.0
"""A connection to NATS is closed in half of that."""


class EdgeLink:
    """Keeps one cache leased. Everything here may fail; then the lease simply runs out."""

    def __init__(
        self,
        client: LedgerClient,
        cache: LeasedCache,
        *,
        version: str,
        keyspace_ids: tuple[str, ...] = (),
        serve_stale_ms: int = 0,
    ) -> None:
        self.client = client
        self.views = KeyspaceViews(cache, lambda: client.keyspaces(keyspace_ids))
        self._cache = cache
        self._version = version
        self._keyspace_ids = keyspace_ids
        self._serve_stale_ms = serve_stale_ms
        self._terms: ConnectAnswer | None = None
        self._member: Membership | None = None
        self._ignored = False
        """NATS accepted our requests, but no grant came."""
        self._unanswered = 0
        """How often this happened while the ledger answered over HTTP."""
        self._tasks: list[asyncio.Task[None]] = []
        self._saying: set[asyncio.Task[None]] = set()
        self._bus: NatsConnection | None = None
        self._leased: asyncio.Event | None = None
        self._heard: asyncio.Event | None = None
        """Set when a message came that may concern keyspaces."""
        self._learnt = -1
        self.reconnects = 0
        self.refusal: str | None = None
        """Why the ledger has not accepted this edge yet."""
        _after_fork(self)

    @property
    def edge_id(self) -> str | None:
        """The id that the ledger gave this edge."""
        return self._terms.edge_id if self._terms else None

    @property
    def bus_connected(self) -> bool:
        """Whether a connection to NATS is open."""
        return self._bus is not None and self._bus.is_connected

    # -- life ------------------------------------------------------------------------------

    async def connect(self, *, wait_seconds: float) -> None:
        """Take part; returns with a lease, or without one if none came in time.

        Raises LedgerUnreachableError or RefusedByLedgerError if the ledger does not accept this edge.
        """
        if self._tasks:
            return
        leased = self._leased = asyncio.Event()
        await self._join()
        self._take_part()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                await leased.wait()
                await self._learn_keyspaces()

    def start(self) -> None:
        """Take part as soon as the ledger accepts this edge; until then no key can be verified."""
        if not self._tasks:
            self._leased = asyncio.Event()
            self._tasks = [asyncio.create_task(self._join_and_take_part(), name="keyledger-edge")]

    async def _join_and_take_part(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            try:
                await self._join()
            except EdgeError as error:
                self.refusal = str(error)
                await asyncio.sleep(pause)
                pause = min(_MAX_PAUSE_SECONDS, pause * 2)
            else:
                self.refusal = None
                return self._take_part()

    def _take_part(self) -> None:
        self._heard = asyncio.Event()
        self._tasks += [
            asyncio.create_task(self._keep_leased(), name="keyledger-edge"),
            asyncio.create_task(self._keep_keyspaces(), name="keyledger-edge-keyspaces"),
        ]

    async def close(self) -> None:
        """Stop taking part; nothing is answered from memory afterwards."""
        self._cache.leave()
        # A cancellation can be lost: before Python 3.12, `asyncio.wait_for` (which nats-py uses) swallows
        # one that arrives together with the result that it waits for (python/cpython#86296).
        while under_way := [task for task in (*self._tasks, *self._saying) if not task.done()]:
            for task in under_way:
                task.cancel()
            await asyncio.wait(under_way, timeout=_CANCEL_AGAIN_SECONDS)
        self._tasks = []
        if self._bus is not None:
            await self._bus.close()
            self._bus = None
        await self.client.close()

    def forget(self) -> None:
        """After a fork: a new process knows nothing and has no lease (rule 2)."""
        self._cache.leave()
        self.client.forget()
        self.views.forget()
        self._tasks, self._saying = [], set()
        self._bus = self._leased = self._heard = None

    async def _join(self) -> None:
        """Take part as a new incarnation: no memory, no lease."""
        incarnation = secrets.token_bytes(16)
        terms = await self._introduce(
            ConnectRequest(
                edge_id=self.edge_id,
                incarnation=incarnation.hex(),
                version=self._version,
                keyspace_ids=self._keyspace_ids,
            )
        )
        if terms.edge_key is None:
            raise LedgerUnreachableError("The ledger sent no edge key.")
        self._ignored, self._unanswered = False, 0
        self._member = Membership(
            who=EdgeIdentity(terms.root_key_id, terms.edge_id, incarnation, bytes.fromhex(terms.nonce)),
            key=bytes.fromhex(terms.edge_key),
            longest_lease_ns=self._longest_lease_ns(terms),
            partition=terms.partition,
            serve_stale_ms=self._serve_stale_ms,
            version=self._version,
        )
        self._cache.join(self._member)

    def _longest_lease_ns(self, terms: ConnectAnswer) -> int:
        stale_ms = min(self._serve_stale_ms, terms.max_serve_stale_ms)
        return int((terms.lease_ms + stale_ms) * 1_000_000 * (1 - terms.drift))

    async def _introduce_again(self) -> None:
        """Connect again: the ledger may be back with another NATS, other terms, or without knowing this edge.

        The edge proves its identity and keeps its memory. If the ledger does not accept the proof, or
        answers here but grants nothing, the edge connects as a new incarnation.
        """
        member = self._member
        if member is None or self._unanswered >= _MOST_UNANSWERED:
            return await self._join()
        try:
            terms = await self._introduce(
                ConnectRequest(
                    edge_id=member.who.edge_id,
                    incarnation=member.who.incarnation.hex(),
                    version=self._version,
                    keyspace_ids=self._keyspace_ids,
                    nonce=member.who.nonce.hex(),
                    proof=prove_identity(member.who, member.key).hex(),
                )
            )
        except RefusedByLedgerError as refusal:
            if refusal.status != _CONFLICT:
                raise
            return await self._join()
        if terms.partition != member.partition:
            return await self._join()
        self._unanswered += self._ignored
        self._cache.retold(self._longest_lease_ns(terms))
        return None

    async def _introduce(self, request: ConnectRequest) -> ConnectAnswer:
        number = self.views.begin()
        terms = self._terms = await self.client.connect(request)
        told = ViewsAsOf(terms.partition, terms.epoch, terms.lineage, terms.as_of)
        self.views.told(number, terms.keyspaces, told)
        return terms

    # -- the lease ------------------------------------------------------------------------

    async def _keep_leased(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            began = asyncio.get_running_loop().time()
            await self._serve_one_connection()
            if asyncio.get_running_loop().time() - began > _MAX_PAUSE_SECONDS:
                pause = _PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(_MAX_PAUSE_SECONDS, pause * 2)
            self.reconnects += 1
            with contextlib.suppress(EdgeError):
                await self._introduce_again()

    async def _serve_one_connection(self) -> None:
        from keyledger_edge._nats import BusUnreachableError, NatsConnection  # noqa: PLC0415 - nats-py takes a while to import

        assert self._terms is not None, "joined before"
        try:
            self._bus = await NatsConnection.connect(self._terms, self._hear_grant, self._hear_changes)
        except BusUnreachableError:
            return
        try:
            await self._ping_while_it_works(self._bus, self._terms)
        finally:
            bus, self._bus = self._bus, None
            await bus.close()

    async def _ping_while_it_works(self, bus: NatsConnection, terms: ConnectAnswer) -> None:
        loop = asyncio.get_running_loop()
        lost_after = _LOST_AFTER_LEASES * (terms.lease_ms + self._serve_stale_ms) / 1000
        grants, heard = self._cache.counters.grants, loop.time()
        while bus.is_connected:
            data = self._cache.request()
            if data is not None:
                # A frozen server would block this for longer than a lease.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(lost_after):
                        await bus.say(data)
            await asyncio.sleep(terms.ping_ms / 1000)
            if self._cache.counters.grants != grants:
                grants, heard = self._cache.counters.grants, loop.time()
                self._ignored, self._unanswered = False, 0
            elif loop.time() - heard > lost_after:
                self._ignored = True
                return

    def _hear_grant(self, data: bytes) -> None:
        if self._cache.granted(data) and self._leased is not None:
            self._leased.set()
        self._look_at_keyspaces()

    def _hear_changes(self, data: bytes) -> None:
        answer, bus = self._cache.changed(data), self._bus
        self._look_at_keyspaces()
        if answer is not None and bus is not None:
            task = asyncio.get_running_loop().create_task(bus.say(answer))
            self._saying.add(task)
            task.add_done_callback(self._saying.discard)

    # -- the keyspaces --------------------------------------------------------------------

    def _look_at_keyspaces(self) -> None:
        if self._heard is not None and self._cache.keyspace_changes != self._learnt:
            self._heard.set()

    async def _keep_keyspaces(self) -> None:
        """Ask for changed keyspaces at once, so that few uses wait: the old ones are no longer used."""
        assert self._terms is not None, "joined before"
        assert self._heard is not None, "takes part"
        while True:
            await self._heard.wait()
            self._heard.clear()
            if not await self._learn_keyspaces():
                await asyncio.sleep(self._terms.ping_ms / 1000)
                self._heard.set()

    async def _learn_keyspaces(self) -> bool:
        noticed = self._cache.keyspace_changes
        if noticed == self._learnt:
            return True
        if await self.views.learn():
            self._learnt = noticed
            return True
        return False


def _after_fork(link: EdgeLink) -> None:
    """A forked child must not use its parent's lease, memory or sockets."""
    if not hasattr(os, "register_at_fork"):
        return
    known: Callable[[], EdgeLink | None] = weakref.ref(link)

    def forget() -> None:
        if (child := known()) is not None:
            child.forget()

    os.register_at_fork(after_in_child=forget)
