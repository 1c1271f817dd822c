"""Bad input gets a 4xx that names the field, never a 5xx."""

import json
import random
from typing import Any

import pytest

from keyledger_language import SecretFormat, SecretShape
from services.api.asking.call import MAX_BODY_BYTES
from services.api.operations import Operation
from services.api.serving.app import ROUTES
from tests.api.quick.world import call
from tests.api.test_callers import path_of
from tests.api.world import Management, check_described

WRITES = [route for route in ROUTES if route.method != "GET"]
READS = [route for route in ROUTES if route.method == "GET" and route.permissions]

BIG = 2**63
KEYS = [
    ({"name": 5}, "name"),
    ({"name": ""}, "name"),
    ({"name": "  "}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "a\u0000b"}, "name"),
    ({"name": "a\u0007b"}, "name"),
    ({"name": None}, "name"),
    ({"kind": "robot"}, "kind"),
    ({"quotas": {}}, "quotas"),
    ({"quotas": [{"unit": "micros", "window": "year", "limit": 1}]}, "quotas[0].window"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": -1}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": 1.5}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": "1"}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": BIG}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": 1, "spent": 0}]}, "quotas[0].spent"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": 1}] * 2}, "quotas[1]"),
    (
        {"quotas": [{"unit": "micros", "window": "day", "limit": 1, "alert_percents": [0]}]},
        "quotas[0].alert_percents[0]",
    ),
    ({"rate_limits": [{"name": "a", "limit": 0, "window_seconds": 1}]}, "rate_limits[0].limit"),
    ({"rate_limits": [{"name": "a", "limit": 1, "window_seconds": 0}]}, "rate_limits[0].window_seconds"),
    ({"rate_limits": [{"name": "a", "limit": 1, "window_seconds": 1}] * 2}, "rate_limits[1].name"),
    ({"allowed_ips": ["10.0.0.0/99"]}, "allowed_ips[0]"),
    ({"allowed_ips": ["10.0.0.1", "nonsense"]}, "allowed_ips[1]"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
    ({"expires_at": 1_700_000_000}, "expires_at"),
    ({"tags": "a"}, "tags"),
    ({"tags": [""]}, "tags[0]"),
    ({"tags": ["x" * 101]}, "tags[0]"),
    ({"tags": [str(number) for number in range(51)]}, "tags"),
    ({"metadata": []}, "metadata"),
    ({"metadata": {"n": BIG}}, "metadata.n"),
    ({"metadata": {"n": -BIG - 1}}, "metadata.n"),
    ({"metadata": {"x": "y" * 16_384}}, "metadata"),
    ({"metadata": json.loads('{"a":' * 33 + "1" + "}" * 33)}, "metadata"),
    ({"metadata": {"a\u0000": 1}}, "metadata"),
    ({"owner_id": "x" * 201}, "owner_id"),
    ({"plan_id": "nonsense"}, "plan_id"),
    ({"colour": "red"}, "colour"),
]
AT_CREATION = [
    ({"scopes": {"models": "gpt-5"}}, "scopes.models"),
    ({"scopes": {"models": [""]}}, "scopes.models"),
    ({"scopes": {"colours": []}}, "scopes.colours"),
    ({"scopes": {"projects": ["prj_x"]}}, "scopes.projects"),
    ({"bound_keyspace_id": "ks_x"}, "bound_keyspace_id"),
    ({"keyspace_id": "ks_01JD0000000000000000000000"}, "keyspace_id"),
    ({"organization_id": "org_01JD0000000000000000000000"}, "organization_id"),
    ({"organization_id": None}, "organization_id"),
]


@pytest.mark.parametrize("fields, field", [*KEYS, *AT_CREATION], ids=lambda one: str(one)[:60])
async def test_a_bad_field_of_a_new_key_is_named(api: Management, fields: dict[str, Any], field: str) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization()
    body = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "x", **fields}
    answer = await api.post("/v1/keys", body)

    assert answer.status in {400, 404}
    assert [one["field"] for one in answer.json["errors"]] == [field]
    assert answer.json["errors"][0]["message"]


@pytest.mark.parametrize("fields, field", KEYS, ids=lambda one: str(one)[:60])
async def test_a_bad_field_of_a_patch_is_named(api: Management, fields: dict[str, Any], field: str) -> None:
    key = (await api.create())["key"]
    answer = await api.patch(f"/v1/keys/{key['id']}", fields)

    assert answer.status in {400, 404}
    # `kind` is no field of a patch: it is for ever.
    assert [one["field"] for one in answer.json["errors"]] == [field]


