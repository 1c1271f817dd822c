"""Keyspaces, organizations, projects, plans and wallets."""

import base64
from hashlib import sha256
from typing import Any

import pytest

from domain.keyspaces import PRESETS, ROOT_KEYSPACE_ID, Keyspace
from keyledger_language import AcceptedFormat
from tests.api.world import Management

# -- keyspaces


@pytest.mark.parametrize("preset", PRESETS)
async def test_every_preset_makes_a_keyspace(api: Management, preset: str) -> None:
    made = await api.post("/v1/keyspaces", {"name": preset, "preset": preset})

    assert made.status == 201
    assert made.json["preset"] == preset
    assert made.json["prefix"] == PRESETS[preset]["prefix"]
    assert made.headers["etag"] == '"1"'
    assert made.json["secret_shape"].startswith(made.json["prefix"])


async def test_what_is_given_wins_over_the_preset(api: Management) -> None:
    made = await api.post(
        "/v1/keyspaces",
        {
            "name": "gateway", "preset": "allmcp", "prefix": "acme_live_",
            "secret_format": {"alphabet": "hex", "length": 40}, "tenant_locations": {"user_id": "query:user"},
            "denial_status": {"billing_shortfall": 403}, "require_balance": True,
            "accepted_formats": [{"prefix": "old_", "min_length": 30, "max_length": 40}],
        },
    )  # fmt: skip

    assert made.json["prefix"] == "acme_live_"
    assert made.json["secret_format"] == {"alphabet": "hex", "length": 40, "checksum": None}
    assert made.json["tenant_locations"] == {"user_id": "query:user"}
    assert made.json["denial_status"] == {"billing_shortfall": 403}
    assert made.json["require_balance"] is True


async def test_overlapping_prefixes_are_refused(api: Management) -> None:
    await api.make_keyspace()
    answer = await api.post("/v1/keyspaces", {"name": "x", "prefix": "kl_live_eu_"})

    assert (answer.status, answer.code) == (409, "prefix_overlap")


async def test_a_keyspace_is_changed_but_for_its_shape(api: Management) -> None:
    path = f"/v1/keyspaces/{(await api.make_keyspace()).id}"
    changed = await api.ask("PATCH", path, {"denial_status": {"rate_limited": 503}}, if_match='"1"')
    shape = await api.patch(path, {"prefix": "new_"})

    assert (changed.status, changed.headers["etag"]) == (200, '"2"')
    assert changed.json["denial_status"] == {"rate_limited": 503}
    assert (shape.status, shape.json["errors"][0]["field"]) == (400, "prefix")
    assert (await api.get(path)).json["version"] == 2


async def test_the_built_in_keyspace_is_shown_and_stays(api: Management) -> None:
    shown = await api.get(f"/v1/keyspaces/{ROOT_KEYSPACE_ID}")
    changed = await api.patch(f"/v1/keyspaces/{ROOT_KEYSPACE_ID}", {"name": "mine"})

    assert shown.json["builtin"] is True
    assert (changed.status, changed.code) == (409, "builtin_keyspace")


async def test_an_unused_keyspace_is_archived_and_its_prefix_is_free_again(api: Management) -> None:
    old = (await api.post("/v1/keyspaces", {"name": "typo", "preset": "default"})).json
    taken = await api.post("/v1/keyspaces", {"name": "default", "preset": "default"})
    archived = await api.post(f"/v1/keyspaces/{old['id']}/archive", {"reason": "a typo"})
    new = await api.post("/v1/keyspaces", {"name": "default", "preset": "default"})
    listed = {one["id"] for one in (await api.get("/v1/keyspaces")).json["items"]}
    whole = (await api.get("/v1/keyspaces?include_archived=true")).json["items"]
    made = await api.create(keyspace_id=new.json["id"])
    into_old = {"keyspace_id": old["id"], "organization_id": made["key"]["organization_id"], "name": "x"}
    refused = await api.post("/v1/keys", into_old)
    imported = await api.post("/v1/keys/import", {**into_old, "sha256": "0f" * 32})
    verdicts = [
        await api.post("/v1/verify", {"secret": made["secret"], "keyspace_id": keyspace_id})
        for keyspace_id in (new.json["id"], old["id"])
    ]

    assert (old["status"], taken.status, taken.code) == ("active", 409, "prefix_overlap")
    assert (archived.status, archived.json["status"], archived.headers["etag"]) == (200, "archived", '"2"')
    assert "fence" not in archived.json
    assert new.status == 201
    assert new.json["id"] in listed
    assert old["id"] not in listed
    assert {one["id"]: one["status"] for one in whole}[old["id"]] == "archived"
    assert (await api.get(f"/v1/keyspaces/{old['id']}")).json["status"] == "archived"
    for answer in (refused, imported):
        assert (answer.status, answer.code) == (409, "keyspace_archived")
        assert [each["field"] for each in answer.json["errors"]] == ["keyspace_id"]
    assert verdicts[0].json["valid"] is True
    assert (verdicts[1].status, verdicts[1].code) == (404, "not_found")


