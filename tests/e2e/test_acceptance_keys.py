"""Keys over the wire, by the contract: made, adopted, read, changed, rotated, stopped."""

import time
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256

import pytest

from tests.e2e.ledgers import until
from tests.e2e.running import UNIT, Answer, Gateway, Json, Made, Running, done, refused

KEY_FIELDS = {
    "id",
    "keyspace_id",
    "organization_id",
    "name",
    "hint",
    "generation",
    "kind",
    "owner_id",
    "environment",
    "plan_id",
    "status",
    "scopes",
    "quotas",
    "rate_limits",
    "allowed_ips",
    "expires_at",
    "created_at",
    "created_by",
    "last_used_at",
    "rotated_at",
    "revoked_at",
    "tags",
    "metadata",
    "version",
    "position",
}
FENCE_FIELDS = {"position", "held", "edges", "acknowledged", "expired", "waited_ms"}
EVERYTHING = {"permissions": "*", "projects": "*", "models": "*", "tenants": "*"}


@pytest.fixture(scope="module")
def acme(running: Running) -> str:
    return running.organization(UNIT)


def path(made: Made, what: str = "") -> str:
    return f"/v1/keys/{made.id}{what}"


# -- made


def test_a_new_key_has_every_field_of_the_contract(running: Running, acme: str) -> None:
    project_id, plan_id = running.project(acme), running.plan(["gpt-5", "opus"])
    asked: Json = {
        "owner_id": "user-1",
        "environment": "production",
        "kind": "client",
        "plan_id": plan_id,
        "scopes": {"permissions": ["chat"], "projects": [project_id], "models": ["gpt-5"], "tenants": ["u1"]},
        "quotas": [{"unit": "micros", "window": "month", "limit": 5, "alert_percents": [80]}],
        "rate_limits": [{"name": "burst", "limit": 5, "window_seconds": 1, "provider": "openai"}],
        "allowed_ips": ["203.0.113.0/24", "2001:db8::/32"],
        "expires_at": "2099-01-01T00:00:00Z",
        "tags": ["a"],
        "metadata": {"team": {"name": "x"}},
    }
    key = running.key(acme, **asked).key

    assert key.keys() >= KEY_FIELDS
    for name in ("owner_id", "environment", "kind", "plan_id", "scopes", "allowed_ips", "tags", "metadata"):
        assert key[name] == asked[name], name
    quota = key["quotas"][0]
    assert (quota["spent"], quota["remaining"], quota["alert_percents"]) == (0, 5, [80])
    assert quota["resets_at"].endswith("-01T00:00:00.000000Z")
    assert key["rate_limits"] == asked["rate_limits"]
    assert key["expires_at"].startswith("2099-01-01T00:00:00")
    assert (key["status"], key["generation"], key["version"]) == ("active", 1, 1)
    assert [key[name] for name in ("last_used_at", "rotated_at", "revoked_at")] == [None] * 3
    assert key["created_by"].startswith("key_")


def test_an_answer_shows_the_secret_once_and_nothing_else_does(running: Running, acme: str) -> None:
    made = running.key(acme)
    reads = [path(made), path(made, "/history"), f"/v1/keys?organization_id={acme}", "/v1/audit"]

    for read in reads:
        answer = running.root.ask("GET", read)
        assert answer.status == 200
        assert made.secret.encode() not in answer.raw
        assert sha256(made.secret.encode()).hexdigest().encode() not in answer.raw


def test_scopes_left_out_are_everything_and_empty_models_too(running: Running, acme: str) -> None:
    assert running.key(acme).key["scopes"] == EVERYTHING
    assert running.key(acme, scopes={"models": []}).key["scopes"] == EVERYTHING
    for dimension in ("permissions", "projects", "tenants"):
        asked = {
            "keyspace_id": running.main,
            "organization_id": acme,
            "name": "x",
            "scopes": {dimension: []},
        }
        refused(running.root.ask("POST", "/v1/keys", asked), 422, "empty_scope", f"scopes.{dimension}")


