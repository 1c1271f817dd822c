"""Verdicts over HTTP: every code that can be told from committed state, in order, and what they carry."""

from __future__ import annotations

import pytest

from domain import commands as c
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from domain.organizations import Organization
from keyledger_language import RateLimit
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from tests.api.quick.world import Owned, World, call, nothing_else


def asking(owned: Owned, **fields: object) -> dict[str, object]:
    return {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id} | fields


async def test_a_good_secret_is_valid_and_described(world: World, owned: Owned, acme: Organization) -> None:
    reply = await world.post("/v1/verify", asking(owned))

    assert reply.status == 200
    assert reply.json == {
        "valid": True,
        "code": "valid",
        "key_id": owned.id,
        "organization_id": acme.id,
        "name": "Checkout",
        "kind": "solo",
        "scopes": {"permissions": "*", "projects": "*", "models": "*", "tenants": "*"},
        "wallet_available_micros": 1_000,
        "position": f"0-{world.ledger.books.head}",
    }


async def test_every_reply_carries_a_request_id(world: World, owned: Owned) -> None:
    given = await world.post("/v1/verify", asking(owned), x_request_id="trace-1")
    made = await world.post("/v1/verify", b"{")

    assert given.headers["x-request-id"] == "trace-1"
    assert made.headers["x-request-id"] == made.json["request_id"]


@pytest.mark.parametrize("cost", [{}, {"cost_micros": 1, "request_id": "r-1"}], ids=["free", "with a cost"])
async def test_rate_limits_stand_in_headers_as_the_ietf_writes_them(
    world: World, keyspace: Keyspace, acme: Organization, cost: dict[str, object]
) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)
    world.ledger.limiter._clock = lambda: 0.0  # both within one second
    again = cost and {**cost, "request_id": "r-2"}

    first = await world.post("/v1/verify", asking(owned, **cost))
    second = await world.post("/v1/verify", asking(owned, **again))

    assert [one.code for one in (first, second)] == ["valid", "rate_limited"]
    for reply in (first, second):
        assert reply.headers["ratelimit-policy"] == '"burst";q=1;w=10'
        assert reply.headers["ratelimit"] == '"burst";r=0;t=10'


async def test_a_key_without_rate_limits_has_no_such_headers(world: World, owned: Owned) -> None:
    reply = await world.post("/v1/verify", asking(owned))

    assert not {"ratelimit", "ratelimit-policy"} & reply.headers.keys()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEarer"])
async def test_the_scheme_of_a_root_key_is_written_in_any_case(
    world: World, owned: Owned, scheme: str
) -> None:
    reply = await world.post("/v1/verify", asking(owned), authorization=f"{scheme} {world.root}")

    assert (reply.status, reply.code) == (200, "valid")


@pytest.mark.parametrize("written", ["Bearer", "Bearer{}", "Basic {}", "Bearers {}", "{}", ""])
async def test_another_scheme_or_none_is_no_root_key(world: World, owned: Owned, written: str) -> None:
    reply = await world.post("/v1/verify", asking(owned), authorization=written.format(world.root))

    assert (reply.status, reply.code) == (401, "unauthenticated")


async def test_a_secret_as_a_trace_id_is_replaced(world: World, owned: Owned) -> None:
    reply = await world.post("/v1/verify", asking(owned), x_request_id=owned.secret)

    assert owned.secret not in reply.headers["x-request-id"]


async def test_a_mistyped_secret_is_malformed_and_a_made_up_one_not_found(
    world: World, keyspace: Keyspace, owned: Owned
) -> None:
    flipped = owned.secret[:-1] + ("0" if owned.secret[-1] != "0" else "1")
    codes = [
        (await world.post("/v1/verify", {"secret": secret, "keyspace_id": keyspace.id})).code
        for secret in (flipped, owned.secret[:-1], "x" * 600, "", keyspace.shape.generate())
    ]

    assert codes == ["malformed", "malformed", "malformed", "missing", "not_found"]


async def test_a_secret_of_another_keyspace_is_not_found(world: World, owned: Owned) -> None:
    other = await world.make_keyspace(prefix="other_")
    stranger = await world.make_key(other, await world.make_organization())

    assert (await world.post("/v1/verify", asking(owned) | {"keyspace_id": other.id})).code == "malformed"
    assert (await world.post("/v1/verify", asking(stranger))).code == "valid"


async def test_a_root_keys_secret_is_never_valid(world: World) -> None:
    reply = await world.post("/v1/verify", {"secret": world.root, "keyspace_id": ROOT_KEYSPACE_ID})

    assert reply.code == "not_found"


