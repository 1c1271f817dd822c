import asyncio
from typing import Any

import pytest
from msgspec.structs import force_setattr

from domain.keyspaces import ROOT_KEYSPACE_ID
from keyledger_language import Scopes
from keyledger_language.events import Quota
from tests.api.world import Management


async def test_a_new_key_shows_its_secret_once(api: Management) -> None:
    made = await api.create()
    shown = (await api.get(f"/v1/keys/{made['key']['id']}")).json

    assert made["secret"].startswith("kl_live_")
    assert "detail" not in made
    assert shown["hint"] == f"kl_live_...{made['secret'][-4:]}"
    assert "secret" not in shown


async def test_a_new_key_is_as_it_was_asked_for(api: Management) -> None:
    organization = await api.make_organization()
    project = await api.make_project(organization)
    plan = await api.make_plan()
    fields: dict[str, Any] = {
        "organization_id": organization.id,
        "kind": "client",
        "owner_id": "user-7",
        "environment": "production",
        "plan_id": plan.id,
        "scopes": {"permissions": ["chat"], "projects": [project.id], "models": [], "tenants": ["acme"]},
        "quotas": [{"unit": "micros", "window": "month", "limit": 5_000_000, "alert_percents": [80]}],
        "rate_limits": [{"name": "burst", "limit": 10, "window_seconds": 1, "provider": None}],
        "allowed_ips": ["203.0.113.0/24"],
        "expires_at": "2030-01-01T01:00:00+01:00",
        "tags": ["a", "b", "a"],
        "metadata": {"deep": {"list": [1, None, "x"]}},
    }
    made = (await api.create(**fields))["key"]

    for name in ("organization_id", "kind", "owner_id", "environment", "plan_id", "rate_limits", "metadata"):
        assert made[name] == fields[name]
    assert made["scopes"] == {
        "permissions": ["chat"], "projects": [project.id], "models": "*", "tenants": ["acme"]
    }  # fmt: skip
    assert made["quotas"] == [
        {
            "level": "key", "subject_id": made["id"], "unit": "micros", "window": "month",
            "limit": 5_000_000, "alert_percents": [80],
            "spent": 0, "remaining": 5_000_000, "resets_at": "2024-11-01T00:00:00.000000Z",
        }
    ]  # fmt: skip
    assert made["expires_at"] == "2030-01-01T00:00:00.000000Z"
    assert made["tags"] == ["a", "b"]
    assert made["status"] == "active"
    assert made["version"] == 1
    assert made["generation"] == 1
    assert made["last_used_at"] is made["rotated_at"] is made["revoked_at"] is None


async def test_a_get_carries_an_etag_and_a_position(api: Management) -> None:
    key = (await api.create())["key"]
    answer = await api.get(f"/v1/keys/{key['id']}")

    assert answer.headers["etag"] == '"1"'
    assert answer.headers["x-keyledger-position"] == f"0-{api.ledger.books.head}"
    assert answer.json == key


async def test_a_patch_sets_what_it_names_and_leaves_the_rest(api: Management) -> None:
    key = (await api.create(tags=["a"], environment="test"))["key"]
    changed = await api.patch(
        f"/v1/keys/{key['id']}", {"name": "Billing", "environment": None, "metadata": {"x": 1}}
    )

    assert changed.status == 200
    assert changed.json["name"] == "Billing"
    assert changed.json["environment"] is None
    assert changed.json["metadata"] == {"x": 1}
    assert changed.json["tags"] == ["a"]
    assert changed.json["version"] == 4
    assert "fence" not in changed.json


async def test_a_patch_that_takes_away_answers_with_its_fence(api: Management) -> None:
    key = (await api.create())["key"]
    changed = await api.patch(f"/v1/keys/{key['id']}", {"allowed_ips": ["10.0.0.0/8"]})

    assert changed.status == 200
    assert changed.json["fence"]["held"] is True
    assert changed.json["fence"]["position"] == changed.json["position"]


async def test_scopes_are_edited_by_dimension(api: Management) -> None:
    key = (await api.create(scopes={"models": ["gpt-5"], "permissions": ["chat"]}))["key"]
    path = f"/v1/keys/{key['id']}/scopes"
    wider = await api.patch(path, {"models": ["gpt-5", "opus"]})
    narrower = await api.patch(path, {"models": ["opus"]})

    assert wider.json["scopes"]["models"] == ["gpt-5", "opus"]
    assert wider.json["scopes"]["permissions"] == ["chat"]
    assert "fence" not in wider.json
    assert narrower.json["fence"]["held"] is True


