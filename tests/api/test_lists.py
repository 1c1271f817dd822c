"""Lists: pages, cursors, sorts and filters, alike everywhere."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Any

import pytest

from services.ledger.fence_results import EdgeView
from tests.api.world import Management


def field_of(reply: Any) -> str:
    assert reply.status == 400, reply.body
    assert reply.json["code"] == "invalid_request"
    field: str = reply.json["errors"][0]["field"]
    return field


@pytest.fixture
async def two_of_each(api: Management) -> dict[str, Any]:
    """An organization with two projects, two keys and two movements; two plans; two keyspaces."""
    organization = (await api.post("/v1/organizations", {"name": "Acme"})).json["id"]
    await api.post("/v1/organizations", {"name": "Beta"})
    for number in (1, 2):
        await api.post(f"/v1/organizations/{organization}/projects", {"name": f"P{number}"})
        await api.post("/v1/plans", {"name": f"plan {number}", "models": "*"})
        credit = {"amount_micros": 5, "reference": f"r{number}"}
        await api.post(f"/v1/organizations/{organization}/wallet/credits", credit)
    keyspace = await api.make_keyspace()
    keys = [
        (await api.create(organization_id=organization, keyspace_id=keyspace.id, name=f"K{number}"))["key"][
            "id"
        ]
        for number in (1, 2)
    ]
    for number in (1, 2):
        charge = {"key_id": keys[0], "request_id": f"c-{number}", "amount_micros": 1}
        assert (await api.post("/v1/charges", charge)).status == 201
    await api.ask("PATCH", f"/v1/keys/{keys[0]}", {"name": "renamed"})
    return {"organization_id": organization, "key_ids": keys}


async def test_a_cursor_of_one_list_is_refused_by_every_other(
    api: Management, two_of_each: dict[str, Any]
) -> None:
    key_ids, organization_id = two_of_each["key_ids"], two_of_each["organization_id"]
    lists = [
        "/v1/keys",
        "/v1/keys?sort=created_at",
        "/v1/keys?status=active",
        "/v1/organizations",
        "/v1/plans",
        "/v1/keyspaces",
        f"/v1/organizations/{organization_id}/projects",
        f"/v1/organizations/{organization_id}/wallet/statement",
        f"/v1/organizations/{organization_id}/wallet/statement?sort=at",
        "/v1/audit",
        "/v1/audit?sort=at",
        f"/v1/audit?organization_id={organization_id}",
        f"/v1/keys/{key_ids[0]}/history",
        f"/v1/keys/{key_ids[0]}/history?sort=-at",
        f"/v1/keys/{key_ids[0]}/requests",
        "/v1/requests",
        "/v1/requests?code=valid",
        f"/v1/requests?key_id={key_ids[0]}",
    ]

    def at(path: str, more: str) -> str:
        return f"{path}{'&' if '?' in path else '?'}{more}"

    cursors = {path: (await api.get(at(path, "limit=1"))).json["next_cursor"] for path in lists}

    assert None not in cursors.values(), cursors
    for path in lists:
        for other, cursor in cursors.items():
            reply = await api.get(at(path, f"cursor={cursor}"))
            if other == path:
                assert reply.status == 200, (path, reply.body)
            else:
                assert field_of(reply) == "cursor", (path, other)


async def test_a_cursor_goes_on_with_another_limit(api: Management, two_of_each: dict[str, Any]) -> None:
    path = f"/v1/keys/{two_of_each['key_ids'][0]}/history"
    first = (await api.get(f"{path}?limit=1")).json

    rest = (await api.get(f"{path}?limit=500&cursor={first['next_cursor']}")).json

    assert [one["action"] for one in first["items"] + rest["items"]] == ["KeyCreated", "KeyRenamed"]


async def test_a_sort_that_is_the_usual_one_is_the_same_list(
    api: Management, two_of_each: dict[str, Any]
) -> None:
    cursor = (await api.get("/v1/plans?limit=1")).json["next_cursor"]

    assert (await api.get(f"/v1/plans?sort=-created_at&cursor={cursor}")).status == 200


@pytest.mark.parametrize("cursor", ["x", "a" * 2_000, urlsafe_b64encode(b'["-created_at",1,"x"]').decode()])
async def test_a_cursor_that_no_list_has_given_is_refused(api: Management, cursor: str) -> None:
    assert field_of(await api.get(f"/v1/plans?cursor={cursor}")) == "cursor"


async def test_an_action_that_there_is_not_is_refused_and_those_there_are_are_told(api: Management) -> None:
    reply = await api.get("/v1/audit?action=KeyRevokedd")

    assert field_of(reply) == "action"
    assert "KeyRevoked," in reply.json["errors"][0]["message"]
    assert (await api.get("/v1/audit?action=KeyRevoked")).status == 200


async def test_a_span_without_an_instant_in_it_is_refused(api: Management) -> None:
    noon, later = "2026-11-20T12:00:00Z", "2026-11-20T12:00:01Z"

    assert field_of(await api.get(f"/v1/audit?from={noon}&to={noon}")) == "from"
    assert (await api.get(f"/v1/audit?from={noon}&to={later}")).status == 200


async def test_there_is_no_second_way_to_sort(api: Management) -> None:
    assert field_of(await api.get("/v1/audit?order=oldest_first")) == "order"
    assert field_of(await api.get("/v1/audit?sort=oldest_first")) == "sort"


@pytest.mark.parametrize(
    "target, field, names",
    [
        ("/v1/keys?status=activ", "status", "active, disabled, revoked, expired"),
        ("/v1/plans?sort=names", "sort", "created_at, -created_at, name, -name"),
        ("/v1/audit?format=xml", "format", "json, ndjson, csv"),
        ("/v1/keys/{key}/usage?by=colour", "by", "model, project, provider, tenant, key"),
        ("/v1/keys/{key}/usage?bucket=week", "bucket", "hour, day, month"),
    ],
)
async def test_a_name_that_there_is_not_is_refused_and_those_there_are_are_told(
    api: Management, target: str, field: str, names: str
) -> None:
    key = (await api.create())["key"]["id"]
    reply = await api.get(target.format(key=key))

    assert field_of(reply) == field
    assert reply.json["errors"][0]["message"] == f"one of {names}"


async def test_a_parameter_that_is_wrong_otherwise_says_how(api: Management) -> None:
    reply = await api.get("/v1/audit?limit=501")

    assert field_of(reply) == "limit"
    assert "<= 500" in reply.json["errors"][0]["message"]


@pytest.mark.parametrize(
    "target, field",
    [
        ("/v1/keys?organization_id=acme", "organization_id"),
        ("/v1/keys?keyspace_id=key_01JD0000000000000000000000", "keyspace_id"),
        ("/v1/keys?project_id=", "project_id"),
        ("/v1/audit?key_id=key_01jd0000000000000000000000", "key_id"),
        ("/v1/requests?key_id=Checkout", "key_id"),
        ("/v1/requests/r-1?organization_id=crm-4711", "organization_id"),
        ("/v1/events?organization_id=org_", "organization_id"),
    ],
)
async def test_a_filter_by_what_is_no_id_of_that_kind_is_refused(
    api: Management, target: str, field: str
) -> None:
    assert field_of(await api.get(target)) == field


async def test_edges_are_paged_by_their_names_each_once(
    api: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [("b", "r1", "i1"), ("a", "r2", "i1"), ("a", "r1", "i2"), ("a", "r1", "i1"), ("c", "r1", "i1")]
    edges = [
        EdgeView(
            edge_id=name,
            root_key_id=root,
            incarnation=incarnation,
            version="1",
            position="0-1",
            lease_left_ms=1,
            last_heard_ms=1,
        )
        for name, root, incarnation in names
    ]
    monkeypatch.setattr(api.ledger.fences, "edges", lambda: edges)
    found: list[tuple[str, str, str]] = []
    cursor = ""
    while True:
        page = (await api.get(f"/v1/edges?limit=1{cursor}")).json
        (one,) = page["items"]
        found.append((one["id"], one["root_key_id"], one["incarnation"]))
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == sorted(names)
    every = (await api.get("/v1/edges?limit=5")).json
    assert (len(every["items"]), every["next_cursor"]) == (5, None)
    fewer = (await api.get("/v1/edges?limit=4")).json
    assert (len(fewer["items"]), fewer["next_cursor"] is None) == (4, False)