async def test_a_root_key_of_an_organization_finds_no_foreign_secret(
    world: World, owned: Owned, keyspace: Keyspace
) -> None:
    other = await world.make_organization()
    own = await world.make_key(keyspace, other)
    bound = await world.make_root("verify", organization_id=other.id)

    assert (await world.post("/v1/verify", asking(owned), as_=bound)).code == "not_found"
    assert (await world.post("/v1/verify", asking(own), as_=bound)).code == "valid"
    assert (await world.post("/v1/verify", asking(owned, cost_micros=1, request_id="r"), as_=bound)).code == (
        "not_found"
    )


async def test_a_root_key_of_a_keyspace_needs_to_name_none(
    world: World, owned: Owned, keyspace: Keyspace
) -> None:
    bound = await world.make_root("verify", bound_keyspace_id=keyspace.id)
    other = await world.make_keyspace(prefix="other_")

    assert (await world.post("/v1/verify", {"secret": owned.secret}, as_=bound)).code == "valid"
    refused = await world.post("/v1/verify", {"secret": owned.secret, "keyspace_id": other.id}, as_=bound)
    assert (refused.status, refused.code) == (404, "not_found")
    unnamed = await world.post("/v1/verify", {"secret": owned.secret})
    assert unnamed.json["errors"][0]["field"] == "keyspace_id"


async def test_the_callers_root_key_must_work_and_hold_verify(world: World, owned: Owned) -> None:
    reader = await world.make_root("keys:read")

    nobody = await call(world.app, "POST", "/v1/verify", body=asking(owned))
    wrong = await world.post("/v1/verify", asking(owned), as_=owned.secret)
    weak = await world.post("/v1/verify", asking(owned), as_=reader)

    assert (nobody.status, nobody.code) == (401, "unauthenticated")
    assert "www-authenticate" in nobody.headers
    assert (wrong.status, wrong.code) == (401, "unauthenticated")
    assert (weak.status, weak.code) == (403, "permission_denied")


async def test_an_edges_root_key_asks_but_spends_nothing(world: World, owned: Owned) -> None:
    edge = await world.make_root("edges:connect")

    free = await world.post("/v1/verify", asking(owned), as_=edge)
    paid = await world.post("/v1/verify", asking(owned, cost_micros=1, request_id="r1"), as_=edge)

    assert free.code == "valid"
    assert (paid.status, paid.code) == (403, "permission_denied")


DENIALS = [
    (c.RevokeKey, "revoked"),
    (c.DisableKey, "disabled"),
    (c.DeleteKey, "revoked"),
]


@pytest.mark.parametrize("command,code", DENIALS)
async def test_a_key_that_was_cut_off_says_why(
    world: World, owned: Owned, command: type[c.RevokeKey], code: str
) -> None:
    await world.post("/v1/verify", asking(owned))
    await world.do(command(key_id=owned.id))

    reply = await world.post("/v1/verify", asking(owned))

    assert (reply.status, reply.json["valid"], reply.code) == (200, False, code)
    assert reply.json["key_id"] == owned.id


async def test_a_key_expires_while_nobody_looks(world: World, keyspace: Keyspace, acme: Organization) -> None:
    soon = await world.make_key(keyspace, acme, expires_at=world.clock.now() + 5 * SECOND)
    before = await world.post("/v1/verify", asking(soon))
    world.clock.advance(5 * SECOND)

    assert before.json["expires_at"] == "2024-10-04T00:00:05.000000Z"
    assert (await world.post("/v1/verify", asking(soon))).code == "expired"


async def test_a_suspended_organization_stops_its_keys(
    world: World, owned: Owned, acme: Organization
) -> None:
    await world.do(c.SuspendOrganization(organization_id=acme.id))

    assert (await world.post("/v1/verify", asking(owned))).code == "organization_suspended"


USES: list[tuple[dict[str, object], dict[str, object], str]] = [
    ({"scopes": c.NewScopes(permissions=("read",))}, {"permissions": ["write"]}, "permission_denied"),
    ({"scopes": c.NewScopes(permissions=("read",))}, {"permissions": ["read"]}, "valid"),
    ({"scopes": c.NewScopes(models=("small",))}, {"model": "large"}, "model_denied"),
    ({"scopes": c.NewScopes(models=("small",))}, {"model": "small"}, "valid"),
    ({"scopes": c.NewScopes(models=("small",))}, {}, "valid"),
    ({}, {"project_id": "prj_unknown"}, "project_denied"),
    ({"kind": "client"}, {}, "tenant_denied"),
    ({"kind": "client"}, {"tenant": {"user_id": "ada"}}, "valid"),
    ({"kind": "platform"}, {"tenant": {"user_id": "ada"}}, "tenant_denied"),
    ({"kind": "platform"}, {"tenant": {"org_id": "acme", "user_id": "ada"}}, "valid"),
    ({"allowed_ips": ("10.0.0.0/8",)}, {}, "ip_denied"),
    ({"allowed_ips": ("10.0.0.0/8",)}, {"ip": "192.0.2.1"}, "ip_denied"),
    ({"allowed_ips": ("10.0.0.0/8",)}, {"ip": "10.1.2.3"}, "valid"),
    ({"allowed_ips": ("10.0.0.0/8",)}, {"ip": "10.1.2.3", "project_id": "prj_x"}, "project_denied"),
]