BAD_KEYS = [
    ({"name": None}, "name"),
    ({"name": ""}, "name"),
    ({"name": 7}, "name"),
    ({"kind": "robot"}, "kind"),
    ({"nonsense": 1}, "nonsense"),
    ({"scopes": {"models": "gpt-5"}}, "scopes.models"),
    ({"scopes": {"colours": ["red"]}}, "scopes.colours"),
    ({"quotas": [{"unit": "micros", "window": "year", "limit": 1}]}, "quotas[0].window"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": -1}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": 1.5}]}, "quotas[0].limit"),
    ({"quotas": [{"unit": "micros", "window": "day", "limit": 2**63}]}, "quotas[0].limit"),
    ({"rate_limits": [{"name": "x", "limit": 0, "window_seconds": 1}]}, "rate_limits[0].limit"),
    ({"allowed_ips": ["nowhere"]}, "allowed_ips[0]"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
    ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
    ({"metadata": "text"}, "metadata"),
    ({"tags": "text"}, "tags"),
]


@pytest.mark.parametrize("fields,field", BAD_KEYS, ids=[str(bad)[:60] for bad, _ in BAD_KEYS])
def test_what_cannot_be_taken_is_named_by_its_field(
    running: Running, acme: str, fields: Json, field: str
) -> None:
    asked = {"keyspace_id": running.main, "organization_id": acme, "name": "x"} | fields

    refused(running.root.ask("POST", "/v1/keys", asked), 400, "invalid_request", field)


def test_what_a_key_refers_to_must_be_there(running: Running, acme: str) -> None:
    asked = {"keyspace_id": running.main, "organization_id": acme, "name": "x"}
    nowhere = "0" * 25 + "1"

    for name, id_ in (("keyspace_id", "ks"), ("organization_id", "org"), ("plan_id", "plan")):
        answer = running.root.ask("POST", "/v1/keys", asked | {name: f"{id_}_{nowhere}"})
        refused(answer, 404, "not_found", name)


def test_a_secret_in_a_name_is_refused_and_not_told_on(running: Running, acme: str) -> None:
    made = running.key(acme)
    answer = running.root.ask("PATCH", path(made), {"name": f"key {made.secret}"})

    refused(answer, 400, "invalid_request", "name")
    assert made.secret.encode() not in answer.raw


# -- once per Idempotency-Key


def test_a_replayed_creation_gives_the_first_answer_without_the_secret(running: Running, acme: str) -> None:
    asked = {"keyspace_id": running.main, "organization_id": acme, "name": "once"}
    key = running.name("idempotency")
    first = running.root.ask("POST", "/v1/keys", asked, Idempotency_Key=key)
    again = running.root.ask("POST", "/v1/keys", asked, Idempotency_Key=key)

    assert (first.status, again.status) == (201, 201)
    assert first.headers["Idempotent-Replayed"] is None
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.body["key"] == first.body["key"]
    assert again.body["secret"] is None
    assert "shown" in again.body["detail"]


def test_another_body_under_the_same_idempotency_key_is_a_conflict(running: Running, acme: str) -> None:
    asked = {"keyspace_id": running.main, "organization_id": acme, "name": "once"}
    key = running.name("idempotency")
    done(running.root.ask("POST", "/v1/keys", asked, Idempotency_Key=key), 201)

    other = running.root.ask("POST", "/v1/keys", asked | {"name": "twice"}, Idempotency_Key=key)
    refused(other, 409, "idempotency_conflict")


def test_an_idempotency_key_is_the_root_keys_own(running: Running, acme: str) -> None:
    asked = {"keyspace_id": running.main, "organization_id": acme, "name": "once"}
    key, somebody = running.name("idempotency"), running.root_caller("keys:write", "keys:read")
    mine = running.root.ask("POST", "/v1/keys", asked, Idempotency_Key=key).body
    theirs = somebody.ask("POST", "/v1/keys", asked, Idempotency_Key=key).body

    assert mine["key"]["id"] != theirs["key"]["id"]


def test_a_replayed_rotation_rotates_once(running: Running, acme: str) -> None:
    made, key = running.key(acme), running.name("idempotency")
    first = running.root.ask("POST", path(made, "/rotate"), {}, Idempotency_Key=key)
    again = running.root.ask("POST", path(made, "/rotate"), {}, Idempotency_Key=key)

    assert (first.status, again.status) == (201, 201)
    assert (first.body["key"]["generation"], again.body["key"]["generation"]) == (2, 2)
    assert again.body["secret"] is None
    assert running.verify(first.body["secret"])["valid"]


# -- adopted


def old_secret(running: Running) -> str:
    """A secret as another system would have made it."""
    return running.key(running.organization()).secret.replace("kl_main_", "old_")


