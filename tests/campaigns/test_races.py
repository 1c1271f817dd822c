"""Money for exactly N uses, 64 callers at once: exactly N are granted, through one process and two."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from tests.campaigns.cluster import Cluster, cluster
from tests.campaigns.load import Answer, Client

CALLERS = 64


class Contest(NamedTuple):
    """What callers race for, on an organization of its own."""

    client: Client
    organization_id: str
    keys: list[str]
    project_id: str


class Arena:
    """Makes organizations, and lets callers loose on them."""

    def __init__(self, running: Cluster, client: Client, keyspace_id: str) -> None:
        self.running = running
        self.client = client
        self._keyspace_id = keyspace_id

    async def contest(
        self,
        *,
        micros: int = 10**9,
        keys: int = 1,
        key_quotas: tuple[dict[str, Any], ...] = (),
        project_quotas: tuple[dict[str, Any], ...] = (),
        organization_quotas: tuple[dict[str, Any], ...] = (),
    ) -> Contest:
        made = await self.client.must(
            "POST", "/v1/organizations", {"name": "racers", "quotas": organization_quotas}, **_once()
        )
        organization_id: str = made["id"]
        await self.client.must(
            "POST", f"/v1/organizations/{organization_id}/wallet/credits",
            {"amount_micros": micros, "reference": "the prize"},
        )  # fmt: skip
        project = await self.client.must(
            "POST", f"/v1/organizations/{organization_id}/projects",
            {"name": "the race", "quotas": project_quotas}, **_once(),
        )  # fmt: skip
        ids: list[str] = []
        for n in range(keys):
            key = await self.client.must(
                "POST", "/v1/keys",
                {
                    "keyspace_id": self._keyspace_id, "organization_id": organization_id,
                    "name": f"racer {n}", "quotas": key_quotas,
                },
                **_once(),
            )  # fmt: skip
            ids.append(key["key"]["id"])
        return Contest(self.client, organization_id, ids, project["id"])

    async def wallet(self, contest: Contest) -> tuple[int, int]:
        found = await self.client.must("GET", f"/v1/organizations/{contest.organization_id}/wallet")
        return found["balance_micros"], found["reserved_micros"]


def _once() -> dict[str, str]:
    return {"Idempotency-Key": uuid.uuid4().hex}


@pytest.fixture(params=[1, 2], ids=["one process", "two processes"])
async def arena(request: pytest.FixtureRequest) -> AsyncIterator[Arena]:
    async with cluster(request.param) as running, Client(running, random.Random(1)) as client:
        keyspace = await client.must(
            "POST", "/v1/keyspaces", {"name": "races", "preset": "default", "prefix": "kl_race_"}, **_once()
        )
        yield Arena(running, client, keyspace["id"])


async def at_once(ask: Callable[[int], Awaitable[Answer | None]], callers: int = CALLERS) -> list[Answer]:
    """All callers start at one moment; every answer, none missing."""
    start = asyncio.Event()

    async def one(n: int) -> Answer | None:
        await start.wait()
        return await ask(n)

    asking = [asyncio.create_task(one(n)) for n in range(callers)]
    await asyncio.sleep(0)
    start.set()
    answers = await asyncio.gather(*asking)
    assert None not in answers
    return [answer for answer in answers if answer is not None]


Ask = Callable[[int], Awaitable[Answer | None]]


def charging(contest: Contest, amount: Callable[[int], int], prefix: str = "use") -> Ask:
    """Each caller charges once, by the next of the contest's keys."""

    def ask(n: int) -> Awaitable[Answer | None]:
        body = {
            "key_id": contest.keys[n % len(contest.keys)], "request_id": f"{prefix}-{n}",
            "amount_micros": amount(n), "project_id": contest.project_id,
        }  # fmt: skip
        return contest.client.ask("POST", "/v1/charges", body)

    return ask


def codes(answers: list[Answer]) -> Counter[str]:
    return Counter(answer.code for answer in answers)


async def race_for_a_wallet(arena: Arena, chance: random.Random) -> None:
    uses, price = chance.randrange(1, CALLERS), chance.randrange(1, 1_000)
    contest = await arena.contest(micros=uses * price + chance.randrange(price))

    answers = await at_once(charging(contest, lambda _: price))

    assert codes(answers) == {"valid": uses, "billing_shortfall": CALLERS - uses}
    balance, reserved = await arena.wallet(contest)
    assert 0 <= balance < price
    assert reserved == 0


async def race_for_a_quota(arena: Arena, chance: random.Random, level: str) -> None:
    uses, price = chance.randrange(1, CALLERS), chance.randrange(1, 1_000)
    unit = chance.choice(["micros", "requests"])
    limit = uses if unit == "requests" else uses * price + chance.randrange(price)
    quota = ({"unit": unit, "window": chance.choice(["day", "week", "month", "total"]), "limit": limit},)
    contest = await arena.contest(
        keys=1 if level == "key" else 4,
        key_quotas=quota if level == "key" else (),
        project_quotas=quota if level == "project" else (),
        organization_quotas=quota if level == "organization" else (),
    )

    answers = await at_once(charging(contest, lambda _: price))

    refused = "api_key_quota_exceeded" if level == "key" else f"{level}_quota_exceeded"
    assert codes(answers) == {"valid": uses, refused: CALLERS - uses}
    assert (await arena.wallet(contest))[0] == 10**9 - uses * price