OTHERS = [
    ("POST", "/v1/keyspaces", {"name": "x", "preset": "acme"}, "preset"),
    ("POST", "/v1/keyspaces", {"name": "x", "prefix": "no space_"}, "prefix"),
    ("POST", "/v1/keyspaces", {"name": "x", "prefix": "_x"}, "prefix"),
    (
        "POST",
        "/v1/keyspaces",
        {"name": "x", "secret_format": {"alphabet": "base58"}},
        "secret_format.alphabet",
    ),
    ("POST", "/v1/keyspaces", {"name": "x", "secret_format": {"length": 21}}, "secret_format.length"),
    ("POST", "/v1/keyspaces", {"name": "x", "secret_format": {"length": 257}}, "secret_format.length"),
    ("POST", "/v1/keyspaces", {"name": "x", "secret_format": {"length": -5}}, "secret_format.length"),
    (
        "POST",
        "/v1/keyspaces",
        {"name": "x", "accepted_formats": [{"min_length": 3}]},
        "accepted_formats[0].min_length",
    ),
    ("POST", "/v1/keyspaces", {"name": "x", "credential_locations": []}, "credential_locations"),
    ("POST", "/v1/keyspaces", {"name": "x", "credential_locations": ["cookie:x"]}, "credential_locations"),
    ("POST", "/v1/keyspaces", {"name": "x", "tenant_locations": {"shoe": "query:x"}}, "tenant_locations"),
    ("POST", "/v1/keyspaces", {"name": "x", "denial_status": {"nonsense": 403}}, "denial_status.nonsense"),
    (
        "POST",
        "/v1/keyspaces",
        {"name": "x", "denial_status": {"rate_limited": 200}},
        "denial_status.rate_limited",
    ),
    ("POST", "/v1/keyspaces", {"name": "x", "required_dimensions": ["shoe"]}, "required_dimensions[0]"),
    ("POST", "/v1/keyspaces", {"name": "x", "require_balance": 1}, "require_balance"),
    ("POST", "/v1/organizations", {}, "name"),
    ("POST", "/v1/organizations", {"name": "x", "currency": "U S"}, "currency"),
    ("POST", "/v1/organizations", {"name": "x", "metadata": {"x": "y" * 20_000}}, "metadata"),
    ("POST", "/v1/plans", {"name": "x"}, "models"),
    ("POST", "/v1/plans", {"name": "x", "models": []}, "models"),
    ("POST", "/v1/plans", {"name": "x", "models": "all"}, "models"),
    ("POST", "/v1/plans", {"name": "x", "models": "*", "price_multiplier": 1.5}, "price_multiplier"),
    ("POST", "/v1/plans", {"name": "x", "models": "*", "price_multiplier": "1.1234567"}, "price_multiplier"),
    ("POST", "/v1/plans", {"name": "x", "models": "*", "price_multiplier": "-1"}, "price_multiplier"),
    ("POST", "/v1/plans", {"name": "x", "models": "*", "price_multiplier": "1e3"}, "price_multiplier"),
    ("POST", "/v1/leaks", {"secret": "x"}, "source"),
    ("POST", "/v1/leaks", {"secret": "", "source": "x"}, "secret"),
    ("POST", "/v1/keys/import", {"items": []}, "items"),
    ("POST", "/v1/keys/import", {"name": "x"}, "keyspace_id"),
]


