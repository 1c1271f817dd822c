"""A ledger on a log in memory, with control of everything that may go wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, get_args

from domain import commands as c
from domain.accounts import Wallet
from domain.decisions.charging import UseOutcome
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from domain.ports import Group, TakenClaim
from infra.memory.clock import FixedClock
from infra.memory.log import MemoryLog, MemoryStorage
from infra.memory.state_rows import MemoryStateRows
from infra.postgres.mapper import EventMapper
from keyledger_language import fingerprint
from keyledger_language.events import Event, LedgerEvent
from keyledger_language.instants import SECOND
from services.ledger.jobs import Done, Idempotency, Render
from services.ledger.ledger import Ledger
from services.ledger.ports import Ports, Terms


class WatchedLog(MemoryLog):
    """A log whose appends can be held back and inspected."""

    def __init__(self, storage: MemoryStorage, clock: FixedClock) -> None:
        super().__init__(storage, clock=clock)
        self.groups: list[Group] = []
        self.looked_up: list[list[bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        """Set when an append waits at the gate."""
        self.on_send: Callable[[], None] = lambda: None
        self.before_append: Callable[[], None] = lambda: None

    def append(self, group: Group) -> Any:  # a coroutine, which each type checker calls otherwise
        self.on_send()
        return self._append(group)

    async def _append(self, group: Group) -> int:
        self.arrived.set()
        await self.gate.wait()
        self.before_append()
        head = await super().append(group)
        self.groups.append(group)
        return head

    async def claims(self, digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        self.looked_up.append(list(digests))
        return await super().claims(digests)

    def hold(self) -> None:
        """Let no append through."""
        self.gate.clear()
        self.arrived.clear()


class World:
    """One storage, one clock, and ledger processes on them."""

    def __init__(self) -> None:
        self.clock = FixedClock()
        self.storage = MemoryStorage()
        self.rows = MemoryStateRows()
        self.published: list[bytes] = []
        self.processes: list[Process] = []
        self.unheard: list[dict[str, Any]] = []
        """Errors that asyncio reports because no code handled them."""

    def pass_time(self, seconds: float) -> None:
        """Move both clocks on: the one for leases and the time of day."""
        self.clock.boottime_us += int(seconds * SECOND)
        self.clock.advance(int(seconds * SECOND))

    def process(self, **terms: Any) -> Process:
        """Another ledger process, not yet running."""
        made = Process(self, Terms(**terms))
        self.processes.append(made)
        return made

    def decoded(self) -> list[Event]:
        """The log, as events."""
        mapper = new_mapper()
        mapper.data_keys.learn(self.storage.data_keys)
        return [mapper.decode(one) for one in self.storage.events]

    def of(self, *kinds: type[Event]) -> list[Event]:
        """The log's events of some kinds."""
        return [event for event in self.decoded() if isinstance(event, kinds)]


def new_mapper() -> EventMapper[Event]:
    return EventMapper(get_args(LedgerEvent))