@pytest.fixture(scope="module")
def adopting(running: Running) -> str:
    """A keyspace that takes the secrets of another system."""
    accepted = [{"prefix": "old_", "alphabet": "base62", "min_length": 22, "max_length": 64}]
    return running.keyspace(prefix=running.prefix(), accepted_formats=accepted)


def adopted(running: Running, keyspace_id: str, organization_id: str, digest: str, **more: str) -> Json:
    return {
        "keyspace_id": keyspace_id,
        "organization_id": organization_id,
        "name": running.name("old"),
        "sha256": digest,
    } | more


def test_a_key_from_elsewhere_goes_on_working(running: Running, acme: str, adopting: str) -> None:
    secret = old_secret(running)
    digest = sha256(secret.encode()).hexdigest()
    answer = running.root.ask("POST", "/v1/keys/import", adopted(running, adopting, acme, digest))

    assert answer.status == 201
    assert "secret" not in answer.body
    verdict = running.verify(secret, adopting)
    assert (verdict["code"], verdict["key_id"]) == ("valid", answer.body["key"]["id"])


def test_many_are_adopted_each_with_its_own_result(running: Running, acme: str, adopting: str) -> None:
    secrets = [old_secret(running) for _ in range(3)]
    digests = [sha256(one.encode()) for one in secrets]
    items = [
        adopted(running, adopting, acme, digests[0].hexdigest().upper()),
        adopted(running, adopting, acme, b64encode(digests[1].digest()).decode()),
        adopted(running, adopting, acme, urlsafe_b64encode(digests[2].digest()).decode().rstrip("=")),
        adopted(running, adopting, acme, digests[0].hexdigest()),
        adopted(running, adopting, acme, "x" * 64),
        adopted(running, adopting, acme, digests[0].hexdigest(), nonsense="1"),
    ]
    results = running.root.post("/v1/keys/import", {"items": items})["results"]

    assert [one["status"] for one in results] == [201, 201, 201, 409, 400, 400]
    assert [one["code"] for one in results[3:]] == ["already_exists", "invalid_request", "invalid_request"]
    assert [one["errors"][0]["field"] for one in results[4:]] == ["sha256", "nonsense"]
    for secret, result in zip(secrets, results, strict=False):
        assert running.verify(secret, adopting)["key_id"] == result["key"]["id"]


# -- read


def test_a_key_is_shown_with_its_version_as_etag(running: Running, acme: str) -> None:
    made = running.key(acme)
    answer = running.root.ask("GET", path(made))

    assert answer.body == made.key
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["X-Keyledger-Position"]
    assert answer.headers["X-Request-Id"]


def test_unknown_keys_are_not_there(running: Running) -> None:
    for id_ in ("key_" + "0" * 26, "nonsense", "org_" + "0" * 26):
        refused(running.root.ask("GET", f"/v1/keys/{id_}"), 404, "not_found")


def test_a_write_is_in_every_list_when_it_is_answered(running: Running) -> None:
    organization_id = running.organization()
    for _ in range(5):
        made = running.key(organization_id)
        listed = running.root.get("/v1/keys", organization_id=organization_id)["items"]
        assert made.id in [one["id"] for one in listed]


def test_last_used_is_told(running: Running, acme: str) -> None:
    made = running.key(acme)
    running.verify(made.secret)

    assert until(lambda: running.root.get(path(made))["last_used_at"])


def names(page: Json) -> list[str]:
    return [one["name"] for one in page["items"]]


def test_keys_are_found_by_everything_the_contract_names(running: Running) -> None:
    organization_id = running.organization()
    project_id = running.project(organization_id)
    other = running.keyspace(prefix=running.prefix())
    running.key(organization_id, name="Anna", owner_id="o1", environment="test", tags=["red", "x"])
    running.key(organization_id, name="Berta", scopes={"projects": [project_id]})
    running.key(organization_id, other, name="Carla")
    dead = running.key(organization_id, name="Dora")
    running.root.post(path(dead, "/revoke"))

    def found(**query: str) -> list[str]:
        return names(running.read("/v1/keys", organization_id=organization_id, sort="name", **query))

    assert found() == ["Anna", "Berta", "Carla"]
    assert found(keyspace_id=other) == ["Carla"]
    assert "Berta" in found(project_id=project_id)
    assert found(owner_id="o1") == found(environment="test") == found(tag="red") == ["Anna"]
    assert found(q="ert") == ["Berta"]
    assert found(include_revoked="true") == ["Anna", "Berta", "Carla", "Dora"]
    assert found(status="revoked") == ["Dora"]
    assert found(status="active") == ["Anna", "Berta", "Carla"]


