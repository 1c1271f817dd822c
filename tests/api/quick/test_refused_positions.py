"""A refusal says on which state it was decided, whatever was written before it was told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domain.keyspaces import Keyspace
from domain.organizations import Organization
from tests.api.quick.world import Owned, Reply, World, call


def use(owned: Owned, amount: int, request_id: str) -> dict[str, Any]:
    return {"key_id": owned.id, "request_id": request_id, "amount_micros": amount}


@pytest.fixture
async def poor(world: World, keyspace: Keyspace) -> Owned:
    return await world.make_key(keyspace, await world.make_organization())


async def with_a_charge_behind(world: World, rich: Owned, refused: Any) -> tuple[int, Reply, Reply]:
    """Both are decided in one group, the refused one first: the group is durable before it is told."""
    before = world.ledger.books.head
    asking = asyncio.create_task(refused)
    while not len(world.ledger._bus.queue):
        await asyncio.sleep(0)
    behind = await world.post("/v1/charges", use(rich, 1, "behind"))
    assert (behind.status, behind.json["position"]) == (201, f"0-{before + 1}")
    return before, await asking, behind


@pytest.mark.parametrize("path", ["/v1/charges", "/v1/reservations"])
async def test_a_refused_use_has_the_position_of_its_decision(
    world: World, owned: Owned, poor: Owned, path: str
) -> None:
    asking = world.post(path, use(poor, 1, "r1"))
    before, refused, _ = await with_a_charge_behind(world, owned, asking)

    assert (refused.status, refused.code) == (402, "billing_shortfall")
    assert refused.headers["x-keyledger-position"] == f"0-{before}"


async def test_so_has_a_refused_capture(world: World, owned: Owned, keyspace: Keyspace) -> None:
    other: Organization = await world.make_organization(credit=100)
    key = await world.make_key(keyspace, other)
    made = await world.post("/v1/reservations", use(key, 100, "r1") | {"expires_in_seconds": 1})
    world.clock.advance(2_000_000)
    await world.post("/v1/charges", use(key, 100, "r2"))

    asking = world.post(
        f"/v1/reservations/{made.json['reservation']['id']}/capture", {"request_id": "c", "amount_micros": 7}
    )
    before, refused, _ = await with_a_charge_behind(world, owned, asking)

    assert (refused.status, refused.code) == (402, "billing_shortfall")
    assert refused.headers["x-keyledger-position"] == f"0-{before}"


async def test_so_has_a_refused_use_of_a_proxy(
    world: World, owned: Owned, poor: Owned, keyspace: Keyspace
) -> None:
    headers = [
        ("X-Keyledger-Proxy-Key", world.root), ("X-API-Key", poor.secret),
        ("X-Keyledger-Cost-Micros", "1"), ("X-Keyledger-Request-Id", "r1"),
    ]  # fmt: skip
    target = f"/v1/forward-auth?keyspace_id={keyspace.id}"
    asking = call(world.app, "GET", target, headers=headers, at_once=world.at_once)
    before, refused, _ = await with_a_charge_behind(world, owned, asking)

    assert (refused.status, refused.code) == (402, "billing_shortfall")
    assert refused.headers["x-keyledger-position"] == f"0-{before}"