async def race_with_mixed_amounts(arena: Arena, chance: random.Random) -> None:
    """No overspend and no underspend: whoever was refused did not fit in what was left at the end."""
    amounts = [chance.randrange(1, 100) for _ in range(CALLERS)]
    micros = sum(amounts) // 2
    contest = await arena.contest(micros=micros, keys=3)

    answers = await at_once(charging(contest, amounts.__getitem__))

    spent = sum(amounts[n] for n, answer in enumerate(answers) if answer.code == "valid")
    left, _ = await arena.wallet(contest)
    assert left == micros - spent >= 0
    assert all(amounts[n] > left for n, answer in enumerate(answers) if answer.code == "billing_shortfall")
    assert set(codes(answers)) == {"valid", "billing_shortfall"}


async def race_with_reservations(arena: Arena, chance: random.Random) -> None:
    uses, price = chance.randrange(2, CALLERS // 2), chance.randrange(2, 1_000)
    contest = await arena.contest(micros=uses * price)

    def reserve(n: int) -> Awaitable[Answer | None]:
        body = {"key_id": contest.keys[0], "request_id": f"hold-{n}", "amount_micros": price}
        return contest.client.ask("POST", "/v1/reservations", body)

    held = await at_once(reserve)
    assert codes(held) == {"valid": uses, "billing_shortfall": CALLERS - uses}
    ids = [answer.body["reservation"]["id"] for answer in held if answer.code == "valid"]

    def settle(n: int) -> Awaitable[Answer | None]:
        """Three callers at once for each reservation: one releases, two capture half of it."""
        path = f"/v1/reservations/{ids[n % uses]}"
        if n // uses == 0:
            return contest.client.ask("POST", f"{path}/release", {})
        body = {"request_id": f"take-{n}", "amount_micros": price // 2, "final": True}
        return contest.client.ask("POST", f"{path}/capture", body)

    settled = await at_once(settle, 3 * uses)
    captured = sum(answer.status == 201 for n, answer in enumerate(settled) if n >= uses)
    for n in range(uses):
        assert sum(settled[n + turn * uses].status < 300 for turn in range(3)) == 1
    assert await arena.wallet(contest) == (uses * price - captured * (price // 2), 0)


async def race_with_refunds(arena: Arena, chance: random.Random) -> None:
    """A charge is given back in parts by many at once: never more than it was."""
    parts, part = chance.randrange(1, CALLERS), chance.randrange(1, 100)
    contest = await arena.contest(micros=parts * part)
    [charged] = await at_once(charging(contest, lambda _: parts * part, "whole"), 1)

    def refund(n: int) -> Awaitable[Answer | None]:
        path = f"/v1/charges/{charged.body['charge']['id']}/refund"
        return contest.client.ask("POST", path, {"request_id": f"back-{n}", "amount_micros": part})

    answers = await at_once(refund)

    assert codes(answers) == {"valid": parts, "refund_exceeds_charge": CALLERS - parts}
    assert await arena.wallet(contest) == (parts * part, 0)


async def race_of_one_request_id(arena: Arena, chance: random.Random) -> None:
    """All callers retry the same use: it is charged once, and everybody gets that charge."""
    contest = await arena.contest(micros=100)
    body = {"key_id": contest.keys[0], "request_id": "the one", "amount_micros": 100}

    answers = await at_once(lambda _: contest.client.ask("POST", "/v1/charges", body))

    assert codes(answers) == {"valid": CALLERS}
    assert len({answer.body["charge"]["id"] for answer in answers}) == 1
    assert sum(not answer.body["replayed"] for answer in answers) == 1
    assert await arena.wallet(contest) == (0, 0)


RACES: dict[str, Callable[[Arena, random.Random], Awaitable[None]]] = {
    "wallet": race_for_a_wallet,
    "key quota": lambda arena, chance: race_for_a_quota(arena, chance, "key"),
    "project quota": lambda arena, chance: race_for_a_quota(arena, chance, "project"),
    "organization quota": lambda arena, chance: race_for_a_quota(arena, chance, "organization"),
    "mixed amounts": race_with_mixed_amounts,
    "reservations": race_with_reservations,
    "refunds": race_with_refunds,
    "one request id": race_of_one_request_id,
}


async def run_races(arena: Arena, rounds: dict[str, int]) -> None:
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    for name, count in rounds.items():
        for n in range(count):
            try:
                await RACES[name](arena, chance)
            except AssertionError as error:
                raise AssertionError(f"round {n} for {name}, KEYLEDGER_TEST_SEED={seed}: {error}") from error
        print(f"{len(arena.running.addresses)} processes, {count} rounds for {name}: exact")


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_races_are_exact(arena: Arena) -> None:
    rounds = int(os.environ.get("KEYLEDGER_ROUNDS", "100"))
    await run_races(arena, dict.fromkeys(RACES, rounds))


@pytest.mark.slow
async def test_a_few_races_are_exact(arena: Arena) -> None:
    await run_races(arena, dict.fromkeys(RACES, 2))
