"""What the quick routes answer is what the description says of them."""

import msgspec
import pytest

from services.api.answering.problems import TABLE, Problem
from services.api.serving.front import Front
from tests.api.quick.world import Reply, call
from tests.api.world import DESCRIPTION, EVERY_OPERATION, Management


@pytest.fixture
async def hot(api: Management) -> Front:
    return api.app


def check(path: str, method: str, reply: Reply) -> None:
    """Is the answer one that is described, with exactly the fields of its type?"""
    (one,) = [each for each in EVERY_OPERATION if (each.method, each.path) == (method, path)]
    assert str(reply.status) in DESCRIPTION.document["paths"][path][method.lower()]["responses"], reply.body
    if reply.status >= 400:
        problem = msgspec.json.decode(reply.body, type=Problem)
        assert problem.code in TABLE
        assert reply.headers["content-type"] == "application/problem+json"
    elif isinstance(one.answer, type):
        msgspec.json.decode(reply.body, type=one.answer)
        known = {field.encode_name for field in msgspec.structs.fields(one.answer)}
        assert set(reply.json) <= known


async def test_hot_answers_are_as_described(api: Management, hot: Front) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization(credit=10_000)
    owned = await api.make_key(keyspace, organization)
    root = {"authorization": f"Bearer {api.root}"}
    own = {"authorization": f"Bearer {owned.secret}"}

    async def post(path: str, body: object, described: str | None = None) -> Reply:
        reply = await call(hot, "POST", path, headers=root, body=body)
        check(described or path, "POST", reply)
        return reply

    await post("/v1/verify", {"secret": owned.secret, "keyspace_id": keyspace.id})
    await post("/v1/verify", {"secret": owned.secret, "keyspace_id": keyspace.id, "nonsense": 1})
    await post("/v1/verify/batch", {"items": [{"secret": owned.secret, "keyspace_id": keyspace.id}]})
    charge = {"key_id": owned.id, "request_id": "r-1", "amount_micros": 100}
    charged = await post("/v1/charges", charge)
    await post("/v1/charges", {**charge, "amount_micros": 99})
    await post("/v1/charges", {**charge, "request_id": "r-9", "amount_micros": 10**9})
    await post("/v1/charges", {**charge, "key_id": "key_x", "request_id": "r-8"})
    await post("/v1/charges/batch", {"items": [charge]})
    refund = "/v1/charges/{charge_id}/refund"
    await post(f"/v1/charges/{charged.json['charge']['id']}/refund", {"request_id": "f-1"}, refund)
    await post(f"/v1/charges/{charged.json['charge']['id']}/refund", {"request_id": "f-2"}, refund)
    held = {"key_id": owned.id, "request_id": "r-2", "amount_micros": 100, "expires_in_seconds": 60}
    reserved = await post("/v1/reservations", held)
    one = f"/v1/reservations/{reserved.json['reservation']['id']}"
    shown = await call(hot, "GET", one, headers=root)
    check("/v1/reservations/{reservation_id}", "GET", shown)
    captured = {"request_id": "c-1", "amount_micros": 60, "final": False}
    await post(f"{one}/capture", captured, "/v1/reservations/{reservation_id}/capture")
    await post(f"{one}/release", {}, "/v1/reservations/{reservation_id}/release")
    await post(f"{one}/release", {}, "/v1/reservations/{reservation_id}/release")
    await post("/v1/explain", {"key_id": owned.id, "cost_micros": 5})
    mine = {**own, "x-keyledger-keyspace": keyspace.id}
    check("/v1/self", "GET", await call(hot, "GET", f"/v1/self?keyspace_id={keyspace.id}", headers=mine))
    check("/v1/self", "GET", await call(hot, "GET", "/v1/self"))
    check("/v1/self/revoke", "POST", await call(hot, "POST", "/v1/self/revoke", headers=mine, body=b"{}"))