def test_lists_are_paged_by_an_opaque_cursor(running: Running) -> None:
    organization_id = running.organization()
    for number in range(5):
        running.key(organization_id, name=f"Key {number}")
    seen: list[str] = []
    query: Json = {"organization_id": organization_id, "sort": "name", "limit": 2}
    while True:
        page = running.read("/v1/keys", **query)
        assert len(page["items"]) <= 2
        seen += names(page)
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]

    assert seen == [f"Key {number}" for number in range(5)]


BAD_QUERIES = [
    ("limit=0", "limit"),
    ("limit=501", "limit"),
    ("limit=many", "limit"),
    ("cursor=nonsense", "cursor"),
    ("sort=colour", "sort"),
    ("status=asleep", "status"),
    ("nonsense=1", "nonsense"),
    ("limit=1&limit=2", "limit"),
]


@pytest.mark.parametrize("query,field", BAD_QUERIES)
def test_a_bad_query_is_named_by_its_parameter(running: Running, query: str, field: str) -> None:
    refused(running.root.ask("GET", f"/v1/keys?{query}"), 400, "invalid_request", field)


# -- changed


def test_a_patch_changes_what_it_names(running: Running, acme: str) -> None:
    made, plan_id = running.key(acme, tags=["old"]), running.plan()
    changes = {
        "name": "Renamed",
        "owner_id": "user-2",
        "metadata": {"a": 1},
        "environment": "staging",
        "plan_id": plan_id,
        "expires_at": "2098-01-01T00:00:00.000000Z",
    }
    changed = running.root.patch(path(made), changes)

    assert {name: changed[name] for name in changes} == changes
    assert changed["tags"] == ["old"]
    assert changed["version"] > made.key["version"]
    running.root.patch(path(made), {"owner_id": None, "expires_at": None, "plan_id": None})
    shown = running.root.get(path(made))
    assert [shown[name] for name in ("owner_id", "expires_at", "plan_id")] == [None] * 3


def test_a_patch_refuses_what_it_does_not_know(running: Running, acme: str) -> None:
    made = running.key(acme)

    for field in ("status", "kind", "organization_id", "scopes", "nonsense"):
        refused(running.root.ask("PATCH", path(made), {field: "x"}), 400, "invalid_request", field)


def test_a_change_may_be_bound_to_the_version_that_was_read(running: Running, acme: str) -> None:
    made = running.key(acme)
    changed = running.root.ask("PATCH", path(made), {"name": "A"}, If_Match='"1"')
    assert (changed.status, changed.headers["ETag"]) == (200, '"2"')

    stale = running.root.ask("PATCH", path(made), {"name": "B"}, If_Match='"1"')
    refused(stale, 412, "version_conflict")
    assert running.root.get(path(made))["name"] == "A"
    for what in ("/rotate", "/disable", "/enable", "/revoke"):
        refused(running.root.ask("POST", path(made, what), {}, If_Match='"1"'), 412, "version_conflict")
    refused(running.root.ask("DELETE", path(made), None, If_Match='"1"'), 412, "version_conflict")


def test_charges_do_not_count_as_versions(running: Running, acme: str) -> None:
    made = running.key(acme)
    charge = {"key_id": made.id, "request_id": running.name("use"), "amount_micros": 1}
    running.root.post("/v1/charges", charge, 201)

    assert running.root.get(path(made))["version"] == 1


def test_a_scope_edit_keeps_the_secret_and_what_it_leaves_out(running: Running, acme: str) -> None:
    made = running.key(acme, scopes={"models": ["a"], "permissions": ["chat"]})
    wider = running.root.patch(path(made, "/scopes"), {"models": ["a", "b"]})

    assert wider["scopes"] == EVERYTHING | {"models": ["a", "b"], "permissions": ["chat"]}
    assert running.verify(made.secret, model="b", permissions=["chat"])["valid"]
    assert running.verify(made.secret, model="c")["code"] == "model_denied"
    assert running.root.patch(path(made, "/scopes"), {"models": "*"})["scopes"]["models"] == "*"


