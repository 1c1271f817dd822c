"""Two processes on one log, everything that can go wrong at random: every answer was true."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest

from domain import commands as c
from domain.keys import Key
from services.ledger import command_queue, ownership, sure_append
from services.ledger.errors import CannotAnswerError
from tests.campaigns.checker import Operation, check, record
from tests.ledger.world import Process, World, charge, deep_state, reserve

_SECONDS = 1.5
_CLIENTS = 12


class Client:
    """Asks any process that answers until it gets an answer; a request id is used for one thing only."""

    def __init__(self, processes: list[Process], keys: list[Key], chance: random.Random) -> None:
        self._processes = processes
        self._keys = keys
        self._chance = chance
        self.operations: list[Operation] = []
        self.stop = False

    async def run(self, number: int) -> None:
        count = 0
        while not self.stop:
            count += 1
            key = self._chance.choice(self._keys)
            name, amount = f"{number}-{count}", self._chance.randrange(1, 20)
            match self._chance.randrange(10):
                case 0:
                    await self._ask(
                        Operation("reserve", name, amount=amount), key, reserve(key, name, amount, 1)
                    )
                case 1:
                    deposit = c.DepositCredits(
                        organization_id=key.organization_id or "", amount_micros=50, reference=name
                    )
                    await self._ask(Operation("deposit", name, amount=50), key, deposit)
                case 2 if self.operations:
                    await self._repeat(key)
                case _:
                    await self._ask(Operation("charge", name, amount=amount), key, charge(key, name, amount))

    async def _ask(self, operation: Operation, key: Key, command: c.Command) -> None:
        operation.organization_id, operation.key_id = key.organization_id or "", key.id
        operation.invoked = time.monotonic()
        self.operations.append(operation)
        while not self.stop:
            try:
                done = await self._chance.choice(self._processes).execute(command)
            except CannotAnswerError:
                await asyncio.sleep(0.005)
                continue
            operation.completed = time.monotonic()
            operation.code = getattr(done.result, "code", "valid")
            if operation.code == "valid":
                operation.position = done.result.position
                operation.replayed = done.result.replayed
                operation.balance = done.result.wallet.balance
            return

    async def _repeat(self, key: Key) -> None:
        """Ask the same again: the answer must be the same."""
        first = self._chance.choice(self.operations)
        if first.kind == "charge" and first.code == "valid":
            keys = {one.id: one for one in self._keys}
            again = Operation("charge", first.name, amount=first.amount)
            await self._ask(again, keys[first.key_id], charge(keys[first.key_id], first.name, first.amount))
            again.replayed = True


class Chaos:
    """What happens to processes and the log."""

    def __init__(self, world: World, processes: list[Process], chance: random.Random) -> None:
        self._world = world
        self._processes = processes
        self._chance = chance
        self.stop = False
        self.did: dict[str, int] = {}

    async def run(self) -> None:
        ways = [
            self.lose_committed, self.lose_uncommitted, self.cut_off, self.go_down, self.kill, self.restart,
            self.pause, self.save, self.expire, self.forget,
        ]  # fmt: skip
        while not self.stop:
            await asyncio.sleep(self._chance.random() * 0.08)
            way = self._chance.choice(ways)
            self.did[way.__name__] = self.did.get(way.__name__, 0) + 1
            await way(self._chance.choice(self._processes))

    async def lose_committed(self, process: Process) -> None:
        process.log.lose_next_acknowledgement(committed=True)

    async def lose_uncommitted(self, process: Process) -> None:
        process.log.lose_next_acknowledgement(committed=False)

    async def cut_off(self, process: Process) -> None:
        process.log.cut_off()

    async def go_down(self, process: Process) -> None:
        self._world.storage.up = False
        await asyncio.sleep(self._chance.random() * 0.05)
        self._world.storage.up = True

    async def kill(self, process: Process) -> None:
        process.log.gate.set()
        await process.killed()
        process.start()

    async def restart(self, process: Process) -> None:
        process.log.gate.set()
        await process.stopped()
        process.start()

    async def pause(self, process: Process) -> None:
        """Its append hangs so long that it cannot be sure of its lock any more."""
        process.log.hold()
        await asyncio.sleep(0.02)
        self._world.clock.boottime_us += 1_000_000
        if self._chance.random() < 0.5:
            process.log.cut_off()
        await asyncio.sleep(self._chance.random() * 0.1)
        process.log.gate.set()

    async def save(self, process: Process) -> None:
        if process.ledger.owner:
            await asyncio.gather(process.ledger._saved.save(), return_exceptions=True)

    async def expire(self, process: Process) -> None:
        self._world.clock.advance(1_000_000)
        process.wake()

    async def forget(self, process: Process) -> None:
        process.ledger._memory.recent.clear()


@pytest.mark.parametrize("turn", range(int(os.environ.get("KEYLEDGER_TURNS", "4"))))
async def test_every_answer_was_true(world: World, turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sure_append, "_RESOLVE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(command_queue, "_WORTH_HALVING", 4)
    monkeypatch.setattr(ownership, "_STAND_BY_SECONDS", 0.005)
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"KEYLEDGER_TEST_SEED={seed}")
    chance = random.Random(seed)
    processes = [world.process() for _ in range(2)]
    first = await processes[0].started()
    keys = [await first.key(micros) for micros in (200, 100_000)]
    processes[1].start()
    client, chaos = Client(processes, keys, chance), Chaos(world, processes, chance)
    asking = [asyncio.create_task(client.run(n)) for n in range(_CLIENTS)]
    breaking = asyncio.create_task(chaos.run())

    await asyncio.sleep(_SECONDS)
    chaos.stop = True
    await breaking
    world.storage.up = True
    await asyncio.sleep(0.1)
    client.stop = True
    await asyncio.gather(*asking)
    for process in processes:
        process.log.gate.set()
        await process.stopped()
    last = await world.process().started()

    events = enumerate(world.decoded(), start=1)
    recorded = [one for n, event in events if (one := record(n, event)) is not None and one.kind != "create"]
    findings = check(client.operations, recorded, len(world.storage.events))
    print(findings, chaos.did)
    assert findings.lines == []
    assert findings.acknowledged > 50
    replay = world.process()
    await replay.ledger._saved.follower.learn_data_keys(list(world.storage.events))
    await replay.ledger._saved.follower.catch_up()
    assert deep_state(last.ledger) == deep_state(replay.ledger)
