"""Keyspaces, organizations, projects and plans over the wire, by the contract."""

import re
from typing import Any

import pytest

from tests.e2e.running import UNIT, Json, Running, done, refused

KEYSPACE_FIELDS = {
    "id",
    "name",
    "preset",
    "prefix",
    "secret_format",
    "accepted_formats",
    "credential_locations",
    "tenant_locations",
    "denial_status",
    "require_balance",
    "required_dimensions",
}


# -- keyspaces


def test_a_keyspace_of_ones_own(running: Running) -> None:
    prefix = running.prefix()
    asked: Json = {
        "name": running.name("keyspace"),
        "prefix": prefix,
        "secret_format": {"alphabet": "hex", "length": 40},
        "credential_locations": ["header:X-Own", "query:token"],
        "tenant_locations": {"user_id": "header:X-User"},
        "denial_status": {"billing_shortfall": 403},
        "require_balance": True,
        "required_dimensions": ["model"],
    }
    made = running.root.post("/v1/keyspaces", asked, 201)

    assert made.keys() >= KEYSPACE_FIELDS
    for name in asked.keys() - {"secret_format"}:
        assert made[name] == asked[name], name
    key = running.key(running.organization(UNIT), made["id"])
    assert re.fullmatch(prefix + "[0-9a-f]{40}", key.secret)
    assert running.verify(key.secret, made["id"])["code"] == "model_denied"
    assert running.verify(key.secret, made["id"], model="a")["valid"]
    assert running.root.get(f"/v1/keyspaces/{made['id']}") == made
    listed = running.read("/v1/keyspaces", limit=500)["items"]
    assert made["id"] in [one["id"] for one in listed]


def test_a_keyspace_may_change_its_manners(running: Running) -> None:
    keyspace_id = running.keyspace(prefix=running.prefix())
    changed = running.root.patch(f"/v1/keyspaces/{keyspace_id}", {"denial_status": {"rate_limited": 503}})
    assert changed["denial_status"] == {"rate_limited": 503}

    path = f"/v1/keyspaces/{keyspace_id}"
    refused(running.root.ask("PATCH", path, {"prefix": "new_"}), 400, "invalid_request", "prefix")
    refused(running.root.ask("PATCH", path, {"name": "x"}, If_Match='"1"'), 412, "version_conflict")


