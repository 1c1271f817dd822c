"""Uses with a cost through three edges while edges and ledgers are killed: none lost, doubled or too many."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter

import pytest

from tests.campaigns.checker import Operation, Recorded, check
from tests.campaigns.cluster import Cluster, cluster
from tests.campaigns.edges.charging import Gateways, LibraryEdge, SidecarEdge, edges_of, make_keys
from tests.campaigns.load import Client

_CALLERS = 24
_BETWEEN = 40
"""So many uses are answered between two kills."""
_PATIENCE_SECONDS = 60.0


async def charge_while_killing(kills: int) -> None:
    """Kill so often, each after the last was survived; then clients, log and wallets must agree."""
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    chance = random.Random(seed)
    struck: Counter[str] = Counter()
    began = time.monotonic()
    async with cluster() as running, Client(running, random.Random(seed)) as client:
        keyspace = await client.must(
            "POST", "/v1/keyspaces", {"name": "gate", "preset": "default", "prefix": "kl_gate_"},
            **{"Idempotency-Key": "keyspace"},
        )  # fmt: skip
        edges = edges_of(running, keyspace["id"])
        gateways = Gateways(edges, chance)
        gateways.keys, deposits, most = await make_keys(client, keyspace["id"], organizations=4, keys=6)
        for edge in edges:
            edge.start()
        calling = asyncio.create_task(gateways.run(_CALLERS))
        try:
            await _survived(gateways, calling)
            for kill in range(kills):
                await _strike(running, edges, chance, struck)
                await _survived(gateways, calling)
                if kill % 10 == 9:
                    print(f"{kill + 1} kills, {gateways.told:,} uses told", flush=True)
            gateways.stopping = True
            await asyncio.wait_for(calling, 120)
        finally:
            calling.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await calling
            for edge in edges:
                edge.kill()
                await edge.close()
        await _compare(running, client, deposits + gateways.operations, most)
        print(
            f"{kills} kills {dict(struck)} in {time.monotonic() - began:.0f} s; "
            f"{gateways.told:,} uses told in {gateways.tries:,} tries: "
            f"{dict(Counter(one.code for one in gateways.operations))}"
        )
        codes = {one.code for one in gateways.operations}
        assert "valid" in codes
        assert codes <= {"valid", "api_key_quota_exceeded", "billing_shortfall"}


async def _strike(
    running: Cluster, edges: list[LibraryEdge | SidecarEdge], chance: random.Random, struck: Counter[str]
) -> None:
    what = chance.choice([*edges, *edges, "ledger-0", "ledger-1"])
    pause = chance.random() * 0.3
    if isinstance(what, str):
        struck[what] += 1
        await running.strike(what, pause)
        return
    struck[what.name] += 1
    what.kill()
    await asyncio.sleep(pause)
    what.start()


async def _survived(gateways: Gateways, calling: asyncio.Task[None]) -> None:
    target, deadline = gateways.told + _BETWEEN, time.monotonic() + _PATIENCE_SECONDS
    while gateways.told < target:
        if calling.done():
            calling.result()
        assert time.monotonic() < deadline, "nothing goes on any more"
        await asyncio.sleep(0.01)


async def _compare(
    running: Cluster, client: Client, operations: list[Operation], most: dict[str, int]
) -> None:
    recorded, head = await running.recorded()
    findings = check(operations, [one for one in recorded if one.kind in {"charge", "deposit"}], head)
    print(findings)
    assert findings.lines == []
    assert (findings.lost, findings.doubled, findings.difference_micros, findings.unknown) == (0, 0, 0, 0)
    charges = [one for one in recorded if one.kind == "charge"]
    told = [one for one in operations if one.kind == "charge" and one.code == "valid"]
    assert sorted(one.name for one in charges) == sorted(one.name for one in told)
    spent = _spent(charges)
    assert {who: micros for who, micros in spent.items() if micros > most[who]} == {}
    nearest = max(spent[who] / limit for who, limit in most.items())
    print(f"{len(charges):,} charges; nearest to its limit: {nearest:.2%}, none past it")
    for organization_id in {one.organization_id for one in charges}:
        wallet = await client.must("GET", f"/v1/organizations/{organization_id}/wallet")
        assert wallet["balance_micros"] == most[organization_id] - spent[organization_id]


def _spent(charges: list[Recorded]) -> Counter[str]:
    """Per key and per organization."""
    spent: Counter[str] = Counter()
    for one in charges:
        spent[one.key_id] += one.amount
        spent[one.organization_id] += one.amount
    return spent


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_100_kills_of_edges_and_ledgers() -> None:
    await charge_while_killing(int(os.environ.get("KEYLEDGER_KILLS", "100")))


@pytest.mark.slow
async def test_a_few_kills_of_edges_and_ledgers() -> None:
    await charge_while_killing(5)
