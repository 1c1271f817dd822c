"""A ledger behind its HTTP API and one edge, the real classes on virtual time, and a bus that can be cut."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from domain import commands as c
from domain.decisions.access import is_root
from domain.desk import SYSTEM_ASKING
from keyledger_edge import (
    AcceptedFormat,
    FillAnswer,
    KeyspacesAnswer,
    LeasedCache,
    LedgerUnreachableError,
    Membership,
    RateLimiter,
    Sidecar,
    Verifier,
    VerifyAnswer,
    VerifyRequest,
    fingerprint,
    hint,
)
from keyledger_edge._views import KeyspaceViews
from services.api.resources.checking import view_of_keyspace
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ledger import Ledger
from services.ledger.ports import Terms
from tests.api.quick.world import Reply, call
from tests.api.world import Management
from tests.take_aways.shown import KEYSPACE, imported_secret, lets_in, lets_in_at_once
from tests.take_aways.table import TAKE_AWAYS, Target, path_of
from tests.virtual_time import VirtualClock, VirtualLoop

STALE_MS = 500
TERMS = LeaseTerms(lease_ms=1_000, drift=0.01, max_serve_stale_ms=STALE_MS)


class Edge:
    """The real memory, verifier and sidecar of one edge.

    `connected` is all that there is of the bus; over HTTP it reaches the ledger always.
    """

    def __init__(self, ledger: Ledger, clock: VirtualClock, serve_stale_ms: int) -> None:
        self._ledger = ledger
        self.connected = True
        self.cache = LeasedCache(clock.boottime_ns)
        self._views = KeyspaceViews(self.cache, self.keyspaces)
        self.verifier = Verifier(
            self.cache,
            self._views.known,
            limiter=RateLimiter(lambda: clock.boottime_ns() / 1e9),
            ledger=self,
            memory=self.cache,
            views=self._views,
        )
        self._sidecar = Sidecar(self.verifier)
        root_key_id = next(key.id for key in ledger.books.keys.values() if is_root(key))
        admitted = ledger.fences.admit(root_key_id, "edge_1", secrets.token_bytes(16))
        self.cache.join(
            Membership(
                who=admitted.who,
                key=admitted.key,
                longest_lease_ns=TERMS.granted_ns + TERMS.stale_ns(serve_stale_ms),
                serve_stale_ms=serve_stale_ms,
            )
        )

    def renew(self) -> None:
        """Ask for a lease, and say that its changes were applied."""
        assert self.connected
        fences = self._ledger.fences
        granted = fences.handle(self.cache.request() or b"")
        assert granted is not None
        assert self.cache.granted(granted[1])
        fences.handle(self.cache.acknowledgement() or b"")

    def hear(self, data: bytes) -> None:
        """A change came over the bus."""
        if self.connected and (said := self.cache.changed(data)) is not None:
            self._ledger.fences.handle(said)

    async def remember(self, target: Target) -> None:
        """Remember what the ledger says of this key, and of its keyspace."""
        assert await self._views.learn()
        assert self.cache.filled(target.digest, await self.fill(target.digest, target.keyspace_id))

    async def keyspaces(self) -> KeyspacesAnswer:
        """What the ledger says of keyspaces."""
        ledger = self._ledger
        return KeyspacesAnswer(
            keyspaces=[view_of_keyspace(one) for one in ledger.books.keyspaces.values() if not one.builtin],
            as_of=ledger.fences.head,
            partition=0,
            epoch=ledger.fences.epoch,
            lineage=ledger.fences.lineage,
        )

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        """Nothing here has a cost."""
        raise LedgerUnreachableError

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        """What the ledger says of a key."""
        ledger = self._ledger
        facts, head = ledger.facts.find(digest), ledger.fences.head
        assert facts is not None
        facts = msgspec.structs.replace(facts, as_of=head)
        return FillAnswer(
            facts=facts,
            as_of=head,
            partition=0,
            epoch=ledger.fences.epoch,
            utc=ledger.time.now(),
            lineage=ledger.fences.lineage,
        )

    def accepts(self, target: Target, name: str) -> bool:
        """What may be accepted until it is taken away: from memory, now?"""
        kind = TAKE_AWAYS[name]
        if kind.view:
            return lets_in_at_once(self._sidecar, kind.view, target)
        verdict = self.verifier.verify_cached(target.secret, kind.use(target), target.keyspace_id)
        return verdict is not None and verdict.valid

    async def accepts_once_it_asked(self, target: Target, name: str) -> bool:
        """Is a request let in that shows the key as its keyspace has it no more?

        The facts of the key are as good as before, so asking for those does not help.
        """
        view = TAKE_AWAYS[name].view
        return bool(view) and await lets_in(self._sidecar, view, target)


class Stage:
    """Where pairs of take-aways are played."""

    edge: Edge

    def __init__(self, world: Management, loop: VirtualLoop) -> None:
        self.world = world
        self.loop = loop
        self._numbers = itertools.count(1)
        self._charged = ""

    async def new_edge(self, serve_stale_ms: int) -> None:
        """The edge's next life; what was granted to the one before has ended."""
        await asyncio.sleep(3)
        self.edge = Edge(self.world.ledger, VirtualClock(self.loop), serve_stale_ms)
        self.edge.renew()

    def hear(self, data: bytes) -> None:
        """The bus."""
        if hasattr(self, "edge"):
            self.edge.hear(data)

    async def do(self, command: c.Command) -> Any:
        return (await self.world.ledger.execute(command, SYSTEM_ASKING)).result

    async def targets(self, kinds: Sequence[tuple[str, str]]) -> list[Target]:
        """A key for each pair of kinds, with an organization, a project and plans of its own."""
        shared = await self._keyspace()
        made = await asyncio.gather(*(self._target(kind, shared) for kind in kinds))
        self.world.ledger.facts.forget_all()
        return made

    async def _keyspace(self) -> Any:
        number = next(self._numbers)
        formats = (AcceptedFormat(prefix=f"old{number:06d}_", min_length=30, max_length=30),)
        return await self.do(
            c.DefineKeyspace(
                name="gateway",
                preset="default",
                prefix=f"kl_n{number:06d}_",
                accepted_formats=formats,
                credential_locations=tuple(KEYSPACE["credential_locations"]),
                tenant_locations=KEYSPACE["tenant_locations"],
            )
        )

    async def _target(self, kinds: tuple[str, str], shared: Any) -> Target:
        organization, plan, other = await asyncio.gather(
            self.do(c.OpenOrganization(name="Acme")),
            self.do(c.DefinePlan(name="pro", models=("a", "b"))),
            self.do(c.DefinePlan(name="lite", models=("b",))),
        )
        own = any(TAKE_AWAYS[kind].own_keyspace for kind in kinds)
        keyspace = await self._keyspace() if own else shared
        project = await self.do(c.OpenProject(organization_id=organization.id, name="Web"))
        secret = keyspace.shape.generate()
        if TAKE_AWAYS[kinds[0]].view == "shape":
            secret = imported_secret(keyspace.shape.accepted[0].prefix)
        key = await self.do(
            c.CreateKey(
                keyspace_id=keyspace.id,
                organization_id=organization.id,
                name="Checkout",
                fingerprint=fingerprint(secret),
                hint=hint(secret, keyspace.prefix),
                plan_id=plan.id,
                **TAKE_AWAYS[kinds[0]].key,
            )
        )
        return Target(
            key.id, secret, fingerprint(secret), keyspace.id, organization.id, project.id, plan.id, other.id
        )

    async def charges(self, count: int) -> None:
        """So many positions go by."""
        if not self._charged:
            target = (await self.targets([("revoke", "revoke")]))[0]
            await self.do(
                c.DepositCredits(
                    organization_id=target.organization_id, amount_micros=10**12, reference="first"
                )
            )
            self._charged = target.key_id
        execute, key_id = self.world.ledger.execute, self._charged
        names = (f"r{next(self._numbers)}" for _ in range(count))
        charges = [c.ChargeUsage(key_id=key_id, request_id=name, base_micros=1) for name in names]
        for charged in [execute(one, SYSTEM_ASKING) for one in charges]:
            await charged

    async def take_away(
        self, name: str, target: Target, *, wait: bool = True, idempotency_key: str | None = None
    ) -> Reply:
        """Ask for it over HTTP."""
        kind = TAKE_AWAYS[name]
        headers = {"authorization": f"Bearer {target.secret if kind.by_holder else self.world.root}"}
        if idempotency_key is not None:
            headers["idempotency-key"] = idempotency_key
        path = path_of(name, target) + ("" if wait else "?fence=false")
        return await call(self.world.app, kind.method, path, headers=headers, body=kind.body(target))

    async def cut_off_after_filling(self, target: Target) -> None:
        """The edge remembers the key, has a fresh lease, and hears nothing from here on."""
        self.edge.connected = True
        self.edge.renew()
        assert self.world.ledger.fences.open_fences == 0
        await self.edge.remember(target)
        self.edge.connected = False


@asynccontextmanager
async def staged() -> AsyncGenerator[Stage]:
    """A ledger that owns its partition."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)

    def hear(change: bytes) -> None:
        stage.hear(change)

    world = Management(clock=VirtualClock(loop), terms=Terms(lease=TERMS), publish_change=hear)
    stage = Stage(world, loop)
    await world.start()
    try:
        root_key = await world.ledger.bootstrap()
        assert root_key is not None
        world.root = root_key
        yield stage
    finally:
        await world.stop()


def play(coroutine: Any) -> Any:
    """Run it to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)
