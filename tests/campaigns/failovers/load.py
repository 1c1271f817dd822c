"""Clients of ledgers and edges who outlive a loss: they forget what was lost, and look whether others do."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import aiohttp

from tests.campaigns.checker import Operation
from tests.campaigns.edges.charging_process import Ask, Told
from tests.campaigns.failovers.checker import Loss
from tests.campaigns.failovers.fleet import Edge, Fleet
from tests.campaigns.load import Answer, Client, Key, Load, number_of

_PATIENCE_SECONDS = 90.0
_LOOK_SECONDS = 3.0
_EXPIRED_SECONDS = 4.5
_LATEST = 40
"""Of keys that were revoked or lost, those that are looked at most."""


class Day(Load):
    """A gateway's day through both ledgers, which goes on in another epoch with what is left."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        super().__init__(client, chance)
        self.every_key: dict[str, Key] = {}
        self.gone: list[Key] = []
        """Revoked, or known to a lost history only; the latest last."""
        self._lost_until = 0.0

    @property
    def keyspace_id(self) -> str:
        return self._keyspace_id

    def any_key(self, chance: random.Random) -> Key:
        """One that should be valid, or one of the latest that must not be."""
        if self.gone and chance.random() < 0.4:
            return chance.choice(self.gone[-_LATEST:])
        return chance.choice(self._keys)

    async def grow_quiet(self) -> None:
        """From here on nothing expires by itself, so that a ledger that nobody writes to writes nothing."""
        self._expiries = (600,)
        await asyncio.sleep(_EXPIRED_SECONDS)

    def grow_loud(self) -> None:
        """As before."""
        self._expiries = (1, 2, 600)

    def expect_a_loss(self) -> None:
        """What was acknowledged may be gone from now on."""
        self._lost_until = float("inf")

    def forget(self, loss: Loss) -> None:
        """What lies beyond the head is no longer asked for; keys are still shown, and must be refused."""
        self._lost_until = loss.began
        lost = {
            one.thing
            for one in self.operations
            if one.kind == "create" and one.position is not None and one.position > loss.head
            and one.completed is not None and one.completed < loss.began
        }  # fmt: skip
        self.gone += [key for key in self._keys if key.id in lost]
        self._keys = [key for key in self._keys if key.id not in lost]
        kept = [(one, body) for one, body in self._finished if (one.position or 0) <= loss.head]
        things = {one.thing for one, _ in kept}
        self._finished = kept
        self._charges = [charge for charge in self._charges if charge[0] in things]

    async def _create(self, organization_id: str) -> None:
        before = len(self._keys)
        await super()._create(organization_id)
        for key in self._keys[before:]:
            self.every_key[key.id] = key

    async def _revoke(self) -> None:
        """Each key once, so that its position is this answer's."""
        if len(self._keys) < 10:
            return
        key = self._keys.pop(self._chance.randrange(len(self._keys)))
        operation = self._begin("revoke", key.id, key)
        fence = self._chance.choice(["true", "true", "false"])
        answer = await self._client.ask(
            "POST", f"/v1/keys/{key.id}/revoke?fence={fence}", {}, **self._once(f"revoke-{key.id}")
        )
        self._finish(operation, answer)
        operation.fenced = _held(answer)
        self.gone.append(key)
        await self._verify_key(key)

    async def _repeat(self) -> None:
        """As ever; what was lost may be refused now, or done once more."""
        if not self._finished:
            return
        first, body = self._chance.choice(self._finished)
        again = self._begin("charge", first.name, None, first.amount)
        again.organization_id, again.key_id = first.organization_id, first.key_id
        answer = await self._client.ask("POST", "/v1/charges", body)
        self._finish(
            again, answer, str(answer.body["charge"]["id"]) if answer and answer.status < 300 else None
        )
        again.replayed = True
        assert first.completed is not None
        if (
            answer is not None
            and answer.code not in {"valid", "revoked"}
            and first.completed > self._lost_until
        ):
            raise AssertionError(f"{first} was told {answer} when it was asked for again")