class Process:
    """One ledger process: its log session, its ledger, its loop."""

    def __init__(self, world: World, terms: Terms) -> None:
        self.world = world
        self.log = WatchedLog(world.storage, world.clock)
        self.mapper = new_mapper()
        self.alone = True
        """Whether it knows that no other process can be answering from memory."""
        self.ended_silent = 0
        self.pruned = 0
        self.ledger = Ledger(
            Ports(
                log=self.log,
                rows=world.rows,
                mapper=self.mapper,
                clock=world.clock,
                fence_clock=world.clock,
                learn_data_keys=self.mapper.data_keys.learn,
                announce=lambda tenure: self.log.announce(f"http://{id(self)}", tenure),
                publish_change=world.published.append,
                projected=_projected,
                succeeds_nobody=self._succeeds_nobody,
                end_silent_owner=self._end_silent,
                prune=self._prune,
            ),
            terms,
        )
        self.stop = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self.asking = c.Asking(actor="system")

    async def _succeeds_nobody(self) -> bool:
        return self.alone

    async def _end_silent(self) -> None:
        self.ended_silent += 1

    async def _prune(self) -> None:
        self.pruned += 1

    # -- running

    def start(self) -> None:
        """Stand by, or own."""
        self.stop.clear()
        self.task = asyncio.create_task(self.ledger.run(self.stop))

    async def started(self) -> Process:
        """Start, and wait until it owns the partition."""
        self.start()
        await until(lambda: self.ledger.owner)
        return self

    async def stopped(self) -> None:
        """Stop in good order."""
        self.stop.set()
        if self.task is not None and not self.task.cancelled():
            await self.task

    async def owns_again(self) -> None:
        """Wait until commands are accepted."""
        await until(lambda: self.ledger.confirmed and self.ledger._bus.queue.accepting)

    async def killed(self) -> None:
        """Kill it without warning: nothing is saved, nothing withdrawn; what was sent is with the log."""
        assert self.task is not None
        self.log.cut_off()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    # -- asking

    async def execute(
        self,
        command: c.Command,
        *,
        idempotency: Idempotency | None = None,
        render: Render | None = None,
    ) -> Done:
        return await self.ledger.execute(command, self.asking, idempotency=idempotency, render=render)

    def ask(self, command: c.Command, **more: Any) -> asyncio.Task[Done]:
        """Ask without waiting for the answer."""
        return asyncio.create_task(self.execute(command, **more))

    async def together(self, *commands: c.Command) -> list[Any]:
        """Ask all at once, which makes one group. The answers, or the exceptions."""
        asked = [self.ask(command) for command in commands]
        return await asyncio.gather(*asked, return_exceptions=True)

    async def keyspace(self) -> Keyspace:
        result: Keyspace = (await self.execute(c.DefineKeyspace(name="gateway", preset="default"))).result
        return result

    async def organization(self, micros: int = 0, **fields: Any) -> Organization:
        """An organization with this amount in its wallet."""
        made: Organization = (await self.execute(c.OpenOrganization(name="Acme", **fields))).result
        if micros:
            await self.execute(
                c.DepositCredits(organization_id=made.id, amount_micros=micros, reference="first")
            )
        return made

    async def key(self, micros: int = 0, **fields: Any) -> Key:
        """A key of a new organization with this amount in its wallet."""
        keyspaces = [one for one in self.ledger.books.keyspaces.values() if not one.builtin]
        keyspace = keyspaces[0] if keyspaces else await self.keyspace()
        organization = await self.organization(micros)
        secret = keyspace.shape.generate()
        made: Key = (
            await self.execute(
                c.CreateKey(
                    keyspace_id=keyspace.id,
                    organization_id=organization.id,
                    name="a key",
                    fingerprint=fingerprint(secret),
                    hint="kl_live_...",
                    **fields,
                )
            )
        ).result
        return made

    async def charge(self, key: Key, request_id: str, micros: int, **fields: Any) -> UseOutcome:
        outcome: UseOutcome = (await self.execute(charge(key, request_id, micros, **fields))).result
        return outcome

    def wallet(self, key: Key) -> Wallet:
        assert key.organization_id is not None
        return self.ledger.books.wallets[key.organization_id]

    def wake(self) -> None:
        """The clock was moved: make the bus look at its agenda."""
        self.ledger._bus.queue.wake()


def charge(key: Key, request_id: str, micros: int, **fields: Any) -> c.ChargeUsage:
    return c.ChargeUsage(key_id=key.id, request_id=request_id, base_micros=micros, **fields)


def reserve(key: Key, request_id: str, micros: int, seconds: int = 60) -> c.ReserveCredits:
    return c.ReserveCredits(
        key_id=key.id, request_id=request_id, base_micros=micros, expires_in_seconds=seconds
    )


async def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait until the condition is true."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.002)


async def _projected(position: int, seconds: float) -> bool:
    return True


@asynccontextmanager
async def world_of_ledgers() -> AsyncGenerator[World]:
    """A world that ends clean: no task left, and no exception unhandled."""
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    world = World()
    loop.set_exception_handler(lambda _, context: world.unheard.append(context))
    try:
        yield world
        for process in world.processes:
            process.log.gate.set()
            await process.stopped()
        gc.collect()
        await asyncio.sleep(0)
        current = asyncio.current_task()
        left = {task for task in asyncio.all_tasks() - before if task is not current}
        assert not left, left
        assert not world.unheard, world.unheard
    finally:
        loop.set_exception_handler(None)


def deep_state(ledger: Ledger) -> dict[str, Any]:
    """All tables, for comparison, except settled reservations, which need not be in memory."""
    state = ledger.books
    tables: dict[str, Any] = {
        name: dict(getattr(state, name))
        for name in (
            "keyspaces", "organizations", "projects", "plans", "keys", "secrets", "wallets", "counters",
            "refunds", "last_used", "versions", "members",
        )
    }  # fmt: skip
    tables["reservations"] = {name: one for name, one in state.reservations.items() if one.status == "open"}
    tables["head"], tables["at"] = state.head, state.at
    tables["narrowings"] = dict(ledger._memory.narrowings.open)
    return tables