def test_a_narrowing_scope_edit_answers_with_its_fence(running: Running, acme: str) -> None:
    made = running.key(acme)
    narrowed = running.root.patch(path(made, "/scopes"), {"models": ["a"]})

    assert narrowed["fence"].keys() >= FENCE_FIELDS
    assert narrowed["fence"]["held"]


@pytest.mark.parametrize("dimension", ["permissions", "projects", "models", "tenants"])
def test_an_edit_takes_no_empty_scope(running: Running, acme: str, dimension: str) -> None:
    answer = running.root.ask("PATCH", path(running.key(acme), "/scopes"), {dimension: []})

    told = refused(answer, 422, "empty_scope", f"scopes.{dimension}")
    assert '"*"' in told["errors"][0]["message"]


# -- rotated


def rotated(running: Running, made: Made, **asked: object) -> Answer:
    answer = running.root.ask("POST", path(made, "/rotate"), asked)
    running.secrets.add(answer.body.get("secret", "-"))
    return answer


def test_a_rotation_without_overlap_ends_the_old_secret_at_once(running: Running, acme: str) -> None:
    made = running.key(acme)
    answer = rotated(running, made, reason="spring")

    assert answer.status == 201
    assert (answer.body["key"]["id"], answer.body["key"]["generation"]) == (made.id, 2)
    assert answer.body["key"]["rotated_at"] is not None
    assert answer.body["fence"]["held"]
    assert running.verify(made.secret)["code"] == "rotated"
    assert running.verify(answer.body["secret"])["valid"]


def test_with_an_overlap_both_work_until_it_ends(running: Running, acme: str) -> None:
    made = running.key(acme)
    asked = time.monotonic()
    answer = rotated(running, made, overlap_seconds=1)
    valid = running.verify(made.secret)["valid"]
    assert valid or time.monotonic() - asked >= 1
    assert running.verify(answer.body["secret"])["valid"]

    until(lambda: running.verify(made.secret)["code"] == "rotated")
    assert running.verify(answer.body["secret"])["valid"]


def test_at_most_two_secrets_live(running: Running, acme: str) -> None:
    made = running.key(acme)
    second = rotated(running, made, overlap_seconds=3600).body["secret"]
    third = rotated(running, made, overlap_seconds=3600).body["secret"]

    assert [running.verify(one)["code"] for one in (made.secret, second, third)] == [
        "rotated",
        "valid",
        "valid",
    ]
    last = rotated(running, made, overlap_seconds=0).body["secret"]
    assert [running.verify(one)["code"] for one in (second, third, last)] == ["rotated", "rotated", "valid"]


def test_a_rotation_doubles_no_money(running: Running, acme: str) -> None:
    made = running.key(acme, quotas=[{"unit": "micros", "window": "total", "limit": 10}])
    second = rotated(running, made, overlap_seconds=3600).body["secret"]
    use: Json = {"request_id": running.name("use"), "cost_micros": 6}

    assert running.verify(made.secret, **use)["valid"]
    other = running.verify(second, request_id=running.name("use"), cost_micros=6)
    assert other["code"] == "api_key_quota_exceeded"
    assert running.verify(second, **use)["replayed"]


# -- stopped


def test_a_disabled_key_works_again_when_enabled(running: Running, acme: str) -> None:
    made = running.key(acme)
    disabled = running.root.post(path(made, "/disable"), {"reason": "holidays"})
    assert (disabled["status"], disabled["fence"]["held"]) == ("disabled", True)
    assert running.verify(made.secret)["code"] == "disabled"

    enabled = running.root.post(path(made, "/enable"))
    assert enabled["status"] == "active"
    assert running.verify(made.secret)["valid"]


def test_a_revoked_key_is_dead_for_good(running: Running, acme: str) -> None:
    made = running.key(acme)
    revoked = running.root.post(path(made, "/revoke"), {"reason": "leaked"})

    assert revoked["fence"].keys() >= FENCE_FIELDS
    assert (revoked["status"], revoked["fence"]["held"]) == ("revoked", True)
    assert revoked["revoked_at"] is not None
    assert running.verify(made.secret)["code"] == "revoked"
    for what in ("/enable", "/disable", "/rotate"):
        refused(running.root.ask("POST", path(made, what), {}), 409, "key_revoked")
    again = running.root.post(path(made, "/revoke"))
    assert again["revoked_at"] == revoked["revoked_at"]