BAD_KEYSPACES = [
    ({"preset": "unknown"}, "preset"),
    ({"secret_format": {"alphabet": "hex", "length": 8}}, "secret_format.length"),
    ({"secret_format": {"alphabet": "base7", "length": 80}}, "secret_format.alphabet"),
    ({"credential_locations": ["cookie:key"]}, "credential_locations"),
    ({"denial_status": {"nonsense": 403}}, "denial_status.nonsense"),
    ({"denial_status": {"billing_shortfall": 200}}, "denial_status.billing_shortfall"),
    ({"required_dimensions": ["colour"]}, "required_dimensions[0]"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize("fields,field", BAD_KEYSPACES)
def test_a_bad_keyspace_is_named_by_its_field(running: Running, fields: Json, field: str) -> None:
    asked = {"name": "x", "preset": "default", "prefix": running.prefix()} | fields

    refused(running.root.ask("POST", "/v1/keyspaces", asked), 400, "invalid_request", field)


def test_overlapping_prefixes_are_refused(running: Running) -> None:
    prefix = running.prefix()
    running.keyspace(prefix=prefix)

    for other in (prefix, f"{prefix}more_", prefix[:-3], "kl_root_x"):
        asked = {"name": "x", "preset": "default", "prefix": other}
        refused(running.root.ask("POST", "/v1/keyspaces", asked), 409, "prefix_overlap")


# -- organizations and projects


def test_an_organization_is_opened_shown_and_changed(running: Running) -> None:
    asked: Json = {
        "name": running.name("Customer"),
        "external_id": running.name("cus"),
        "quotas": [{"unit": "requests", "window": "week", "limit": 7}],
        "metadata": {"tier": "gold"},
    }
    made = running.root.post("/v1/organizations", asked, 201)
    assert made["id"].startswith("org_")
    assert [made[name] for name in ("name", "external_id", "metadata")] == [
        asked[name] for name in ("name", "external_id", "metadata")
    ]
    assert (made["quotas"][0]["limit"], made["status"]) == (7, "active")

    path = f"/v1/organizations/{made['id']}"
    changed = running.root.patch(path, {"name": "Renamed", "metadata": {}, "quotas": []})
    assert (changed["name"], changed["metadata"], changed["quotas"]) == ("Renamed", {}, [])
    assert running.root.get(path) == changed
    found = running.read("/v1/organizations", q="Renamed")["items"]
    assert made["id"] in [one["id"] for one in found]
    refused(running.root.ask("PATCH", path, {"nonsense": 1}), 400, "invalid_request", "nonsense")
    refused(running.root.ask("POST", "/v1/organizations", {}), 400, "invalid_request", "name")
    refused(running.root.ask("GET", f"/v1/organizations/org_{'0' * 26}"), 404, "not_found")


def test_projects_are_opened_changed_and_archived(running: Running) -> None:
    organization_id = running.organization(UNIT)
    path = f"/v1/organizations/{organization_id}/projects"
    quotas = [{"unit": "micros", "window": "day", "limit": 5}]
    made = running.root.post(path, {"name": "Search", "quotas": quotas}, 201)
    assert (made["id"][:4], made["name"], made["quotas"][0]["limit"]) == ("prj_", "Search", 5)
    changed = running.root.patch(f"{path}/{made['id']}", {"name": "Find"})
    assert changed["name"] == "Find"
    assert [one["id"] for one in running.read(path)["items"]] == [made["id"]]
    key = running.key(organization_id, scopes={"projects": [made["id"]]})
    assert running.verify(key.secret, project_id=made["id"])["valid"]

    archived = running.root.post(f"{path}/{made['id']}/archive", {"reason": "done"})
    assert (archived["status"], archived["fence"]["held"]) == ("archived", True)
    assert running.verify(key.secret, project_id=made["id"])["code"] == "project_denied"
    refused(running.root.ask("POST", f"{path}/prj_{'0' * 26}/archive", {}), 404, "not_found")


def test_a_key_is_scoped_to_projects_that_are_there(running: Running) -> None:
    organization_id, foreign = running.organization(), running.project(running.organization())
    asked = {"keyspace_id": running.main, "organization_id": organization_id, "name": "x"}

    for project_id in (foreign, f"prj_{'0' * 26}"):
        answer = running.root.ask("POST", "/v1/keys", asked | {"scopes": {"projects": [project_id]}})
        assert answer.status in {400, 404, 422}
        assert answer.body["errors"][0]["field"].startswith("scopes.projects")


# -- plans


def test_a_plan_is_defined_and_changed_for_uses_to_come(running: Running) -> None:
    asked: Json = {"name": running.name("plan"), "models": ["a", "b"], "price_multiplier": "1.25"}
    made = running.root.post("/v1/plans", asked, 201)
    assert {name: made[name] for name in asked} == asked
    key = running.key(running.organization(UNIT), plan_id=made["id"])

    path = f"/v1/plans/{made['id']}"
    changed = running.root.patch(path, {"models": ["a"], "price_multiplier": "2"})
    assert (changed["models"], changed["price_multiplier"]) == (["a"], "2")
    assert changed["fence"]["held"]
    assert running.root.get(path)["version"] == changed["version"]
    assert running.verify(key.secret, model="b")["code"] == "model_denied"
    charge = {"key_id": key.id, "request_id": running.name("use"), "amount_micros": 5, "model": "a"}
    assert running.root.post("/v1/charges", charge, 201)["charge"]["amount_micros"] == 10
    assert made["id"] in [one["id"] for one in running.read("/v1/plans", limit=500)["items"]]


BAD_PLANS: list[tuple[Json, str]] = [
    ({"models": "gpt"}, "models"),
    ({"models": None}, "models"),
    ({"name": ""}, "name"),
    ({"nonsense": 1}, "nonsense"),
]


@pytest.mark.parametrize("fields,field", BAD_PLANS)
def test_a_bad_plan_is_named_by_its_field(running: Running, fields: Json, field: str) -> None:
    asked: dict[str, Any] = {"name": "x", "models": "*", "price_multiplier": "1"}

    refused(running.root.ask("POST", "/v1/plans", asked | fields), 400, "invalid_request", field)


# -- every write, once


@pytest.mark.parametrize(
    "path,body",
    [
        ("/v1/keyspaces", {"name": "x", "preset": "default"}),
        ("/v1/organizations", {"name": "x"}),
        ("/v1/plans", {"name": "x", "models": "*", "price_multiplier": "1"}),
    ],
)
def test_every_creation_is_replayed_under_its_idempotency_key(
    running: Running, path: str, body: Json
) -> None:
    asked = body | ({"prefix": running.prefix()} if "preset" in body else {}) | {"name": running.name()}
    key = running.name("idempotency")
    first = running.root.ask("POST", path, asked, Idempotency_Key=key)
    again = running.root.ask("POST", path, asked, Idempotency_Key=key)

    assert done(first, 201) == done(again, 201)
    assert again.headers["Idempotent-Replayed"] == "true"
    other = running.root.ask("POST", path, asked | {"name": "other"}, Idempotency_Key=key)
    refused(other, 409, "idempotency_conflict")