@pytest.mark.parametrize("method, path, body, field", OTHERS, ids=lambda one: str(one)[:60])
async def test_a_bad_field_of_another_thing_is_named(
    api: Management, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    answer = await api.ask(method, path, body)

    assert answer.status == 400
    assert [one["field"] for one in answer.json["errors"]] == [field]


@pytest.mark.parametrize(
    "body, field",
    [
        ({"amount_micros": 0, "reference": "r"}, "amount_micros"),
        ({"amount_micros": "5", "reference": "r"}, "amount_micros"),
        ({"amount_micros": 5.0, "reference": "r"}, "amount_micros"),
        ({"amount_micros": BIG, "reference": "r"}, "amount_micros"),
        ({"amount_micros": -BIG, "reference": "r"}, "amount_micros"),
        ({"amount_micros": 1}, "reference"),
        ({"amount_micros": 1, "reference": ""}, "reference"),
        ({"amount_micros": 1, "reference": "x" * 201}, "reference"),
    ],
)
async def test_a_bad_credit_is_refused(api: Management, body: dict[str, Any], field: str) -> None:
    organization = await api.make_organization()
    answer = await api.post(f"/v1/organizations/{organization.id}/wallet/credits", body)

    assert answer.status == 400
    assert [one["field"] for one in answer.json["errors"]] == [field]
    assert api.balance(organization) == 0


async def test_the_whole_range_of_money_is_taken_and_one_more_is_not(api: Management) -> None:
    organization = await api.make_organization()
    path = f"/v1/organizations/{organization.id}/wallet/credits"
    most = await api.post(path, {"amount_micros": 2**63 - 1, "reference": "all"})
    more = await api.post(path, {"amount_micros": 1, "reference": "more"})
    none = await api.post(path, {"amount_micros": -(2**63 - 1), "reference": "back"})

    assert (most.status, none.status) == (201, 201)
    assert (more.status, more.json["errors"][0]["field"]) == (400, "amount_micros")


@pytest.mark.parametrize("one", WRITES, ids=lambda one: one.name)
async def test_every_write_refuses_a_body_that_is_too_large(api: Management, one: Operation) -> None:
    answer = await api.ask(one.method, path_of(one), b" " * ((one.max_body_bytes or MAX_BODY_BYTES) + 1))
    chunked = await call(
        api.app, one.method, path_of(one), headers={"authorization": f"Bearer {api.root}"},
        body=b" " * ((one.max_body_bytes or MAX_BODY_BYTES) + 1), chunks=7,
    )  # fmt: skip

    assert (answer.status, answer.code) == (413, "body_too_large")
    assert (chunked.status, chunked.code) == (413, "body_too_large")


@pytest.mark.parametrize(
    "query, field",
    [
        ("limit=0", "limit"), ("limit=501", "limit"), ("limit=x", "limit"), ("limit=1.5", "limit"),
        ("limit=1&limit=2", "limit"), ("limit=" + "9" * 5_000, "limit"), ("sort=colour", "sort"),
        ("status=dead", "status"), ("include_revoked=maybe", "include_revoked"), ("q=", "q"),
        ("q=%00", "q"), ("q=%ff", "query"), ("cursor=%F0%9F%92%A9", "cursor"), ("cursor=e30", "cursor"),
        ("tag=" + "x" * 201, "tag"), ("&".join(f"a{n}=1" for n in range(200)), "query"),
        ("cursor=WyJjcmVhdGVkX2F0IiwxLCJrZXkiXQ", "cursor"),
    ],
    ids=lambda one: one[:30],
)  # fmt: skip
async def test_a_bad_parameter_is_named(api: Management, query: str, field: str) -> None:
    answer = await api.get(f"/v1/keys?{query}")

    assert answer.status == 400
    assert [one["field"] for one in answer.json["errors"]] == [field]


@pytest.mark.parametrize("limit", [1, 500])
async def test_the_ends_of_the_limit_are_taken(api: Management, limit: int) -> None:
    assert (await api.get(f"/v1/keys?limit={limit}")).status == 200


@pytest.mark.parametrize(
    "thing",
    [
        "x",
        "key_",
        "key_01JD",
        "%00",
        "..",
        "%2e%2e",
        "a" * 5_000,
        "%F0%9F%92%A9",
        "key_01JD0000000000000000000000",
    ],
)
async def test_an_absurd_id_is_not_found(api: Management, thing: str) -> None:
    for kind in ("keys", "organizations", "plans", "keyspaces"):
        answer = await api.get(f"/v1/{kind}/{thing}")
        assert (answer.status, answer.code) == (404, "not_found")


@pytest.mark.parametrize("position", ["x", "0-0", "1-1", "0-" + "9" * 30])
async def test_a_fence_of_nowhere_is_not_found(api: Management, position: str) -> None:
    assert (await api.get(f"/v1/fences/{position}")).status == 404


async def test_a_path_that_is_none_and_a_method_that_is_none(api: Management) -> None:
    nowhere = await api.get("/v1/nonsense")
    wrong = await api.ask("PUT", "/v1/keys")
    empty = await call(api.app, "GET", "//", headers={})

    assert (nowhere.status, nowhere.code) == (404, "not_found")
    assert (wrong.status, wrong.code) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(wrong.headers["allow"].split(", "))
    assert (empty.status, empty.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_a_problem_never_repeats_a_secret(api: Management) -> None:
    secret = (await api.create())["secret"]
    tried = [
        await api.get(f"/v1/keys/{secret}"),
        await api.get(f"/v1/keys?{secret}=1"),
        await api.get(f"/v1/keys?sort={secret}"),
        await api.post("/v1/plans", {secret: 1}),
        await api.post("/v1/plans", {"name": secret, "models": "*"}),
        await api.post("/v1/plans", {"name": "x", "models": "*", "price_multiplier": secret}),
        await api.post("/v1/keyspaces", {"name": "x", "denial_status": {secret: 403}}),
        await api.ask("GET", f"/v1/{secret}"),
    ]

    for answer in tried:
        assert 400 <= answer.status < 500
        assert secret.encode() not in answer.body


async def test_no_log_line_holds_a_secret(api: Management, capsys: pytest.CaptureFixture[str]) -> None:
    made = await api.create()
    await api.get(f"/v1/keys/{made['secret']}")
    await api.ask(
        "GET", f"/v1/keys?key={made['secret']}", x_request_id=made["secret"], user_agent=made["secret"]
    )
    said = capsys.readouterr()

    assert "/v1/keys/kl_live_[redacted]" in said.out
    assert made["secret"] not in said.out + said.err
    assert api.root not in said.out + said.err


@pytest.mark.parametrize("before", [56, 64, 70, 92, 99, 100, 101])
async def test_a_long_text_that_is_cut_off_for_an_answer_leaves_no_part_of_a_secret(
    api: Management, before: int
) -> None:
    secret = (await api.create())["secret"]
    long = "-" * before + secret
    tried = [
        await api.get(f"/v1/keys?{long}=1"),
        await api.post("/v1/plans", {long: 1}),
        await api.post("/v1/plans", {"name": "x", "models": {long: [{"x": "\0"}]}}),
        await api.get(f"/v1/requests/{'-' * 100}{long}"),
        await api.get(f"/v1/fences/{long}"),
    ]

    for answer in tried:
        assert 400 <= answer.status < 500
        assert secret.removeprefix("kl_live_")[:5].encode() not in answer.body


async def test_a_user_agent_is_kept_without_the_part_of_a_secret_that_fits(api: Management) -> None:
    key = (await api.create())["key"]
    secret = SecretShape(prefix="kl_live_", format=SecretFormat(length=30, checksum="crc32")).generate()
    for before in range(200, 260):
        changed = await api.ask(
            "PATCH", f"/v1/keys/{key['id']}", {"name": f"{before}"}, user_agent="-" * before + secret
        )
        assert changed.status == 200
    told = await api.get(f"/v1/keys/{key['id']}/history?limit=500")

    assert told.status == 200
    assert secret.removeprefix("kl_live_")[:5].encode() not in told.body


async def test_an_imported_secret_stands_nowhere_else(api: Management) -> None:
    accepted = {"prefix": "old-", "alphabet": "hex", "min_length": 32, "max_length": 32}
    made = await api.post(
        "/v1/keyspaces", {"name": "x", "preset": "default", "prefix": "x_", "accepted_formats": [accepted]}
    )
    answer = await api.post("/v1/plans", {"name": f"was old-{'0a' * 16}", "models": "*"})

    assert made.status == 201
    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "name")


JUNK: list[Any] = [
    None, True, 0, -1, 1.5, 2**64, -(2**70), "", "x", "x" * 1_000, "\u202e", "null", [], [[]], {},
    {"a": None}, [1, "x", None], {"x": {"y": {"z": []}}}, "*", ["*"], "2026-02-30T00:00:00Z",
    "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0-1", "key_01JD0000000000000000000000",
]  # fmt: skip


@pytest.mark.parametrize("one", WRITES, ids=lambda one: one.name)
async def test_junk_is_never_our_fault(api: Management, one: Operation) -> None:
    chance = random.Random(one.name)
    fields = list(one.body.__struct_fields__) or ["reason"]
    for kind in one.bodies:
        fields += kind.__struct_fields__
    for _ in range(60):
        body: Any = dict(one.example or {})
        for _ in range(chance.randint(1, 3)):
            body[chance.choice(fields)] = chance.choice(JUNK)
        answer = await api.ask(
            one.method, path_of(one) + "?fence=false" * ("fence" in one.query.__struct_fields__), body
        )
        assert answer.status < 500, json.dumps(body)


@pytest.mark.parametrize("one", READS, ids=lambda one: one.name)
async def test_junk_in_a_query_is_never_our_fault(api: Management, one: Operation) -> None:
    chance = random.Random(one.name)
    junk = ["", "x", "-1", "0", "%00", "%F0%9F%92%A9", "9" * 30, "2026-13-01", "9999-12-31T23:59:59Z",
            "0001-01-01T00:00:00Z", "2026-01-01T00:00:00%2B14:00", "true", "null", "*"]  # fmt: skip
    names = [("from" if name == "from_" else name) for name in one.query.__struct_fields__] or ["x"]
    for _ in range(40):
        query = "&".join(f"{chance.choice(names)}={chance.choice(junk)}" for _ in range(chance.randint(1, 3)))
        path = path_of(one)
        answer = await call(
            api.app, one.method, f"{path}?{query}", headers={"authorization": f"Bearer {api.root}"}
        )
        check_described(one.method, path, answer)
        assert answer.status < 500, query