@pytest.mark.parametrize("dimension", ["permissions", "projects", "models", "tenants"])
async def test_an_empty_scope_in_an_edit_is_refused(api: Management, dimension: str) -> None:
    key = (await api.create())["key"]
    answer = await api.patch(f"/v1/keys/{key['id']}/scopes", {dimension: []})

    assert (answer.status, answer.code) == (422, "empty_scope")
    assert answer.json["errors"][0]["field"] == f"scopes.{dimension}"
    assert '"*"' in answer.json["errors"][0]["message"]


async def test_at_creation_only_empty_models_mean_everything(api: Management) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization()
    body = {"keyspace_id": keyspace.id, "organization_id": organization.id, "name": "x"}

    assert (await api.post("/v1/keys", {**body, "scopes": {"models": []}})).status == 201
    assert (await api.post("/v1/keys", {**body, "scopes": {"projects": []}})).code == "empty_scope"


async def test_a_rotation_gives_the_next_secret(api: Management) -> None:
    made = await api.create()
    path = f"/v1/keys/{made['key']['id']}"
    rotated = await api.post(f"{path}/rotate", {"overlap_seconds": 60})

    assert rotated.status == 201
    assert rotated.json["secret"] != made["secret"]
    assert rotated.json["key"]["id"] == made["key"]["id"]
    assert rotated.json["key"]["generation"] == 2
    assert [one["ends_at"] is None for one in rotated.json["key"]["secrets"]] == [False, True]


async def test_a_rotation_without_a_body_ends_the_old_secret_at_once(api: Management) -> None:
    made = await api.create()
    rotated = await api.post(f"/v1/keys/{made['key']['id']}/rotate", b"")

    assert rotated.status == 201
    assert rotated.json["fence"]["held"] is True


