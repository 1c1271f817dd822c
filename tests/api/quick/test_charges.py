"""Charges, refunds and reservations over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from tests.api.quick.world import Owned, World


def charge(owned: Owned, amount: int, request_id: str, **fields: object) -> dict[str, object]:
    return {"key_id": owned.id, "amount_micros": amount, "request_id": request_id} | fields


async def test_a_charge_is_answered_with_what_is_left(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    plan = await world.make_plan(price_multiplier="1.25")
    quotas = (Quota(unit="micros", window="month", limit=500),)
    owned = await world.make_key(keyspace, acme, plan_id=plan.id, quotas=quotas)

    reply = await world.post(
        "/v1/charges", charge(owned, 100, "r1", model="m", tenant={"user_id": "ada"}, metadata={"a": 1})
    )

    assert reply.status == 201
    answer = reply.json
    assert answer["charge"]["id"].startswith("chg_")
    assert answer["charge"] == {
        "id": answer["charge"]["id"],
        "key_id": owned.id,
        "organization_id": acme.id,
        "request_id": "r1",
        "base_micros": 100,
        "price_multiplier": "1.25",
        "amount_micros": 125,
        "model": "m",
        "provider": None,
        "project_id": None,
        "tenant": {"org_id": None, "user_id": "ada"},
        "charged_at": "2024-10-04T00:00:00.000000Z",
        "position": answer["position"],
        "metadata": {"a": 1},
    }
    assert answer["replayed"] is False
    assert [(one["spent"], one["remaining"]) for one in answer["quotas"]] == [(125, 375)]
    assert answer["wallet"]["available_micros"] == 875


async def test_a_secret_charges_like_its_key(world: World, owned: Owned, keyspace: Keyspace) -> None:
    by_secret = {"secret": owned.secret, "keyspace_id": keyspace.id, "request_id": "r1", "amount_micros": 5}

    first = await world.post("/v1/charges", by_secret)
    again = await world.post("/v1/charges", charge(owned, 5, "r1"))

    assert (first.status, again.status) == (201, 201)
    assert again.json["charge"] == first.json["charge"]
    assert again.json["replayed"] is True


async def test_another_body_under_a_request_id_is_a_conflict(world: World, owned: Owned) -> None:
    await world.post("/v1/charges", charge(owned, 5, "r1"))

    reply = await world.post("/v1/charges", charge(owned, 6, "r1"))

    assert (reply.status, reply.code) == (409, "idempotency_conflict")


async def test_a_refused_charge_says_which_limit_and_takes_nothing(
    world: World, owned: Owned, acme: Organization
) -> None:
    reply = await world.post("/v1/charges", charge(owned, 1_001, "r1"))

    assert (reply.status, reply.code) == (402, "billing_shortfall")
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["refusal"]["remaining"] == 1_000
    assert world.balance(acme) == 1_000


async def test_a_refused_charge_may_be_tried_again_when_there_is_money(
    world: World, owned: Owned, acme: Organization
) -> None:
    await world.post("/v1/charges", charge(owned, 1_001, "r1"))
    await world.do(c.DepositCredits(organization_id=acme.id, amount_micros=1, reference="more"))

    reply = await world.post("/v1/charges", charge(owned, 1_001, "r1"))

    assert (reply.status, world.balance(acme)) == (201, 0)


async def test_a_dead_key_is_403_because_401_is_the_callers_own(world: World, owned: Owned) -> None:
    await world.do(c.RevokeKey(key_id=owned.id))

    reply = await world.post("/v1/charges", charge(owned, 1, "r1"))

    assert (reply.status, reply.code) == (403, "revoked")


async def test_an_unknown_secret_is_403_and_an_unknown_key_404(world: World, keyspace: Keyspace) -> None:
    ask = {"request_id": "r1", "amount_micros": 1}
    unknown = keyspace.shape.generate()

    by_secret = await world.post("/v1/charges", ask | {"secret": unknown, "keyspace_id": keyspace.id})
    garbage = await world.post("/v1/charges", ask | {"secret": "garbage", "keyspace_id": keyspace.id})
    by_id = await world.post("/v1/charges", ask | {"key_id": "key_unknown"})

    assert (by_secret.status, by_secret.code) == (403, "not_found")
    assert (garbage.status, garbage.code) == (403, "malformed")
    assert (by_id.status, by_id.code) == (404, "not_found")
    assert by_id.json["errors"][0]["field"] == "key_id"


async def test_a_keyspaces_own_statuses_are_used(world: World) -> None:
    keyspace = await world.make_keyspace("leadmagic")
    owned = await world.make_key(keyspace, await world.make_organization())

    reply = await world.post("/v1/charges", charge(owned, 1, "r1"))

    assert (reply.status, reply.code) == (403, "billing_shortfall")


async def test_charging_needs_charges_write(world: World, owned: Owned) -> None:
    verifier = await world.make_root("verify")

    reply = await world.post("/v1/charges", charge(owned, 1, "r1"), as_=verifier)

    assert (reply.status, reply.code, reply.json["permission"]) == (403, "permission_denied", "charges:write")


async def test_a_foreign_organizations_key_is_not_there(world: World, owned: Owned) -> None:
    other = await world.make_organization()
    bound = await world.make_root("charges:write", organization_id=other.id)

    reply = await world.post("/v1/charges", charge(owned, 1, "r1"), as_=bound)

    assert (reply.status, reply.code) == (404, "not_found")


async def test_a_batch_gives_each_item_its_own_answer(world: World, owned: Owned, acme: Organization) -> None:
    items = [
        charge(owned, 400, "r1"),
        charge(owned, 400, "r2"),
        charge(owned, 400, "r3"),
        charge(owned, 400, "r1"),
        {"request_id": "r4", "amount_micros": 1},
    ]

    reply = await world.post("/v1/charges/batch", {"items": items})

    results = reply.json["results"]
    assert [one["status"] for one in results] == [201, 201, 402, 201, 400]
    assert [one.get("replayed") for one in results[:4]] == [False, False, None, True]
    assert results[2]["code"] == "billing_shortfall"
    assert world.balance(acme) == 200


async def test_a_thousand_charges_go_in_one_batch(world: World, owned: Owned, acme: Organization) -> None:
    items = [charge(owned, 1, f"r{number}") for number in range(1_000)]

    reply = await world.post("/v1/charges/batch", {"items": items})

    assert {one["status"] for one in reply.json["results"]} == {201}
    assert world.balance(acme) == 0


async def test_of_64_callers_exactly_as_many_are_granted_as_there_is_money_for(
    world: World, owned: Owned, acme: Organization
) -> None:
    replies = await asyncio.gather(
        *(world.post("/v1/charges", charge(owned, 25, f"r{number}")) for number in range(64))
    )

    assert sum(reply.status == 201 for reply in replies) == 40
    assert world.balance(acme) == 0


BAD: list[tuple[dict[str, object], str]] = [
    ({"amount_micros": 1, "request_id": "r"}, "secret"),
    ({"amount_micros": 1, "request_id": "r", "key_id": "k", "secret": "s"}, "key_id"),
    ({"amount_micros": 1, "key_id": "k"}, "request_id"),
    ({"request_id": "r", "key_id": "k"}, "amount_micros"),
    ({"amount_micros": 2**63, "request_id": "r", "key_id": "k"}, "amount_micros"),
    ({"amount_micros": 0.5, "request_id": "r", "key_id": "k"}, "amount_micros"),
    ({"amount_micros": 1, "request_id": "r", "key_id": "k", "metadata": {"a": "x" * 20_000}}, "metadata"),
    ({"amount_micros": 1, "request_id": "r", "key_id": "k", "metadata": {"a": "\x01"}}, "metadata.a"),
    ({"amount_micros": 1, "request_id": "r", "key_id": "k", "price": 1}, "price"),
]


@pytest.mark.parametrize("body,field", BAD)
async def test_bad_input_is_refused_by_its_field(world: World, body: dict[str, object], field: str) -> None:
    reply = await world.post("/v1/charges", body)

    assert reply.status == 400
    assert reply.json["errors"][0]["field"] == field, reply.json


# -- refunds


async def test_a_charge_is_refunded_in_parts_and_never_beyond(
    world: World, owned: Owned, acme: Organization
) -> None:
    charged = (await world.post("/v1/charges", charge(owned, 300, "r1"))).json["charge"]
    path = f"/v1/charges/{charged['id']}/refund"

    part = await world.post(path, {"request_id": "f1", "amount_micros": 100})
    again = await world.post(path, {"request_id": "f1", "amount_micros": 100})
    rest = await world.post(path, {"request_id": "f2"})
    beyond = await world.post(path, {"request_id": "f3", "amount_micros": 1})

    assert (part.status, part.json["refund"]["amount_micros"]) == (201, 100)
    assert (again.json["replayed"], again.json["refund"]) == (True, part.json["refund"])
    assert (rest.json["refund"]["amount_micros"], rest.json["charge"]["refunded_micros"]) == (200, 300)
    assert (beyond.status, beyond.code) == (409, "refund_exceeds_charge")
    assert world.balance(acme) == 1_000


@pytest.mark.parametrize("name", ["chg_00000000000000000000000000", "nonsense", "chg_lower", "7" * 200])
async def test_a_charge_that_is_not_there_cannot_be_refunded(world: World, name: str) -> None:
    reply = await world.post(f"/v1/charges/{name}/refund", {"request_id": "f1"})

    assert (reply.status, reply.code) == (404, "not_found")


async def test_a_foreign_charge_is_not_there(world: World, owned: Owned) -> None:
    charged = (await world.post("/v1/charges", charge(owned, 300, "r1"))).json["charge"]
    bound = await world.make_root("charges:write", organization_id=(await world.make_organization()).id)

    reply = await world.post(f"/v1/charges/{charged['id']}/refund", {"request_id": "f1"}, as_=bound)

    assert reply.status == 404


# -- reservations


async def reserve(
    world: World, owned: Owned, amount: int, request_id: str, **fields: object
) -> dict[str, object]:
    reply = await world.post("/v1/reservations", charge(owned, amount, request_id, **fields))
    assert reply.status == 201, reply.body
    made: dict[str, object] = reply.json["reservation"]
    return made


async def test_held_money_cannot_be_spent_twice(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1", expires_in_seconds=60)

    refused = await world.post("/v1/charges", charge(owned, 101, "r2"))

    assert (held["status"], held["held_micros"]) == ("open", 900)
    assert held["expires_at"] == "2024-10-04T00:01:00.000000Z"
    assert (refused.status, refused.json["refusal"]["remaining"]) == (402, 100)


async def test_a_capture_takes_part_and_gives_back_the_rest(
    world: World, owned: Owned, acme: Organization
) -> None:
    held = await reserve(world, owned, 900, "r1")

    reply = await world.post(
        f"/v1/reservations/{held['id']}/capture", {"request_id": "c1", "amount_micros": 300}
    )

    assert reply.status == 201
    assert reply.json["charge"]["amount_micros"] == 300
    assert reply.json["reservation"]["status"] == "captured"
    assert reply.json["wallet"]["available_micros"] == 700
    again = await world.post(
        f"/v1/reservations/{held['id']}/capture", {"request_id": "c1", "amount_micros": 300}
    )
    assert (again.json["replayed"], again.json["charge"]) == (True, reply.json["charge"])


async def test_a_capture_beyond_what_is_held_records_what_is_uncovered(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1")

    reply = await world.post(
        f"/v1/reservations/{held['id']}/capture", {"request_id": "c1", "amount_micros": 1_200}
    )

    assert (reply.json["charge"]["amount_micros"], reply.json["uncovered_micros"]) == (1_000, 200)


async def test_many_captures_then_release(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1")
    path = f"/v1/reservations/{held['id']}"

    await world.post(f"{path}/capture", {"request_id": "c1", "amount_micros": 300, "final": False})
    shown = await world.ask("GET", path)
    released = await world.post(f"{path}/release", {})
    again = await world.post(f"{path}/release", b"")
    late = await world.post(f"{path}/capture", {"request_id": "c2", "amount_micros": 1})

    assert shown.json["reservation"]["held_micros"] == 600
    assert (released.status, released.json["released_micros"]) == (200, 600)
    assert released.json["wallet"]["available_micros"] == 700
    assert again.json["replayed"] is True
    assert (late.status, late.code) == (409, "reservation_closed")


async def test_a_reservation_expires_while_nobody_looks(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1", expires_in_seconds=1)
    world.clock.advance(2 * SECOND)

    assert (await world.post("/v1/charges", charge(owned, 1_000, "r2"))).status == 201
    late = await world.post(f"/v1/reservations/{held['id']}/capture", {"request_id": "c", "amount_micros": 1})
    assert (late.status, late.code) == (402, "billing_shortfall")


async def test_a_foreign_reservation_is_not_there(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1")
    bound = await world.make_root("charges:write", organization_id=(await world.make_organization()).id)
    path = f"/v1/reservations/{held['id']}"

    for method, target, body in (
        ("GET", path, b""),
        ("POST", f"{path}/capture", {"request_id": "c", "amount_micros": 1}),
        ("POST", f"{path}/release", {}),
        ("GET", "/v1/reservations/nonsense", b""),
    ):
        assert (await world.ask(method, target, body, as_=bound)).status == 404, target


async def test_a_replayed_reservation_shows_what_became_of_it(world: World, owned: Owned) -> None:
    held = await reserve(world, owned, 900, "r1")
    await world.post(f"/v1/reservations/{held['id']}/release", {})

    reply = await world.post("/v1/reservations", charge(owned, 900, "r1"))

    assert (reply.json["replayed"], reply.json["reservation"]["status"]) == (True, "released")


@pytest.mark.parametrize("path", ["/v1/charges", "/v1/reservations"])
async def test_a_key_with_allowed_ips_pays_for_a_use_from_there_and_for_no_other(
    world: World, keyspace: Keyspace, acme: Organization, path: str
) -> None:
    owned = await world.make_key(keyspace, acme, allowed_ips=("10.0.0.0/8",))

    inside = await world.post(path, charge(owned, 1, "r1", ip="10.1.2.3"))
    outside = await world.post(path, charge(owned, 1, "r2", ip="192.0.2.1"))
    untold = await world.post(path, charge(owned, 1, "r3"))
    nonsense = await world.post(path, charge(owned, 1, "r4", ip="ten"))

    assert inside.status == 201
    assert [outside.json["code"], untold.json["code"]] == ["ip_denied", "ip_denied"]
    assert nonsense.status == 400
    assert nonsense.json["errors"][0]["field"] == "ip"


async def test_a_use_is_charged_only_with_the_permission_that_it_names(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    owned = await world.make_key(keyspace, acme, scopes=c.NewScopes(permissions=("chat",)))

    allowed = await world.post("/v1/charges", charge(owned, 1, "r1", permissions=["chat"]))
    denied = await world.post("/v1/charges", charge(owned, 1, "r2", permissions=["images"]))

    assert allowed.status == 201
    assert denied.status == 403
    assert denied.json["code"] == "permission_denied"