@pytest.mark.parametrize("fields,use,code", USES)
async def test_scopes_say_what_a_key_may_do(  # noqa: PLR0917  # a row of the table and its fixtures
    world: World,
    keyspace: Keyspace,
    acme: Organization,
    fields: dict[str, object],
    use: dict[str, object],
    code: str,
) -> None:
    owned = await world.make_key(keyspace, acme, **fields)

    assert (await world.post("/v1/verify", asking(owned, **use))).code == code


async def test_rate_limits_count_uses_and_say_when_to_come_back(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    limits = (RateLimit(name="burst", limit=2, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)

    replies = [await world.post("/v1/verify", asking(owned)) for _ in range(3)]

    assert [reply.code for reply in replies] == ["valid", "valid", "rate_limited"]
    assert replies[0].json["rate_limits"] == [
        {"name": "burst", "limit": 2, "window_seconds": 10, "remaining": 1, "reset_seconds": 10}
    ]


async def test_one_request_id_counts_once_against_rate_limits(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)

    codes = [
        (await world.post("/v1/verify", asking(owned, request_id=name))).code for name in ("r1", "r1", "r2")
    ]
    paid = await world.post("/v1/verify", asking(owned, request_id="r1", cost_micros=1))

    assert codes == ["valid", "valid", "rate_limited"]
    assert paid.code == "valid"


async def test_a_use_refused_for_money_takes_no_rate_limit(world: World, acme: Organization) -> None:
    keyspace = await world.make_keyspace("leanmcp")
    poor = await world.make_organization()
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, poor, rate_limits=limits)

    first = await world.post("/v1/verify", asking(owned))
    await world.do(c.DepositCredits(organization_id=poor.id, amount_micros=1, reference="top-up"))
    second = await world.post("/v1/verify", asking(owned))

    assert first.code == "billing_shortfall"
    assert first.json["refusal"] == {
        "level": "wallet",
        "unit": "micros",
        "window": None,
        "limit": 0,
        "remaining": 0,
        "resets_at": None,
    }
    assert second.code == "valid"


async def test_quotas_are_told_with_the_verdict(world: World, keyspace: Keyspace, acme: Organization) -> None:
    owned = await world.make_key(keyspace, acme, quotas=(Quota(unit="micros", window="day", limit=10),))
    await world.post("/v1/verify", asking(owned, cost_micros=4, request_id="r1"))

    reply = await world.post("/v1/verify", asking(owned))

    assert reply.json["quotas"] == [
        {
            "level": "key",
            "subject_id": owned.id,
            "unit": "micros",
            "window": "day",
            "limit": 10,
            "alert_percents": [],
            "spent": 4,
            "remaining": 6,
            "resets_at": "2024-10-05T00:00:00.000000Z",
        }
    ]


async def test_verify_with_a_cost_charges_once_per_request_id(
    world: World, owned: Owned, acme: Organization
) -> None:
    first = await world.post("/v1/verify", asking(owned, cost_micros=300, request_id="r1", model="m"))
    again = await world.post("/v1/verify", asking(owned, cost_micros=300, request_id="r1", model="m"))
    other = await world.post("/v1/verify", asking(owned, cost_micros=301, request_id="r1", model="m"))
    short = await world.post("/v1/verify", asking(owned, cost_micros=701, request_id="r2"))

    assert (first.code, first.json["replayed"], first.json["wallet_available_micros"]) == (
        "valid",
        False,
        700,
    )
    assert first.json["charge"]["amount_micros"] == 300
    assert first.json["position"] == first.json["charge"]["position"]
    assert (again.json["charge"], again.json["replayed"]) == (first.json["charge"], True)
    assert (other.status, other.code) == (409, "idempotency_conflict")
    assert (short.status, short.code, short.json["refusal"]["remaining"]) == (200, "billing_shortfall", 700)
    assert world.balance(acme) == 700


async def test_verify_can_reserve(world: World, owned: Owned) -> None:
    reply = await world.post("/v1/verify", asking(owned, reserve_micros=300, request_id="r1"))

    assert reply.json["reservation"]["held_micros"] == 300
    assert reply.json["wallet_available_micros"] == 700


BAD: list[tuple[bytes | dict[str, object], str]] = [
    (b"{", "body"),
    (b"\xff", "body"),
    (b"[]", "body"),
    (b"[" * 100_000, "body"),
    ({"secret": 7}, "secret"),
    ({"secret": "x", "unknown": 1}, "unknown"),
    ({}, "secret"),
    ({"secret": "x", "cost_micros": 1.5}, "cost_micros"),
    ({"secret": "x", "cost_micros": True}, "cost_micros"),
    ({"secret": "x", "cost_micros": 2**63}, "cost_micros"),
    ({"secret": "x", "cost_micros": -1}, "cost_micros"),
    ({"secret": "x", "tenant": {"user": "ada"}}, "tenant.user"),
    ({"secret": "x", "permissions": ["a", 7]}, "permissions[1]"),
    ({"secret": "x", "ip": "999.1.1.1"}, "ip"),
    ({"secret": "x", "model": ""}, "model"),
    ({"secret": "x", "model": "a\x00b"}, "model"),
    ({"secret": "x", "request_id": "r" * 300}, "request_id"),
]


@pytest.mark.parametrize("body,field", BAD)
async def test_bad_input_is_refused_by_its_field(
    world: World, body: bytes | dict[str, object], field: str
) -> None:
    reply = await world.post("/v1/verify", body)

    assert 400 <= reply.status < 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["errors"][0]["field"] == field, reply.json


async def test_money_needs_a_request_id_and_one_kind_of_amount(world: World, owned: Owned) -> None:
    no_id = await world.post("/v1/verify", asking(owned, cost_micros=1))
    both = await world.post("/v1/verify", asking(owned, cost_micros=1, reserve_micros=1, request_id="r1"))

    assert no_id.json["errors"][0]["field"] == "request_id"
    assert both.json["errors"][0]["field"] == "reserve_micros"


async def test_a_secret_in_the_wrong_place_is_not_kept(world: World, owned: Owned) -> None:
    for field in ("request_id", "model"):
        body = asking(owned, cost_micros=1, request_id="r1") | {field: owned.secret}
        reply = await world.post("/v1/verify", body)
        assert reply.status == 400, field
        assert owned.secret not in reply.body.decode()


async def test_a_batch_answers_each_on_its_own_in_order(world: World, owned: Owned) -> None:
    items = [
        asking(owned),
        asking(owned) | {"secret": "nonsense"},
        asking(owned, cost_micros=1),
        asking(owned, cost_micros=1, request_id="r1"),
        {"secret": owned.secret},
    ]

    reply = await world.post("/v1/verify/batch", {"items": items})

    assert reply.status == 200
    assert [one["code"] for one in reply.json["results"]] == [
        "valid",
        "malformed",
        "invalid_request",
        "valid",
        "invalid_request",
    ]


async def test_a_batch_has_at_most_a_thousand_items(world: World, owned: Owned) -> None:
    reply = await world.post("/v1/verify/batch", {"items": [asking(owned)] * 1_001})

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "items")