async def test_a_keyspace_that_has_had_a_key_stays(api: Management) -> None:
    key = (await api.create())["key"]
    await api.delete(f"/v1/keys/{key['id']}")
    answer = await api.post(f"/v1/keyspaces/{key['keyspace_id']}/archive", b"")
    builtin = await api.post(f"/v1/keyspaces/{ROOT_KEYSPACE_ID}/archive", b"")

    assert (answer.status, answer.code) == (409, "keyspace_in_use")
    assert (builtin.status, builtin.code) == (409, "builtin_keyspace")
    assert (await api.get(f"/v1/keyspaces/{key['keyspace_id']}")).json["status"] == "active"


async def test_an_archived_keyspace_makes_no_text_a_secret(api: Management) -> None:
    made = await api.make_keyspace(prefix="acme_")
    text = made.shape.generate()
    before = await api.post("/v1/plans", {"name": text, "models": "*"})
    await api.post(f"/v1/keyspaces/{made.id}/archive", b"")
    after = await api.post("/v1/plans", {"name": text, "models": "*"})

    assert (before.status, after.status) == (400, 201)


async def test_edges_are_told_of_no_archived_keyspace(api: Management) -> None:
    gone, stays = await api.make_keyspace(prefix="gone_"), await api.make_keyspace(prefix="stays_")
    both = {"keyspace_ids": [gone.id, stays.id]}
    before = await api.post("/v1/edges/keyspaces", both)
    await api.post(f"/v1/keyspaces/{gone.id}/archive", b"")
    told = [await api.post("/v1/edges/keyspaces", body) for body in (both, {})]
    told.append(await api.post("/v1/edges/connect", {"incarnation": "0f" * 16, **both}))

    assert [one["keyspace_id"] for one in before.json["keyspaces"]] == [gone.id, stays.id]
    for answer in told:
        assert [one["keyspace_id"] for one in answer.json["keyspaces"]] == [stays.id]


# -- organizations and projects


async def test_an_organization_is_taken_in_changed_and_listed(api: Management) -> None:
    body = {
        "name": "Acme", "external_id": "crm-1", "metadata": {"tier": "gold"},
        "quotas": [{"unit": "requests", "window": "day", "limit": 10}],
    }  # fmt: skip
    made = await api.post("/v1/organizations", body)
    await api.make_organization()
    path = f"/v1/organizations/{made.json['id']}"
    listed = await api.get("/v1/organizations?external_id=crm-1&sort=name")
    changed = await api.patch(path, {"name": "Acme Inc", "external_id": None})
    lifted = await api.patch(path, {"quotas": []})
    listed_after = await api.get("/v1/organizations?external_id=crm-1&sort=name")

    assert (made.status, made.json["status"]) == (201, "active")
    assert made.json["quotas"][0]["remaining"] == 10
    assert (changed.json["name"], changed.json["external_id"]) == ("Acme Inc", None)
    assert changed.json["metadata"] == {"tier": "gold"}
    assert lifted.json["quotas"] == []
    assert [one["id"] for one in listed.json["items"]] == [made.json["id"]]
    assert listed.json["next_cursor"] is None
    assert listed_after.json["items"] == []


async def test_a_project_is_made_changed_and_archived(api: Management) -> None:
    organization = await api.make_organization()
    path = f"/v1/organizations/{organization.id}/projects"
    made = await api.post(path, {"name": "Chat"})
    one = f"{path}/{made.json['id']}"
    changed = await api.ask("PATCH", one, {"name": "Talk"}, if_match=made.headers["etag"])
    archived = await api.post(f"{one}/archive", {"reason": "over"})
    hidden = await api.get(path)
    shown = await api.get(f"{path}?include_archived=true")

    assert made.status == 201
    assert (changed.json["name"], changed.json["version"]) == ("Talk", 2)
    assert (archived.json["status"], archived.json["fence"]["held"]) == ("archived", True)
    assert hidden.json["items"] == []
    assert [each["id"] for each in shown.json["items"]] == [made.json["id"]]
    assert (await api.get(one)).json["status"] == "archived"


async def test_a_project_is_found_in_its_own_organization_only(api: Management) -> None:
    one, other = await api.make_organization(), await api.make_organization()
    project = await api.make_project(one)

    assert (await api.get(f"/v1/organizations/{one.id}/projects/{project.id}")).status == 200
    assert (await api.get(f"/v1/organizations/{other.id}/projects/{project.id}")).status == 404