async def test_disable_and_enable(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    disabled = await api.post(f"{path}/disable", {"reason": "holidays"})
    enabled = await api.post(f"{path}/enable", b"")

    assert (disabled.status, disabled.json["status"]) == (200, "disabled")
    assert disabled.json["fence"]["held"] is True
    assert (enabled.status, enabled.json["status"]) == (200, "active")
    assert "fence" not in enabled.json


async def test_a_revoked_key_stays_dead(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    revoked = await api.post(f"{path}/revoke", {"reason": "leaked"})
    again = await api.post(f"{path}/revoke", b"")
    enabled = await api.post(f"{path}/enable", b"")

    assert revoked.json["status"] == "revoked"
    assert revoked.json["revoked_at"] is not None
    assert (again.status, again.json["version"]) == (200, revoked.json["version"])
    assert again.json["fence"]["held"] is True
    assert (enabled.status, enabled.code) == (409, "key_revoked")


async def test_a_deleted_key_is_hidden_and_its_history_stays(api: Management) -> None:
    path = f"/v1/keys/{(await api.create())['key']['id']}"
    deleted = await api.delete(path)

    assert (deleted.status, deleted.json["status"], deleted.json["deleted"]) == (200, "revoked", True)
    assert (await api.get(path)).status == 404
    assert (await api.get(f"{path}?include_deleted=true")).json["deleted"] is True
    assert (await api.delete(path)).status == 404
    history = (await api.get(f"{path}/history")).json
    assert [one["action"] for one in history["items"]] == ["KeyCreated", "KeyRevoked", "KeyDeleted"]


async def test_history_tells_actor_position_before_and_after(api: Management) -> None:
    key = (await api.create())["key"]
    await api.ask(
        "PATCH", f"/v1/keys/{key['id']}", {"name": "Billing"}, user_agent="curl/8", x_request_id="t-1"
    )
    newest = (await api.get(f"/v1/keys/{key['id']}/history?sort=-at&limit=1")).json

    (line,) = newest["items"]
    assert line["action"] == "KeyRenamed"
    assert line["actor"] == next(iter(api.ledger.books.keys))
    assert line["before"] == {"name": "Checkout"}
    assert line["after"]["name"] == "Billing"
    assert line["position"] == f"0-{api.ledger.books.head}"
    assert (line["ip"], line["user_agent"], line["request_id"]) == ("192.0.2.7", "curl/8", "t-1")
    assert newest["next_cursor"] is not None


async def test_many_are_revoked_by_a_list_each_on_its_own(api: Management) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization()
    live, dead, foreign = [await api.make_key(keyspace, organization) for _ in range(2)] + [
        await api.make_key(keyspace, await api.make_organization())
    ]
    await api.post(f"/v1/keys/{dead.id}/revoke", b"")
    unknown = "key_01JD0000000000000000000000"
    root = next(key.id for key in api.ledger.books.keys.values() if key.keyspace_id == ROOT_KEYSPACE_ID)
    caller = await api.make_root("keys:write", organization_id=organization.id)
    asked = [unknown, live.id, dead.id, foreign.id, root, live.id]
    revoked = await api.post("/v1/keys/revoke", {"key_ids": asked, "reason": "offboarded"}, as_=caller)
    verdicts = [
        (await api.post("/v1/verify", {"secret": one.secret, "keyspace_id": keyspace.id})).code
        for one in (live, foreign)
    ]

    assert revoked.status == 200
    assert revoked.json["results"] == [
        {"key_id": unknown, "revoked": False, "code": "not_found"},
        {"key_id": live.id, "revoked": True},
        {"key_id": dead.id, "revoked": True, "code": "key_revoked"},
        {"key_id": foreign.id, "revoked": False, "code": "not_found"},
        {"key_id": root, "revoked": False, "code": "not_found"},
        {"key_id": live.id, "revoked": True},
    ]
    assert (revoked.json["revoked"], revoked.json["more"]) == (1, False)
    assert revoked.json["fence"]["held"] is True
    assert verdicts == ["revoked", "valid"]


async def test_a_root_key_beyond_the_callers_powers_saves_no_other(api: Management) -> None:
    live = (await api.create())["key"]["id"]
    root = next(key.id for key in api.ledger.books.keys.values() if key.keyspace_id == ROOT_KEYSPACE_ID)
    caller = await api.make_root("keys:write")
    answer = await api.post("/v1/keys/revoke", {"key_ids": [root, live]}, as_=caller)

    assert answer.json["results"] == [
        {"key_id": root, "revoked": False, "code": "permission_denied"},
        {"key_id": live, "revoked": True},
    ]
    assert api.ledger.books.keys[root].revoked_at is None


async def test_many_of_which_none_can_be_revoked_are_answered_when_open_fences_hold(api: Management) -> None:
    key_id = (await api.create())["key"]["id"]
    fences = api.ledger.fences
    fences._quiet_until = fences._clock.boottime_ns() + 3_600_000_000_000
    await api.delete(f"/v1/keys/{key_id}?fence=false")
    asked = asyncio.create_task(api.post("/v1/keys/revoke", {"key_ids": [key_id]}))
    await asyncio.sleep(0.05)
    waiting = not asked.done()
    unfenced = await api.post("/v1/keys/revoke?fence=false", {"key_ids": [key_id]})
    fences._quiet_until = 0
    fences.advance()
    answer = await asked

    assert waiting, "a deleted key may be accepted until its fence holds"
    assert (unfenced.status, unfenced.json["fence"]["held"]) == (202, False)
    assert (answer.status, answer.json["fence"]["held"]) == (200, True)
    assert answer.json["results"] == [{"key_id": key_id, "revoked": False, "code": "not_found"}]


async def test_many_are_revoked_by_a_filter_that_spares_root_keys(api: Management) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization()
    owned = await api.make_key(keyspace, organization)
    revoked = await api.post("/v1/keys/revoke", {"filter": {"organization_id": organization.id}})

    assert revoked.json["results"] == [{"key_id": owned.id, "revoked": True}]
    assert revoked.json["more"] is False
    assert (await api.get("/v1/keys")).status == 200


@pytest.mark.parametrize(
    "body", [{}, {"filter": {}}, {"key_ids": []}, {"key_ids": ["x"], "filter": {"q": "x"}}]
)
async def test_revoking_many_needs_a_list_or_a_filter(api: Management, body: dict[str, Any]) -> None:
    assert (await api.post("/v1/keys/revoke", body)).status == 400


async def test_a_root_key_names_its_permissions_and_is_listed_with_the_others(api: Management) -> None:
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "ci", "scopes": {"permissions": ["keys:read"]}}
    made = await api.post("/v1/keys", body)
    everything = await api.post("/v1/keys", {**body, "scopes": {}})
    listed = (await api.get("/v1/keys")).json

    assert made.json["secret"].startswith("kl_root_")
    assert made.json["key"]["organization_id"] is None
    assert everything.status == 400
    assert made.json["key"]["id"] in [one["id"] for one in listed["items"]]


OF_USES: dict[str, Any] = {
    "kind": "client",
    "plan_id": "plan_01JD0000000000000000000000",
    "quotas": [{"unit": "requests", "window": "day", "limit": 1}],
    "rate_limits": [{"name": "burst", "limit": 1, "window_seconds": 1}],
    "scopes.projects": ["prj_01JD0000000000000000000000"],
    "scopes.models": ["gpt-5"],
    "scopes.tenants": ["t"],
}
"""What keys have that are for uses, by the field that a refusal names."""


@pytest.mark.parametrize("field", OF_USES)
async def test_what_nothing_reads_on_a_root_key_is_refused_when_it_is_made(
    api: Management, field: str
) -> None:
    scopes = {"permissions": ["keys:read"]}
    outer, _, dimension = field.partition(".")
    given = {"scopes": {**scopes, dimension: OF_USES[field]}} if dimension else {outer: OF_USES[field]}
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "ci", "scopes": scopes, **given}
    refused = await api.post("/v1/keys", body)

    assert (refused.status, refused.code) == (400, "invalid_request")
    assert [error["field"] for error in refused.json["errors"]] == [field]