async def test_an_absurdly_large_body_is_refused(world: World) -> None:
    reply = await call(
        world.app,
        "POST",
        "/v1/verify",
        headers={"authorization": f"Bearer {world.root}"},
        body=b"x" * 2_000_000,
        chunks=7,
    )

    assert (reply.status, reply.code) == (413, "body_too_large")


async def test_another_method_is_told_which_one_there_is(world: World) -> None:
    reply = await world.ask("GET", "/v1/verify")

    assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_what_need_not_be_quick_goes_to_the_router(world: World) -> None:
    world.app.router = nothing_else
    reply = await world.ask("GET", "/v1/keys")

    assert reply.headers["x-router"] == "yes"


async def test_uses_and_denials_are_seen(world: World, owned: Owned) -> None:
    await world.post("/v1/verify", asking(owned))
    await world.post("/v1/verify", asking(owned, project_id="prj_x", request_id="r9"))

    assert world.ledger.last_used_at(owned.id) == world.clock.now()
    taken = world.ledger._sightings.take(world.clock.now())
    assert taken is not None
    assert [(one.key_id, one.counts, one.requests[0].request_id) for one in taken.denied] == [
        (owned.id, {"project_denied": 1}, "r9")
    ]
    assert world.app.door.counts.answered("/v1/verify", "project_denied") == 1
