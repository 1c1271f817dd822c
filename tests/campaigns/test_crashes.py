"""kill -9 of everything at random points, under load with retries: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter

import pytest

from tests.campaigns.checker import check
from tests.campaigns.cluster import Cluster, cluster
from tests.campaigns.load import Client, Load

WORKERS = 64
_PROGRESS_SECONDS = 45.0


async def crash(
    victims: list[str], kills: int, *, seed: int | None = None, between: int = 60, freezes: bool = False
) -> None:
    """So many kills under load, each after the last was survived; then everything is compared."""
    seed = seed or int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    chance = random.Random(seed)
    struck: Counter[str] = Counter()
    silences: list[float] = []
    started = time.monotonic()
    async with cluster() as running, Client(running, random.Random(seed)) as client:
        load = Load(client, random.Random(seed + 1))
        await load.prepare()
        working = asyncio.create_task(load.run(WORKERS))
        try:
            for _ in range(kills):
                what = chance.choice(victims)
                struck[what] += 1
                if what == "frozen":
                    await running.freeze(chance.randrange(2), 0.5 + chance.random() * 9)
                else:
                    await running.strike(what, chance.random() * 0.5)
                silences.append(await survived(load, working, between, running))
                await asyncio.sleep(chance.random() * 0.5)
            load.stopping = True
            await asyncio.wait_for(working, 120)
        finally:
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await working
        silences.sort()
        print(
            f"then nobody was answered for {silences[len(silences) // 2]:.1f} s, at most {silences[-1]:.1f} s"
        )
        await compare(running, load, client, struck, time.monotonic() - started)


async def survived(load: Load, working: asyncio.Task[None], more: int, running: Cluster) -> float:
    """Wait until so much more was acknowledged; how long it took to the first of it."""
    began, before, silent = time.monotonic(), load.acknowledged, 0.0
    deadline = began + _PROGRESS_SECONDS
    while load.acknowledged < before + more:
        if load.acknowledged == before:
            silent = time.monotonic() - began
        if working.done():
            working.result()
        assert time.monotonic() < deadline, f"nothing goes on any more: {running.last_words()}"
        await asyncio.sleep(0.01)
    return silent


async def compare(running: Cluster, load: Load, client: Client, struck: Counter[str], seconds: float) -> None:
    """Clients' answers, log, wallets, projections, stream: all must tell the same."""
    recorded, head = await running.recorded()
    findings = check(load.operations, recorded, head)
    print(f"{sum(struck.values())} kills {dict(struck)} in {seconds:.0f} s, {client.tries:,} tries")
    print(f"ended by themselves: {[(one.name, one.ended) for one in (*running.ledgers, running.worker)]}")
    print(findings)
    assert findings.lines == [], "\n".join(findings.lines)
    assert (findings.lost, findings.doubled, findings.difference_micros) == (0, 0, 0)
    assert findings.acknowledged > 10 * sum(struck.values())
    last = {one.organization_id: one for one in recorded if one.kind not in {"create", "revoke"}}
    for organization_id, one in last.items():
        wallet = await client.must("GET", f"/v1/organizations/{organization_id}/wallet")
        told = wallet["balance_micros"], wallet["reserved_micros"]
        assert told == (one.balance, one.reserved), f"{organization_id} at {one.position}"
    _, head = await running.recorded()
    ids = await running.published(head)
    assert ids[:head] == [f"1.0.{n}" for n in range(1, head + 1)]
    projected = await running.projected(head)
    assert projected.position >= head
    assert projected.clean, projected.tables
    print(f"NATS has each of {head:,} positions once; the projections equal a rebuild")


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_50_kills_under_writes_by_two_processes() -> None:
    victims = ["ledger-0", "ledger-0", "ledger-1", "ledger-1", "worker", "nats", "postgres"]
    await crash(victims, int(os.environ.get("KEYLEDGER_KILLS", "50")))


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_100_kills_of_ledger_and_postgresql() -> None:
    await crash(["ledger-0", "ledger-1", "postgres"], int(os.environ.get("KEYLEDGER_KILLS", "100")))


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_processes_that_are_frozen_for_longer_than_their_lease() -> None:
    await crash(["frozen"], int(os.environ.get("KEYLEDGER_KILLS", "10")))


@pytest.mark.slow
async def test_a_few_kills_of_everything() -> None:
    await crash(["ledger-0", "ledger-1", "worker", "nats", "postgres"], 5, between=30)