def test_who_does_not_wait_for_the_fence_gets_202_and_may_ask_later(running: Running, acme: str) -> None:
    made = running.key(acme)
    answer = running.root.ask("POST", path(made, "/revoke?fence=false"), {})

    assert answer.status == 202
    assert running.verify(made.secret)["code"] == "revoked"
    fence = until(lambda: held(running, answer.body["fence"]["position"]))
    assert fence.keys() >= FENCE_FIELDS


def held(running: Running, position: str) -> Json | None:
    fence = running.root.get(f"/v1/fences/{position}")
    return fence if fence["held"] else None


@pytest.mark.parametrize("what", ["disable", "rotate", "revoke"])
def test_every_taking_away_may_go_without_its_fence(running: Running, acme: str, what: str) -> None:
    answer = running.root.ask("POST", path(running.key(acme), f"/{what}?fence=false"), {})
    assert (answer.status, "fence" in answer.body) == (202, True)

    deleted = running.root.ask("DELETE", path(running.key(acme), "?fence=false"))
    assert deleted.status == 202
    narrowed = running.root.ask("PATCH", path(running.key(acme), "/scopes?fence=false"), {"models": ["a"]})
    assert narrowed.status == 202
    refused(
        running.root.ask("POST", path(running.key(acme), "/revoke?fence=maybe"), {}), 400, "invalid_request"
    )


def test_many_are_revoked_by_list_or_by_filter(running: Running) -> None:
    organization_id = running.organization()
    listed = [running.key(organization_id) for _ in range(2)]
    tagged = [running.key(organization_id, tags=["old"]) for _ in range(2)]
    kept = running.key(organization_id)

    by_list = running.root.post("/v1/keys/revoke", {"key_ids": [one.id for one in listed], "reason": "x"})
    chosen = {"organization_id": organization_id, "tag": "old"}
    by_filter = running.root.post("/v1/keys/revoke", {"filter": chosen})

    assert by_list["fence"]["held"]
    assert by_filter["fence"]["held"]
    assert {one["key_id"] for one in by_list["results"]} == {one.id for one in listed}
    assert {one["key_id"] for one in by_filter["results"]} == {one.id for one in tagged}
    assert {running.verify(one.secret)["code"] for one in listed + tagged} == {"revoked"}
    assert running.verify(kept.secret)["valid"]


def test_a_deleted_key_is_hidden_and_its_records_stay(running: Running, acme: str) -> None:
    made, request_id = running.key(acme), running.name("use")
    running.root.post("/v1/charges", {"key_id": made.id, "request_id": request_id, "amount_micros": 5}, 201)
    deleted = done(running.root.ask("DELETE", path(made)))
    assert deleted["fence"]["held"]

    refused(running.root.ask("GET", path(made)), 404, "not_found")
    assert running.root.get(path(made), include_deleted="true")["status"] == "revoked"
    assert running.verify(made.secret)["code"] == "revoked"
    assert made.id not in str(running.read("/v1/keys", organization_id=acme, limit=500))
    shown = running.read(
        "/v1/keys", organization_id=acme, include_deleted="true", include_revoked="true", limit=500
    )
    assert made.id in [one["id"] for one in shown["items"]]
    actions = [one["action"] for one in running.read(path(made, "/history"))["items"]]
    assert (actions[0], "KeyDeleted" in actions) == ("KeyCreated", True)
    assert running.read(path(made, "/usage"))["items"][0]["spent_micros"] == 5
    assert running.request(request_id)[0]["key_id"] == made.id


def test_a_key_expires_while_nobody_looks(running: Running, acme: str) -> None:
    ends = int(time.time()) + 3
    made = running.key(acme, expires_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends)))
    valid = running.verify(made.secret)["valid"]
    assert valid or time.time() >= ends

    until(lambda: running.verify(made.secret)["code"] == "expired")
    assert running.root.get(path(made))["status"] == "expired"
    assert until(lambda: "KeyExpired" in actions_of(running, made))


def actions_of(running: Running, made: Made) -> list[str]:
    return [one["action"] for one in running.read(path(made, "/history"))["items"]]


