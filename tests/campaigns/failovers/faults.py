"""What befalls a fleet, and what its operator then does, as the documents tell."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from domain.publishing import Place
from tests.campaigns.checker import EDGE_SECONDS
from tests.campaigns.cluster import Program
from tests.campaigns.failovers.checker import Loss
from tests.campaigns.failovers.fleet import Fleet, some
from tests.campaigns.failovers.load import Day
from tests.replicas import Node

Fault = Callable[[], Awaitable[None]]
_TERMINATE: Final = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE application_name LIKE 'keyledger%%' AND random() < %s
"""
_OWNER_SECONDS: Final = 30.0
_CANCEL: Final = _TERMINATE.replace("pg_terminate_backend", "pg_cancel_backend")


class Told(NamedTuple):
    """A loss, and what `new-epoch` printed about it."""

    loss: Loss
    how: str
    heard: Place | None
    """Up to where NATS had heard just before."""
    printed: dict[str, Any]


class Faults:
    """Each method is one fault from its beginning until everything is as it should be."""

    def __init__(self, fleet: Fleet, day: Day, chance: random.Random) -> None:
        self.struck: Counter[str] = Counter()
        self.losses: list[Loss] = []
        self.told: list[Told] = []
        self.pace = 1.0
        """How long everything lasts, beside what it does in the long form."""
        self.diary: list[str] = []
        """What struck when, for whoever looks for a cause."""
        self._fleet = fleet
        self._replicas = fleet.replicas
        self._day = day
        self._chance = chance
        self.light: dict[Fault, int] = {
            self.kill_ledger: 10, self.freeze_ledger: 8, self.kill_worker: 5, self.freeze_worker: 4,
            self.kill_edge: 7, self.freeze_edge: 5, self.kill_nats: 4, self.freeze_nats: 4,
            self.cut_connections: 6,
        }  # fmt: skip
        self.heavy: dict[Fault, int] = {
            self.terminate_sessions: 6, self.cancel_statements: 6, self.restart_postgresql: 4,
            self.crash_postgresql: 4, self.standby_away: 5, self.fail_over: 7, self.split_brain: 9,
            self.fail_over_after_a_break_off: 7,
        }  # fmt: skip
        self.epochs: dict[Fault, int] = {self.lossy_fail_over: 7, self.restore_a_copy: 7}

    def choose(self, names: str) -> None:
        """Only these, if any are named: for whoever looks for the cause of something."""
        wanted = set(names.replace(",", " ").split())
        for faults in (self.light, self.heavy, self.epochs) if wanted else ():
            for fault in [one for one in faults if one.__name__ not in wanted]:
                del faults[fault]

    async def named(self, name: str) -> None:
        """This one."""
        everything = self.light | self.heavy | self.epochs
        await self._one_of({fault: 1 for fault in everything if fault.__name__ == name})

    async def strike(self) -> None:
        """Something; now and then a smaller thing happens meanwhile."""
        if not self.heavy | self.epochs or (self.light and self._chance.random() < 0.5):
            await self._one_of(self.light)
            return
        heavy = self._one_of(self.heavy | self.epochs)
        if self.light and self._chance.random() < 0.3:
            await asyncio.gather(heavy, self._a_little_later(self._one_of(self.light)))
        else:
            await heavy

    def _one_of(self, faults: dict[Fault, int]) -> Awaitable[None]:
        fault = self._chance.choices(list(faults), list(faults.values()))[0]
        self.struck[fault.__name__] += 1
        return self._noted(fault)

    async def _noted(self, fault: Fault) -> None:
        began = time.monotonic()
        await fault()
        self.diary.append(f"{began:.2f} to {time.monotonic():.2f} {fault.__name__}")

    async def _a_little_later(self, fault: Awaitable[None]) -> None:
        await asyncio.sleep(self._seconds(1.5))
        await fault

    def _seconds(self, most: float) -> float:
        return 0.05 + self.pace * most * self._chance.random() ** 2

    # -- programs and NATS

    async def kill_ledger(self) -> None:
        await self._fleet.strike(f"ledger-{self._chance.randrange(2)}", self._seconds(0.5))

    async def kill_worker(self) -> None:
        program = self._chance.choice(self._fleet.workers)
        program.kill()
        await asyncio.sleep(self._seconds(0.5))
        program.start()

    async def freeze_ledger(self) -> None:
        await self._freeze(self._chance.choice(self._fleet.ledgers).pid, 6.0)

    async def freeze_worker(self) -> None:
        await self._freeze(self._chance.choice(self._fleet.workers).pid, 3.0)

    async def kill_edge(self) -> None:
        edge = self._chance.choice(self._fleet.edges)
        edge.kill()
        await asyncio.sleep(self._seconds(0.5))
        edge.start()

    async def freeze_edge(self) -> None:
        await self._freeze(self._chance.choice(self._fleet.edges).pid, 3.0)

    async def kill_nats(self) -> None:
        await self._fleet.strike("nats", self._seconds(1.0))

    async def freeze_nats(self) -> None:
        pid = self._fleet.servers.nats.pid
        assert pid is not None
        await self._freeze(pid, 3.0)

    async def _freeze(self, pid: int, most_seconds: float) -> None:
        self._fleet.freeze_process(pid)
        try:
            await asyncio.sleep(self._seconds(most_seconds))
        finally:
            self._fleet.freeze_process(pid, thaw=True)

    # -- the way to PostgreSQL

    async def cut_connections(self) -> None:
        programs = tuple(some(self._chance, self._fleet.programs))
        cut = self._fleet.unplug(programs=programs)
        await asyncio.sleep(self._seconds(2.5))
        self._fleet.plug(cut)

    async def terminate_sessions(self) -> None:
        """While the standby is away, every commit waits: whoever waits is broken off."""
        await self._break_off(_TERMINATE)

    async def cancel_statements(self) -> None:
        await self._break_off(_CANCEL)

    async def _break_off(self, statement: str) -> None:
        async with self._sometimes_without_standby():
            for _ in range(self._chance.randrange(1, 4)):
                await asyncio.sleep(self._seconds(0.7))
                await asyncio.to_thread(self._replicas.primary.ask, statement, self._chance.random())

    @asynccontextmanager
    async def _sometimes_without_standby(self) -> AsyncGenerator[None]:
        if self._chance.random() < 0.5:
            yield
            return
        self._replicas.isolate()
        yield
        self._replicas.reconnect()
        await self._in_step()

    # -- PostgreSQL without a loss

    async def restart_postgresql(self) -> None:
        await asyncio.to_thread(self._replicas.primary.stop)
        await asyncio.sleep(self._seconds(0.5))
        await asyncio.to_thread(self._replicas.primary.start)
        await self._in_step()

    async def crash_postgresql(self) -> None:
        await asyncio.to_thread(self._replicas.primary.kill)
        await asyncio.sleep(self._seconds(0.5))
        await asyncio.to_thread(self._replicas.primary.start)
        await self._in_step()

    async def standby_away(self) -> None:
        await asyncio.to_thread(self._replicas.standby.kill)
        await asyncio.sleep(self._seconds(5.0))
        await asyncio.to_thread(self._replicas.follow, self._replicas.standby)
        await self._in_step()

    async def fail_over(self) -> None:
        """The primary dies, its synchronous standby is promoted: nothing is lost, and no epoch raised."""
        await asyncio.to_thread(self._replicas.primary.kill)
        await asyncio.sleep(self._seconds(1.0))
        await self._promote()
        await self._a_new_standby()

    async def fail_over_after_a_break_off(self) -> None:
        """Commits wait for a standby that is away, and are broken off; then it is promoted without them."""
        self._replicas.isolate()
        for _ in range(self._chance.randrange(1, 4)):
            await asyncio.sleep(self._seconds(0.7))
            statement = self._chance.choice([_TERMINATE, _CANCEL])
            await asyncio.to_thread(self._replicas.primary.ask, statement, 0.5 + self._chance.random())
        await asyncio.sleep(self._seconds(1.0))
        # The primary shows what was broken off; whoever took it would ask for the operator now.
        await self.fail_over()

    async def split_brain(self) -> None:
        """The primary is cut off and lives on, with its owner at it; its standby is promoted."""
        old, owner = self._replicas.primary, await self._fleet.owner()
        stay = [owner, *some(self._chance, tuple(self._fleet.workers))]
        go = tuple(program for program in self._fleet.programs if program not in stay)
        async with self._sometimes_only_read(owner):
            self._replicas.isolate()
            cut = self._fleet.unplug(self._replicas.standby, programs=tuple(stay))
            cut += self._fleet.unplug(old, programs=go)
            await asyncio.sleep(self._seconds(1.0))
            await self._promote()
            await self._another_owner(owner)
            self._fleet.asked = self._fleet.asked or self._fleet.others_of(owner)
            await asyncio.sleep(2.0 * self.pace + self._seconds(5.0))
            await asyncio.to_thread(old.kill)
            self._fleet.plug(cut)
        await self._a_new_standby()

    @asynccontextmanager
    async def _sometimes_only_read(self, ledger: Program) -> AsyncGenerator[None]:
        """Nobody writes until there is another owner, and then through that; this one only verifies."""
        if self.pace < 1 or self._chance.random() < 0.5:
            yield
            return
        self.struck["split_brain, quiet"] += 1
        await self._day.grow_quiet()
        self._fleet.asked = []
        await asyncio.sleep(1.0)  # what is under way is answered, and what follows from it is written
        yield
        self._fleet.asked = self._fleet.addresses
        self._day.grow_loud()

    async def _another_owner(self, than: Program) -> None:
        deadline = time.monotonic() + _OWNER_SECONDS
        while await self._fleet.owner() is than:
            assert time.monotonic() < deadline, f"nobody takes over: {self._fleet.last_words()}"
            await asyncio.sleep(0.05)

    async def _promote(self) -> None:
        await asyncio.to_thread(self._replicas.promote)

    async def _a_new_standby(self) -> None:
        await asyncio.sleep(self._seconds(2.0))
        await asyncio.to_thread(self._replicas.rebuild)
        await self._in_step()

    async def _in_step(self) -> None:
        await asyncio.to_thread(self._replicas.make_synchronous)

    # -- PostgreSQL with a loss

    async def lossy_fail_over(self) -> None:
        """The standby lags behind; the primary dies; the standby is promoted all the same."""
        await asyncio.to_thread(self._replicas.make_asynchronous)
        self._replicas.isolate()
        await asyncio.sleep(0.3 + self._seconds(1.5))
        self._day.expect_a_loss()
        survivor = self._replicas.standby
        heard, ended = await self._fleet.heard(), time.monotonic()
        await asyncio.to_thread(self._replicas.primary.kill)
        head = await self._fleet.head_of(survivor)
        await asyncio.sleep(self._seconds(1.0))
        began = time.monotonic()
        await asyncio.to_thread(self._replicas.promote, survivor)
        await self._new_epoch(Loss(head, ended, began, began), heard)
        await self._a_new_standby()

    async def restore_a_copy(self) -> None:
        """Both are lost; the primary comes back from a cold copy that was made some seconds before."""
        replicas = self._replicas
        node = replicas.primary
        copy = node.folder / "copy"
        await asyncio.to_thread(self._copy, node)
        await asyncio.sleep(0.5 + self._seconds(2.5))
        self._day.expect_a_loss()
        heard, ended = await self._fleet.heard(), time.monotonic()
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.restore, copy)
        await asyncio.to_thread(node.remove, copy)
        cut = self._fleet.unplug()
        await asyncio.to_thread(node.start)
        await asyncio.to_thread(replicas.make_asynchronous)
        head, began = await self._fleet.head_of(node), time.monotonic()
        self._fleet.plug(cut)
        await self._new_epoch(Loss(head, ended, began, began), heard)
        await self._a_new_standby()

    def _copy(self, node: Node) -> None:
        self._replicas.make_asynchronous()
        self._replicas.standby.kill()
        node.stop()
        node.copy_cold(node.folder / "copy")
        node.start()

    async def _new_epoch(self, loss: Loss, heard: Place | None) -> None:
        """What the documents tell an operator to do after a loss; the programs run on, or are restarted."""
        how = self._chance.choice(["running", "running", "restarted before", "restarted after"])
        if how == "restarted before":
            self._restart_programs()
        await asyncio.sleep(self._seconds(1.5))
        printed = await self._fleet.must("new-epoch", "--yes")
        if how == "restarted after":
            self._restart_programs()
        loss = loss._replace(settled=time.monotonic() + EDGE_SECONDS)
        self.losses.append(loss)
        self._day.forget(loss)
        self.told.append(Told(loss, how, heard, printed))

    def _restart_programs(self) -> None:
        for program in self._fleet.programs:
            program.kill()
        for program in self._fleet.programs:
            program.start()
