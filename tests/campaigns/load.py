"""Clients that want things of a ledger, ask until they are answered, and write down what they were told."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any, NamedTuple, Self

import aiohttp

from tests.campaigns.checker import Kind, Operation
from tests.campaigns.cluster import Cluster

_TRY_SECONDS = 8.0
_DONE = 300
_AGAIN = 500


class Answer(NamedTuple):
    """What came back in the end."""

    status: int
    body: dict[str, Any]
    head: int | None = None
    """The position as of which it was refused."""
    tries: int = 1

    @property
    def code(self) -> str:
        if self.status < _DONE:
            return str(self.body.get("code", "valid"))
        return str(self.body.get("code", self.status))


class Client:
    """Asks any of the processes, again and again until one answers for good."""

    def __init__(self, cluster: Cluster, chance: random.Random, *, patience: float = 90.0) -> None:
        self._cluster = cluster
        self._chance = chance
        self._patience = patience
        self._session: aiohttp.ClientSession | None = None
        self.tries = 0

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), headers=self._cluster.authorization,
            timeout=aiohttp.ClientTimeout(total=_TRY_SECONDS),
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str
    ) -> Answer | None:
        """The answer, or None when there was none within all patience."""
        assert self._session is not None
        deadline, tries = time.monotonic() + self._patience, 0
        while time.monotonic() < deadline:
            if not self._cluster.asked:
                await asyncio.sleep(0.02)
                continue
            address = self._chance.choice(self._cluster.asked)
            self.tries += 1
            tries += 1
            try:
                async with self._session.request(
                    method, address + path, json=body, headers=headers
                ) as answer:
                    data = await answer.read()
                    if answer.status < _AGAIN:
                        head = number_of(answer.headers.get("X-Keyledger-Position"))
                        return Answer(answer.status, json.loads(data) if data else {}, head, tries)
                    assert answer.status == 503, f"{answer.status} to {method} {path}: {data[:300]!r}"
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass
            await asyncio.sleep(0.02 + self._chance.random() * 0.1)
        return None

    async def must(self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
        """The body of an answer that has to be good."""
        answer = await self.ask(method, path, body, **headers)
        assert answer is not None, f"{method} {path} is not answered: {self._cluster.last_words()}"
        assert answer.status < _DONE, f"{answer.status} to {method} {path}: {answer.body}"
        return answer.body


class Key(NamedTuple):
    """A key, with its secret and its organization."""

    id: str
    secret: str
    organization_id: str


class Load:
    """A gateway's day: uses of all kinds on a few organizations, one of them always short of money."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self.operations: list[Operation] = []
        self.stopping = False
        self.acknowledged = 0
        self._client = client
        self._chance = chance
        self._count = 0
        self._keyspace_id = ""
        self._expiries: tuple[int, ...] = (1, 2, 600)
        self._organizations: list[str] = []
        self._keys: list[Key] = []
        self._charges: list[tuple[str, Key, int]] = []
        self._finished: list[tuple[Operation, dict[str, Any]]] = []

    async def prepare(self, organizations: int = 4, keys: int = 5) -> None:
        """Make what the uses need."""
        keyspace = await self._client.must(
            "POST", "/v1/keyspaces", {"name": "campaign", "preset": "default", "prefix": "kl_crash_"},
            **self._once("keyspace"),
        )  # fmt: skip
        self._keyspace_id = keyspace["id"]
        for n in range(organizations):
            made = await self._client.must(
                "POST", "/v1/organizations", {"name": f"organization {n}"}, **self._once(f"organization {n}")
            )
            self._organizations.append(made["id"])
            await self._deposit(made["id"], 2_000 if n == 0 else 1_000_000_000)
            for _ in range(keys):
                await self._create(made["id"])

    def _once(self, name: str) -> dict[str, str]:
        return {"Idempotency-Key": name}

    async def run(self, workers: int) -> None:
        """Many at once, until told to stop."""
        await asyncio.gather(*(self._work() for _ in range(workers)))

    async def _work(self) -> None:
        kinds = {
            self._charge: 50, self._verify_with_cost: 10, self._reserve: 10, self._refund: 5, self._topup: 5,
            self._make: 3, self._revoke: 2, self._verify: 8, self._repeat: 7,
        }  # fmt: skip
        choices, weights = list(kinds), list(kinds.values())
        while not self.stopping:
            await self._chance.choices(choices, weights)[0]()

    # -- one of each

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}-{self._count}"

    def _begin(self, kind: Kind, name: str, key: Key | None, amount: int = 0) -> Operation:
        operation = Operation(
            kind, name, key.organization_id if key else "", key.id if key else "", amount,
            invoked=time.monotonic(),
        )  # fmt: skip
        self.operations.append(operation)
        return operation

    def _finish(self, operation: Operation, answer: Answer | None, thing: str | None = None) -> None:
        if answer is None:
            return
        operation.completed = time.monotonic()
        operation.code = "valid" if answer.status < _DONE else answer.code
        operation.head, operation.tries = answer.head, answer.tries
        if answer.status >= _DONE:
            return
        self.acknowledged += 1
        operation.thing = thing
        operation.position = number_of(answer.body.get("position"))
        operation.replayed = bool(answer.body.get("replayed"))
        wallet = answer.body.get("wallet")
        operation.balance = wallet["balance_micros"] if wallet else None

    async def _charge(self) -> None:
        key, amount = self._chance.choice(self._keys), self._chance.randrange(1, 200)
        operation = self._begin("charge", self._name("charge"), key, amount)
        body = {"key_id": key.id, "request_id": operation.name, "amount_micros": amount}
        answer = await self._client.ask("POST", "/v1/charges", body)
        self._finish(operation, answer, _id(answer, "charge"))
        if operation.code == "valid" and operation.thing is not None:
            self._charges.append((operation.thing, key, amount))
            self._finished.append((operation, body))

    async def _verify_with_cost(self) -> None:
        key, amount = self._chance.choice(self._keys), self._chance.randrange(1, 50)
        operation = self._begin("charge", self._name("verify"), key, amount)
        body = {
            "secret": key.secret, "keyspace_id": self._keyspace_id, "request_id": operation.name,
            "cost_micros": amount,
        }  # fmt: skip
        answer = await self._client.ask("POST", "/v1/verify", body)
        if answer is None:
            return
        valid = answer.body.get("valid") is True
        self._finish(operation, answer, answer.body["charge"]["id"] if valid else None)
        operation.code = answer.code
        operation.head = number_of(answer.body.get("position"))
        operation.balance = None
        charge = answer.body.get("charge") or {}
        operation.replayed = bool(answer.body.get("replayed") or charge.get("replayed"))
        if valid:
            operation.position = number_of(answer.body["charge"]["position"])

    async def _reserve(self) -> None:
        key, amount = self._chance.choice(self._keys), self._chance.randrange(1, 100)
        operation = self._begin("reserve", self._name("reserve"), key, amount)
        seconds = self._chance.choice(self._expiries)
        body = {
            "key_id": key.id, "request_id": operation.name, "amount_micros": amount,
            "expires_in_seconds": seconds,
        }  # fmt: skip
        answer = await self._client.ask("POST", "/v1/reservations", body)
        self._finish(operation, answer, _id(answer, "reservation"))
        if operation.thing is None:
            return
        await asyncio.sleep(self._chance.choice([0.0, 0.1, 2.5]))
        if self._chance.random() < 0.6:
            await self._capture(key, operation.thing, self._chance.randrange(0, amount + 1))
        else:
            release = self._begin("release", operation.thing, key)
            answer = await self._client.ask("POST", f"/v1/reservations/{operation.thing}/release", {})
            self._finish(release, answer)

    async def _capture(self, key: Key, reservation_id: str, amount: int) -> None:
        operation = self._begin("capture", self._name("capture"), key, amount)
        body = {"request_id": operation.name, "amount_micros": amount, "final": True}
        answer = await self._client.ask("POST", f"/v1/reservations/{reservation_id}/capture", body)
        self._finish(operation, answer, _id(answer, "charge"))

    async def _refund(self) -> None:
        if not self._charges:
            return
        charge_id, key, amount = self._charges.pop(self._chance.randrange(len(self._charges)))
        operation = self._begin("refund", self._name("refund"), key, self._chance.randrange(1, amount + 1))
        body = {"request_id": operation.name, "amount_micros": operation.amount}
        answer = await self._client.ask("POST", f"/v1/charges/{charge_id}/refund", body)
        self._finish(operation, answer, charge_id if _good(answer) else None)

    async def _topup(self) -> None:
        await self._deposit(self._organizations[0], self._chance.randrange(1, 500))

    async def _deposit(self, organization_id: str, amount: int) -> None:
        operation = self._begin("deposit", self._name("deposit"), None, amount)
        operation.organization_id = organization_id
        path = f"/v1/organizations/{organization_id}/wallet/credits"
        answer = await self._client.ask("POST", path, {"amount_micros": amount, "reference": operation.name})
        self._finish(operation, answer)
        operation.balance = None  # told as it was when the answer was made

    async def _make(self) -> None:
        await self._create(self._chance.choice(self._organizations))

    async def _create(self, organization_id: str) -> None:
        operation = self._begin("create", self._name("key"), None)
        body = {"keyspace_id": self._keyspace_id, "organization_id": organization_id, "name": operation.name}
        answer = await self._client.ask("POST", "/v1/keys", body, **self._once(operation.name))
        self._finish(operation, answer, _id(answer, "key"))
        if answer is not None and _good(answer) and answer.body.get("secret"):
            self._keys.append(Key(answer.body["key"]["id"], answer.body["secret"], organization_id))

    async def _revoke(self) -> None:
        if len(self._keys) < 10:
            return
        key = self._keys[self._chance.randrange(len(self._keys))]
        operation = self._begin("revoke", key.id, key)
        fence = self._chance.choice(["true", "false"])
        answer = await self._client.ask(
            "POST", f"/v1/keys/{key.id}/revoke?fence={fence}", {}, **self._once(f"revoke-{self._name('x')}")
        )
        self._finish(operation, answer)
        operation.position = None  # of a key that was revoked already it is another's
        await self._verify_key(key)
        self._keys = [one for one in self._keys if one.id != key.id or self._chance.random() < 0.1]

    async def _verify(self) -> None:
        await self._verify_key(self._chance.choice(self._keys))

    async def _verify_key(self, key: Key) -> None:
        operation = self._begin("verify", self._name("look"), key)
        body = {"secret": key.secret, "keyspace_id": self._keyspace_id}
        answer = await self._client.ask("POST", "/v1/verify", body)
        self._finish(operation, answer)
        if answer is not None:
            operation.code = answer.code

    async def _repeat(self) -> None:
        """What was done is asked for again: the first answer, whatever the wallet says now."""
        if not self._finished:
            return
        first, body = self._chance.choice(self._finished)
        again = self._begin("charge", first.name, None, first.amount)
        again.organization_id, again.key_id = first.organization_id, first.key_id
        answer = await self._client.ask("POST", "/v1/charges", body)
        self._finish(again, answer, _id(answer, "charge"))
        # Its key may have been revoked since, which is judged each time.
        again.replayed = True
        if answer is not None and answer.code not in {"valid", "revoked"}:
            raise AssertionError(f"{first} was told {answer} when it was asked for again")


def _id(answer: Answer | None, of: str) -> str | None:
    """The id of what was made; None when nothing was."""
    if answer is None or answer.status >= _DONE:
        return None
    made: str = answer.body[of]["id"]
    return made


def _good(answer: Answer | None) -> bool:
    return answer is not None and answer.status < _DONE


def number_of(position: str | None) -> int | None:
    return None if position is None else int(position.partition("-")[2])