def test_history_tells_before_and_after_with_actor_and_position(running: Running, acme: str) -> None:
    made = running.key(acme, name="Before", scopes={"models": ["a"]})
    running.root.patch(path(made), {"name": "After"})
    running.root.patch(path(made, "/scopes"), {"models": ["b"]})
    rotated(running, made, reason="spring")
    running.root.post(path(made, "/revoke"), {"reason": "the end"})
    lines = {one["action"]: one for one in running.read(path(made, "/history"))["items"]}

    assert [one for one in lines if one != "RevocationFenced"] == [
        "KeyCreated",
        "KeyRenamed",
        "ScopesEdited",
        "KeyRotated",
        "KeyRevoked",
    ]
    assert (lines["KeyRenamed"]["before"]["name"], lines["KeyRenamed"]["after"]["name"]) == (
        "Before",
        "After",
    )
    scopes = lines["ScopesEdited"]
    assert (scopes["before"]["scopes"]["models"], scopes["after"]["scopes"]["models"]) == (["a"], ["b"])
    assert lines["KeyRevoked"]["reason"] == "the end"
    assert all(one["actor"].startswith("key_") and one["position"] for one in lines.values())


# -- kinds, addresses


def test_client_and_platform_keys_need_their_tenant(running: Running, acme: str) -> None:
    client, platform = running.key(acme, kind="client").secret, running.key(acme, kind="platform").secret

    assert running.verify(client)["code"] == "tenant_denied"
    assert running.verify(client, tenant={"user_id": "u"})["valid"]
    assert running.verify(platform, tenant={"user_id": "u"})["code"] == "tenant_denied"
    assert running.verify(platform, tenant={"org_id": "o"})["code"] == "tenant_denied"
    assert running.verify(platform, tenant={"org_id": "o", "user_id": "u"})["valid"]


def test_a_use_that_names_no_model_is_not_checked_for_it(running: Running, acme: str) -> None:
    made = running.key(acme, scopes={"models": ["a"], "projects": [running.project(acme)], "tenants": ["t"]})

    assert running.verify(made.secret)["valid"]


def test_a_key_is_good_from_its_addresses_only(running: Running, acme: str) -> None:
    made = running.key(acme, allowed_ips=["203.0.113.0/24"])

    assert running.verify(made.secret, ip="203.0.113.7")["valid"]
    assert running.verify(made.secret, ip="203.0.114.7")["code"] == "ip_denied"
    assert running.verify(made.secret)["code"] == "ip_denied"
    gateway = Gateway(running, running.main)
    lied = gateway.use(made.secret, X_Forwarded_For="203.0.113.7", X_Real_IP="203.0.113.7")
    assert (lied.status, lied.code) == (403, "ip_denied")
    near = running.key(acme, allowed_ips=["127.0.0.0/8"]).secret
    assert gateway.use(near).status == 200


# -- rate limits


def test_forward_auth_says_rate_limits_as_the_ietf_does(running: Running, acme: str) -> None:
    limits = [{"name": "burst", "limit": 2, "window_seconds": 60}]
    made, gateway = running.key(acme, rate_limits=limits), Gateway(running, running.main)
    first, _, third = (gateway.use(made.secret) for _ in range(3))

    assert first.headers["RateLimit-Policy"] == '"burst";q=2;w=60'
    assert first.headers["RateLimit"].startswith('"burst";r=1;t=')
    assert (third.status, third.code) == (429, "rate_limited")
    assert 1 <= int(third.headers["Retry-After"]) <= 60
    nginx = gateway.ask("/", "nginx", Authorization=f"Bearer {made.secret}")
    assert (nginx.status, nginx.headers["X-Keyledger-Status"]) == (403, "429")


def test_a_limit_of_a_provider_counts_its_uses_only(running: Running, acme: str) -> None:
    limits = [{"name": "openai", "limit": 1, "window_seconds": 3600, "provider": "openai"}]
    made = running.key(acme, rate_limits=limits)

    assert [running.verify(made.secret, provider="openai")["code"] for _ in range(2)] == [
        "valid",
        "rate_limited",
    ]
    assert running.verify(made.secret, provider="other")["valid"]
    assert running.verify(made.secret)["valid"]


def test_a_refused_use_takes_no_token_and_one_request_id_counts_once(running: Running, acme: str) -> None:
    limits = [{"name": "slow", "limit": 1, "window_seconds": 3600}]
    made = running.key(acme, rate_limits=limits, scopes={"models": ["a"]})
    for _ in range(3):
        assert running.verify(made.secret, model="b")["code"] == "model_denied"
    use: Json = {"model": "a", "request_id": running.name("use")}

    assert [running.verify(made.secret, **use)["valid"] for _ in range(3)] == [True] * 3
    assert running.verify(made.secret, model="a", request_id=running.name("use"))["code"] == "rate_limited"