# -- plans


async def test_a_plan_is_made_changed_and_given_to_a_key(api: Management) -> None:
    made = await api.post("/v1/plans", {"name": "pro", "models": ["gpt-5"], "price_multiplier": "1.25"})
    path = f"/v1/plans/{made.json['id']}"
    wider = await api.ask("PATCH", path, {"price_multiplier": "2"}, if_match='"1"')
    models = await api.patch(path, {"models": "*"})
    key = (await api.create(plan_id=made.json["id"]))["key"]

    assert (made.status, made.json["models"]) == (201, ["gpt-5"])
    assert wider.json["price_multiplier"] == "2"
    assert "fence" not in wider.json
    assert models.json["models"] == "*"
    assert key["plan_id"] == made.json["id"]
    assert (await api.get("/v1/plans")).json["items"][0]["version"] == 3


# -- wallets


async def test_a_wallet_is_shown_with_its_terms(api: Management) -> None:
    organization = await api.make_organization()
    path = f"/v1/organizations/{organization.id}/wallet"
    empty = (await api.get(path)).json
    terms = await api.patch(path, {"credit_limit_micros": None, "alert_below_micros": 5})
    kept = await api.patch(path, {"alert_below_micros": None})

    assert (empty["currency"], empty["credit_limit_micros"], empty["alert_below_micros"]) == ("USD", 0, None)
    assert empty["balance_micros"] == empty["reserved_micros"] == empty["available_micros"] == 0
    assert (terms.json["credit_limit_micros"], terms.json["alert_below_micros"]) == (None, 5)
    assert (kept.json["credit_limit_micros"], kept.json["alert_below_micros"]) == (None, None)


async def test_credits_add_up_in_the_statement(api: Management) -> None:
    organization = await api.make_organization()
    path = f"/v1/organizations/{organization.id}/wallet"
    up = await api.post(f"{path}/credits", {"amount_micros": 1_000, "reference": "inv-1"})
    down = await api.post(f"{path}/credits", {"amount_micros": -300, "reference": "fix-1", "reason": "typo"})
    newest = (await api.get(f"{path}/statement?limit=1")).json
    older = (await api.get(f"{path}/statement?limit=1&cursor={newest['next_cursor']}")).json
    oldest = (await api.get(f"{path}/statement?sort=at")).json

    assert (up.json["wallet"]["balance_micros"], down.json["wallet"]["balance_micros"]) == (1_000, 700)
    assert up.json["credit"]["position"] == up.json["position"] == up.headers["x-keyledger-position"]
    assert [line["amount_micros"] for line in oldest["items"]] == [1_000, -300]
    assert [line["balance_micros"] for line in oldest["items"]] == [1_000, 700]
    assert newest["items"][0]["reference"] == "fix-1"
    assert older["items"][0]["reference"] == "inv-1"
    assert older["next_cursor"] is None
    assert oldest["items"][0]["position"] == up.json["position"]


# -- imports


OLD_ONES = (AcceptedFormat(prefix="old_", min_length=30, max_length=30),)


