"""What a quick route keeps for ever holds no secret: not in a request id, a reason, a user agent."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.api.quick.world import Owned, Reply, World, call


def kept(world: World) -> bytes:
    """The whole log, with personal fields as text."""
    decode = world.ledger._ports.mapper.decode
    return b"\n".join(msgspec.json.encode(decode(one)) for one in world.storage.events)


def refused(reply: Reply, field: str) -> bool:
    return (reply.status, reply.json["errors"][0]["field"]) == (400, field)


@pytest.mark.parametrize("around", ["{}", "retry of {}", "x{}"])
async def test_a_request_id_of_any_money_write_holds_no_secret(
    world: World, owned: Owned, around: str
) -> None:
    leaking = around.format(owned.secret)
    by = {"key_id": owned.id, "amount_micros": 5}
    charge = (await world.post("/v1/charges", {**by, "request_id": "c"})).json["charge"]["id"]
    held = (await world.post("/v1/reservations", {**by, "request_id": "h"})).json["reservation"]["id"]
    writes: list[tuple[str, dict[str, Any]]] = [
        ("/v1/charges", by),
        ("/v1/reservations", by),
        (f"/v1/charges/{charge}/refund", {}),
        (f"/v1/reservations/{held}/capture", {"amount_micros": 1}),
        (f"/v1/reservations/{held}/release", {}),
        (
            "/v1/verify",
            {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id, "cost_micros": 1},
        ),
    ]
    replies = [await world.post(path, {**body, "request_id": leaking}) for path, body in writes]
    accepted = await world.post(f"/v1/reservations/{held}/release", {"request_id": "r"})

    assert [refused(reply, "request_id") for reply in replies] == [True] * len(writes)
    assert accepted.status == 200
    assert owned.secret.encode() not in kept(world)
    assert not any(owned.secret.encode() in reply.body for reply in replies)


async def test_a_holder_who_kills_the_key_leaves_its_secret_nowhere(world: World, owned: Owned) -> None:
    shown = {"Authorization": f"Bearer {owned.secret}"}
    path = "/v1/self/revoke?fence=false"
    refusal = await call(world.app, "POST", path, headers=shown, body={"reason": f"leaked: {owned.secret}"})
    agent = {"User-Agent": f"curl/8 key={owned.secret}\t{'x' * 300}"}
    done = await call(world.app, "POST", path, headers=shown | agent, body={"reason": "leaked"})

    assert refused(refusal, "reason")
    assert done.status == 202
    assert owned.secret.encode() not in kept(world)
    assert b"curl/8 key=kl_live_[redacted] x" in kept(world)
    assert b"x" * 257 not in kept(world)