class AtEdges:
    """Callers who ask any of the edges: uses with a cost until they are told, and plain looks."""

    def __init__(self, day: Day, fleet: Fleet, chance: random.Random) -> None:
        self.operations: list[Operation] = []
        self.codes: Counter[str] = Counter()
        self.stopping = False
        self.told = 0
        self._day = day
        self._fleet = fleet
        self._edges = fleet.edges
        self._chance = chance
        self._count = 0

    async def run(self, callers: int) -> None:
        await asyncio.gather(*(self._call() for _ in range(callers)))

    async def _call(self) -> None:
        while not self.stopping:
            key = self._day.any_key(self._chance)
            await (self._use(key) if self._chance.random() < 0.4 else self._look(key))

    def _begin(self, kind: str, key: Key, cost: int) -> Operation:
        self._count += 1
        operation = Operation(
            "charge" if kind == "use" else "verify", f"edge-{kind}-{self._count}", key.organization_id,
            key.id, cost, invoked=time.monotonic(), at_edge=kind == "look", gives_up=False,
        )  # fmt: skip
        self.operations.append(operation)
        return operation

    async def _look(self, key: Key) -> None:
        operation = self._begin("look", key, 0)
        told = await self._chance.choice(self._edges).ask(Ask(key.secret, operation.name))
        if told is not None:
            self._note(operation, told)
        await asyncio.sleep(0.02 * self._chance.random())

    async def _use(self, key: Key) -> None:
        operation = self._begin("use", key, self._chance.randrange(1, 50))
        ask = Ask(key.secret, operation.name, operation.amount)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        operation.tries = 0
        while time.monotonic() < deadline:
            told = None
            if edges := self._writing():
                operation.tries += 1
                told = await self._chance.choice(edges).ask(ask)
            if told is not None and told.code != "ledger_unreachable" and not told.code.startswith("error"):
                self._note(operation, told)
                return
            await asyncio.sleep(0.02 + 0.1 * self._chance.random())

    def _writing(self) -> list[Edge]:
        return [edge for edge in self._edges if edge.ledger in self._fleet.asked]

    def _note(self, operation: Operation, told: Told) -> None:
        operation.completed = time.monotonic()
        operation.code, operation.replayed = told.code, told.replayed
        operation.head = number_of(told.position)
        self.codes[told.code] += 1
        self.told += 1
        if operation.kind == "charge" and told.code == "valid":
            assert told.charge is not None
            operation.thing = str(told.charge["id"])
            operation.position = number_of(str(told.charge["position"]))


def _held(answer: Answer | None) -> bool:
    fence = answer.body.get("fence") if answer is not None and answer.status == 200 else None
    return bool(fence and fence["held"])


class Lookers:
    """Callers who verify keys at one ledger each, and write nothing: also at one that is left behind."""

    def __init__(self, day: Day, fleet: Fleet, chance: random.Random) -> None:
        self.operations: list[Operation] = []
        self.codes: Counter[str] = Counter()
        self.odd: list[object] = []
        """Answers that say that the question was wrong, which it never is."""
        self.stopping = False
        self._day = day
        self._fleet = fleet
        self._chance = chance

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=_LOOK_SECONDS)
        async with aiohttp.ClientSession(headers=self._fleet.authorization, timeout=timeout) as session:
            await asyncio.gather(*(self._look_at(session, address) for address in self._fleet.addresses))

    async def _look_at(self, session: aiohttp.ClientSession, address: str) -> None:
        while not self.stopping:
            await asyncio.sleep(0.03)
            key = self._day.any_key(self._chance)
            name = f"looker-{len(self.operations)}"
            operation = Operation("verify", name, key.organization_id, key.id, invoked=time.monotonic())
            self.operations.append(operation)
            body = {"secret": key.secret, "keyspace_id": self._day.keyspace_id}
            try:
                async with session.post(f"{address}/v1/verify", json=body) as answer:
                    found = await answer.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                continue
            operation.completed = time.monotonic()
            operation.code = str(found.get("code")) if isinstance(found, dict) else None
            self.codes[str(operation.code)] += 1
            if operation.code == "invalid_request":
                self.odd.append((time.monotonic(), address, found))