def digest_of(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


async def test_what_could_only_ever_be_malformed_is_not_adopted(api: Management) -> None:
    own, organization = await api.make_keyspace(), await api.make_organization()
    mixed = await api.make_keyspace(prefix="acme_", accepted_formats=OLD_ONES)
    item = {"organization_id": organization.id, "name": "old"}
    hints = {"old_...x7Qd": own, "kl_live_...x7Qd": own, "old_...X7Qd": mixed, "sk-...x7Qd": mixed}
    items = [
        {**item, "keyspace_id": keyspace.id, "sha256": digest_of(hint), "hint": hint}
        for hint, keyspace in hints.items()
    ]
    unsaid = {**item, "keyspace_id": own.id, "sha256": digest_of("unsaid")}
    results = (await api.post("/v1/keys/import", {"items": [*items, unsaid]})).json["results"]
    alone = await api.post("/v1/keys/import", unsaid)

    assert [one["status"] for one in results] == [400, 201, 201, 400, 400]
    refused = [one["errors"] for one in results if one["key"] is None]
    for errors in (*refused, alone.json["errors"]):
        assert [one["field"] for one in errors] == ["hint"]
    assert "accepted_formats" in alone.json["detail"]
    assert "kl_live_ + 30 base62" in alone.json["detail"]


async def adopting(api: Management) -> Keyspace:
    """A keyspace that takes secrets of another shape, too."""
    return await api.make_keyspace(accepted_formats=OLD_ONES)


async def test_one_key_is_adopted_by_its_digest(api: Management) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    body = {
        "keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old",
        "sha256": digest_of("legacy-secret"), "hint": "...x7Qd",
    }  # fmt: skip
    made = await api.post("/v1/keys/import", body)
    again = await api.post("/v1/keys/import", body)

    assert made.status == 201
    assert (made.json["key"]["imported"], made.json["key"]["hint"]) == (True, "...x7Qd")
    assert "secret" not in made.json
    assert (again.status, again.code) == (409, "already_exists")


async def test_a_secret_that_is_another_organizations_is_refused_as_ones_own_is(api: Management) -> None:
    """That the hash is taken is told, since a secret is one key's; whose it is, is not."""
    keyspace = await api.make_keyspace()
    mine, other = await api.make_organization(), await api.make_organization()
    body = {"keyspace_id": keyspace.id, "organization_id": mine.id, "name": "x", "hint": "kl_live_...x7Qd"}
    first = await api.post("/v1/keys/import", body | {"sha256": "11" * 32})
    theirs = {"organization_id": other.id, "sha256": "22" * 32, "name": "theirs"}
    await api.post("/v1/keys/import", body | theirs)
    caller = await api.make_root("keys:write", organization_id=mine.id)

    refused = [
        (await api.post("/v1/keys/import", body | {"sha256": taken * 32}, as_=caller)).json
        for taken in ("11", "22")
    ]

    assert first.status == 201
    for answer in refused:
        del answer["request_id"]
    assert refused[0] == refused[1]
    assert refused[0]["code"] == "already_exists"
    assert refused[0]["errors"] == [{"field": "sha256", "message": "A key with this secret exists already."}]


@pytest.mark.parametrize("encode", ["hex", "HEX", "base64", "unpadded", "urlsafe"])
async def test_a_digest_comes_as_hex_or_base64(api: Management, encode: str) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    raw = b"\xfb\xff" + bytes(range(30))
    written = {
        "hex": raw.hex(),
        "HEX": raw.hex().upper(),
        "base64": base64.b64encode(raw).decode(),
        "unpadded": base64.b64encode(raw).decode().rstrip("="),
        "urlsafe": base64.urlsafe_b64encode(raw).decode(),
    }[encode]
    body = {
        "keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old", "sha256": written
    }  # fmt: skip
    made = await api.post("/v1/keys/import", body)

    assert made.status == 201
    assert api.ledger.books.secrets.find(raw) is not None


@pytest.mark.parametrize("given", ["x" * 43, "z" * 64, "a" * 50, "a" * 63, "=" * 44])
async def test_a_digest_that_is_none_is_refused(api: Management, given: str) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    body = {
        "keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old", "sha256": given
    }  # fmt: skip
    answer = await api.post("/v1/keys/import", body)

    if given == "x" * 43:  # 43 base64 digits are 32 bytes
        assert answer.status == 201
    else:
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, "sha256")


async def test_each_of_many_has_its_own_result(api: Management) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    base: dict[str, Any] = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old"}
    items = [
        {**base, "sha256": digest_of("a")},
        {**base, "sha256": "nonsense" * 6},
        {**base, "sha256": digest_of("b"), "colour": "red"},
        {**base, "sha256": digest_of("a")},
        {**base, "sha256": digest_of("c"), "organization_id": "org_x"},
        {**base, "sha256": digest_of("d")},
        5,
    ]
    answer = await api.post("/v1/keys/import", {"items": items})

    assert answer.status == 200
    assert [one["status"] for one in answer.json["results"]] == [201, 400, 400, 409, 404, 201, 400]
    assert answer.json["results"][2]["errors"][0]["field"] == "colour"
    assert (answer.json["imported"], answer.json["failed"]) == (2, 5)


async def test_a_replayed_import_gives_the_first_results(api: Management) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    base = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old"}
    body = {"items": [{**base, "sha256": digest_of(name)} for name in "abc"]}
    first = await api.post("/v1/keys/import", body, idempotency_key="imp")
    again = await api.post("/v1/keys/import", body, idempotency_key="imp")
    other = await api.post("/v1/keys/import", {"items": body["items"][:2]}, idempotency_key="imp")

    assert [one["key"]["id"] for one in again.json["results"]] == [
        one["key"]["id"] for one in first.json["results"]
    ]
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status, other.code) == (409, "idempotency_conflict")


async def test_a_thousand_at_once_are_taken_and_one_more_is_not(api: Management) -> None:
    keyspace, organization = await adopting(api), await api.make_organization()
    base = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "old"}
    items = [{**base, "sha256": digest_of(str(number))} for number in range(1_001)]
    most = await api.post("/v1/keys/import", {"items": items[:1_000]})
    more = await api.post("/v1/keys/import", {"items": items})

    assert most.json["imported"] == 1_000
    assert (more.status, more.json["errors"][0]["field"]) == (400, "items")
