"""Why a use would be allowed or refused: every rule, in the verdict's order, with its figures."""

from __future__ import annotations

from typing import Any

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from keyledger_language import STATUS_OF_CODE, RateLimit
from keyledger_language.events import Quota
from tests.api.quick.world import Owned, World

ORDER = [code for code in STATUS_OF_CODE if code not in ("ledger_unreachable", "missing", "valid")]


async def explain(world: World, owned: Owned, **use: object) -> Any:
    reply = await world.post(
        "/v1/explain", {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id} | use
    )
    assert reply.status == 200, reply.body
    return reply.json


def rule(answer: Any, code: str) -> Any:
    return next(one for one in answer["rules"] if one["code"] == code)


async def test_rules_come_in_the_order_in_which_they_are_decided(world: World, owned: Owned) -> None:
    answer = await explain(world, owned)

    assert [one["code"] for one in answer["rules"]] == ORDER
    assert (answer["valid"], answer["code"], answer["key_id"]) == (True, "valid", owned.id)


async def test_figures_say_by_how_much(world: World, keyspace: Keyspace, acme: Organization) -> None:
    plan = await world.make_plan(price_multiplier="1.5", models=("small",))
    owned = await world.make_key(
        keyspace,
        acme,
        plan_id=plan.id,
        scopes=c.NewScopes(permissions=("chat",)),
        quotas=(Quota(unit="micros", window="day", limit=100),),
        rate_limits=(RateLimit(name="burst", limit=3, window_seconds=10),),
    )

    answer = await explain(world, owned, model="large", permissions=["chat"], cost_micros=80)

    assert answer["code"] == "model_denied"
    assert rule(answer, "permission_denied")["outcome"] == "passes"
    assert rule(answer, "permission_denied")["figures"] == {
        "scope": ["chat"],
        "asked": {"permissions": ["chat"]},
    }
    assert rule(answer, "model_denied")["figures"]["plan_models"] == ["small"]
    assert rule(answer, "rate_limited")["figures"]["rate_limits"][0]["remaining"] == 3
    quota = rule(answer, "api_key_quota_exceeded")
    assert (quota["outcome"], quota["figures"]["quotas"][0]["asked"]) == ("refuses", 120)
    assert rule(answer, "project_quota_exceeded")["outcome"] == "not_asked"
    wallet = rule(answer, "billing_shortfall")
    assert (wallet["outcome"], wallet["figures"]["available_micros"]) == ("passes", 1_000)
    assert wallet["figures"]["amount_micros"] == 120


CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"expires_at": 1}, {}),
    ({"allowed_ips": ("10.0.0.0/8",)}, {"ip": "192.0.2.1"}),
    ({"kind": "client"}, {}),
    ({"kind": "platform"}, {"tenant": {"user_id": "ada"}}),
    ({"scopes": c.NewScopes(tenants=("acme",))}, {"tenant": {"org_id": "evil"}}),
    ({"scopes": c.NewScopes(models=("small",))}, {"model": "large", "permissions": ["x"]}),
    ({}, {"project_id": "prj_x"}),
    ({"quotas": (Quota(unit="requests", window="day", limit=0),)}, {"cost_micros": 1}),
    ({"quotas": (Quota(unit="micros", window="total", limit=5),)}, {"cost_micros": 6}),
    ({}, {"cost_micros": 1_001}),
    ({}, {"cost_micros": 1_000}),
]


@pytest.mark.parametrize("fields,use", CASES)
async def test_an_explanation_is_what_verify_would_say(
    world: World, keyspace: Keyspace, acme: Organization, fields: dict[str, Any], use: dict[str, Any]
) -> None:
    if "expires_at" in fields:
        fields = {"expires_at": world.clock.now() + 1}
    owned = await world.make_key(keyspace, acme, **fields)
    world.clock.advance(1)

    explained = await explain(world, owned, **use)
    asked = {"secret": owned.secret, "keyspace_id": keyspace.id} | use
    if "cost_micros" in use:
        asked["request_id"] = "r1"
    said = await world.post("/v1/verify", asked)

    assert explained["code"] == said.code
    assert explained["status"] == STATUS_OF_CODE[said.code]


async def test_explaining_takes_nothing(world: World, keyspace: Keyspace, acme: Organization) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)
    head = world.ledger.books.head

    for _ in range(3):
        assert (await explain(world, owned, cost_micros=5))["code"] == "valid"

    assert (world.ledger.books.head, world.balance(acme)) == (head, 1_000)


async def test_a_secret_that_is_not_known_is_explained_too(world: World, keyspace: Keyspace) -> None:
    unknown = keyspace.shape.generate()
    mistyped = unknown[:-1] + ("0" if unknown[-1] != "0" else "1")

    not_found = await world.post("/v1/explain", {"secret": unknown, "keyspace_id": keyspace.id})
    malformed = await world.post("/v1/explain", {"secret": mistyped, "keyspace_id": keyspace.id})

    assert (not_found.code, malformed.code) == ("not_found", "malformed")
    assert "checksum" in rule(malformed.json, "malformed")["figures"]["reason"]
    assert rule(not_found.json, "revoked")["outcome"] == "unknown"
    assert unknown not in not_found.body.decode()
    assert mistyped not in malformed.body.decode()


async def test_a_key_is_explained_by_its_id(world: World, owned: Owned) -> None:
    await world.do(c.DisableKey(key_id=owned.id))

    reply = await world.post("/v1/explain", {"key_id": owned.id})

    assert reply.code == "disabled"
    assert rule(reply.json, "malformed")["outcome"] == "not_asked"


async def test_foreign_keys_are_not_there(world: World, owned: Owned) -> None:
    bound = await world.make_root("verify", organization_id=(await world.make_organization()).id)

    by_id = await world.post("/v1/explain", {"key_id": owned.id}, as_=bound)
    by_secret = await world.post(
        "/v1/explain", {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}, as_=bound
    )

    assert (by_id.status, by_secret.code) == (404, "not_found")


async def test_the_past_cannot_be_explained_yet(world: World, owned: Owned) -> None:
    reply = await world.post("/v1/explain", {"key_id": owned.id, "as_of": "0-1"})

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "as_of")
