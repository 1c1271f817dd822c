"""One charge by its id, with what was given back of it."""

from __future__ import annotations

from typing import Any

import pytest

from domain import commands as c
from tests.api.quick.world import Owned
from tests.api.world import Management


@pytest.fixture
async def owned(api: Management) -> Owned:
    return await api.make_key(await api.make_keyspace(), await api.make_organization(credit=1_000))


async def charge(api: Management, owned: Owned, amount: int = 400) -> dict[str, Any]:
    body = {"key_id": owned.id, "request_id": "r-1", "amount_micros": amount, "metadata": {"run": 7}}
    made: dict[str, Any] = (await api.post("/v1/charges", body)).json["charge"]
    return made


async def test_a_charge_is_shown_as_it_was_answered(api: Management, owned: Owned) -> None:
    made = await charge(api, owned)

    shown = await api.get(f"/v1/charges/{made['id']}")

    assert shown.status == 200
    assert (shown.json["charge"], shown.json["refunds"]) == (made, [])
    assert shown.headers["x-keyledger-position"] == shown.json["position"]


async def test_a_charge_is_shown_with_its_refunds_oldest_first(api: Management, owned: Owned) -> None:
    made = await charge(api, owned)
    other = {"key_id": owned.id, "request_id": "r-2", "amount_micros": 1}
    foreign = (await api.post("/v1/charges", other)).json["charge"]["id"]
    refunds = [
        (
            await api.post(f"/v1/charges/{made['id']}/refund", {"request_id": f"f-{n}", "amount_micros": n})
        ).json
        for n in (100, 50)
    ]
    await api.post(f"/v1/charges/{foreign}/refund", {"request_id": "f-3"})

    shown = (await api.get(f"/v1/charges/{made['id']}")).json

    assert shown["refunds"] == [one["refund"] for one in refunds]
    assert shown["charge"] == made | {"refunded_micros": 150}


async def test_the_charge_of_a_capture_is_shown_with_its_reservation(api: Management, owned: Owned) -> None:
    ask = {"key_id": owned.id, "request_id": "r-1", "amount_micros": 500}
    held = (await api.post("/v1/reservations", ask)).json["reservation"]
    capture = {"request_id": "r-2", "amount_micros": 300}
    captured = (await api.post(f"/v1/reservations/{held['id']}/capture", capture)).json["charge"]

    shown = (await api.get(f"/v1/charges/{captured['id']}")).json["charge"]

    assert (shown["reservation_id"], shown["amount_micros"]) == (held["id"], 300)
    assert shown == captured


async def test_who_may_not_see_a_charge_is_told_that_there_is_none(api: Management, owned: Owned) -> None:
    made = await charge(api, owned)
    path = f"/v1/charges/{made['id']}"
    own, other = (api.ledger.books.keys[owned.id].organization_id, (await api.make_organization()).id)
    keyspace = (await api.make_keyspace("leadmagic")).id

    for fields, status in (
        ({"organization_id": own}, 200),
        ({"organization_id": other}, 404),
        ({"bound_keyspace_id": keyspace}, 404),
    ):
        for permission in ("usage:read", "charges:write"):
            secret = await api.make_root(permission, **fields)
            assert (await api.get(path, as_=secret)).status == status, fields
    assert (await api.get(path, as_=await api.make_root("keys:read"))).status == 403


async def test_a_charge_of_a_deleted_key_is_shown(api: Management, owned: Owned) -> None:
    made = await charge(api, owned)
    await api.do(c.DeleteKey(key_id=owned.id))

    assert (await api.get(f"/v1/charges/{made['id']}")).status == 200


@pytest.mark.parametrize(
    "unknown", ["chg_1", "chg_01JD0000000000000000000000", "chg_" + "Z" * 26, "rsv", "..."]
)
async def test_what_is_no_charge_is_not_found(api: Management, owned: Owned, unknown: str) -> None:
    await charge(api, owned)

    assert (await api.get(f"/v1/charges/{unknown}")).status == 404


async def test_the_id_of_another_event_of_that_place_is_no_charge(api: Management, owned: Owned) -> None:
    ask = {"key_id": owned.id, "request_id": "r-1", "amount_micros": 500}
    held = (await api.post("/v1/reservations", ask)).json["reservation"]["id"]

    assert (await api.get(f"/v1/charges/{held.replace('rsv_', 'chg_')}")).status == 404