@pytest.mark.parametrize("field", [field for field in OF_USES if field != "kind"])
async def test_what_nothing_reads_on_a_root_key_is_refused_when_it_is_changed(
    api: Management, field: str
) -> None:
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "ci", "scopes": {"permissions": ["keys:read"]}}
    key = (await api.post("/v1/keys", body)).json["key"]
    outer, _, dimension = field.partition(".")
    path = f"/v1/keys/{key['id']}" + ("/scopes" if dimension else "")
    refused = await api.patch(path, {dimension or outer: OF_USES[field]})

    assert (refused.status, refused.code) == (400, "invalid_request")
    assert [error["field"] for error in refused.json["errors"]] == [field]


async def test_a_root_key_may_be_said_to_have_none_of_what_nothing_reads(api: Management) -> None:
    nothing: dict[str, Any] = {"plan_id": None, "quotas": [], "rate_limits": []}
    everything = {"projects": "*", "models": "*", "tenants": "*", "permissions": ["keys:read"]}
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "ci", "kind": "solo", "scopes": everything, **nothing}
    made = await api.post("/v1/keys", body)
    key_id = made.json["key"]["id"]
    changed = await api.patch(f"/v1/keys/{key_id}", nothing)
    edited = await api.patch(f"/v1/keys/{key_id}/scopes", {**everything, "permissions": ["keys:write"]})

    assert (made.status, changed.status, edited.status) == (201, 200, 200)
    assert edited.json["scopes"]["permissions"] == ["keys:write"]


async def test_a_root_key_that_has_some_of_it_from_before_goes_on_and_may_lose_it(api: Management) -> None:
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "ci", "scopes": {"permissions": ["keys:read"]}}
    made = (await api.post("/v1/keys", body)).json
    key = api.ledger.books.keys[made["key"]["id"]]
    force_setattr(key, "scopes", Scopes(permissions=("keys:read",), models=("gpt-5",)))
    force_setattr(key, "quotas", (Quota(unit="requests", window="day", limit=1),))
    edited = await api.patch(f"/v1/keys/{key.id}/scopes", {"permissions": ["keys:read", "keys:write"]})
    lost = await api.patch(f"/v1/keys/{key.id}", {"quotas": []})

    assert (edited.status, edited.json["scopes"]["models"]) == (200, ["gpt-5"])
    assert (lost.status, lost.json["quotas"]) == (200, [])
    assert (await api.get("/v1/keys", as_=made["secret"])).status == 200


async def test_a_list_has_what_the_query_asks_for(api: Management) -> None:
    of = {
        "keyspace_id": (await api.make_keyspace()).id,
        "organization_id": (await api.make_organization()).id,
    }
    fits: dict[str, Any] = {**of, "environment": "prod", "tags": ["a", "b"]}
    first, second = [(await api.create(**fits, name=f"Checkout {n}"))["key"]["id"] for n in (1, 2)]
    for other in ({"environment": "test"}, {"tags": ["b"]}, {"name": "Billing"}):
        await api.create(**{**fits, **other})
    await api.post(f"/v1/keys/{(await api.create(**fits))['key']['id']}/disable", b"")
    query = "/v1/keys?environment=prod&tag=a&status=active&q=check&sort=-name&limit=1"
    page = (await api.get(query)).json
    last = (await api.get(f"{query}&cursor={page['next_cursor']}")).json

    assert [[one["id"] for one in each["items"]] for each in (page, last)] == [[second], [first]]
    assert last["next_cursor"] is None


async def test_a_cursor_of_nobody_is_refused_by_name(api: Management) -> None:
    answer = await api.get("/v1/keys?cursor=nonsense")

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, "cursor")


async def test_revoked_and_deleted_keys_are_listed_only_where_asked_for(api: Management) -> None:
    key = (await api.create())["key"]
    await api.post(f"/v1/keys/{key['id']}/revoke", b"")

    async def ids(query: str) -> list[str]:
        return [one["id"] for one in (await api.get(f"/v1/keys{query}")).json["items"]]

    assert key["id"] not in await ids("")
    assert key["id"] in await ids("?include_revoked=true")
    assert key["id"] in await ids("?status=revoked")
    await api.delete(f"/v1/keys/{key['id']}")
    assert key["id"] not in await ids("?include_revoked=true")
    assert key["id"] in await ids("?include_deleted=true")
