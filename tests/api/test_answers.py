"""What answers have in common: where a thing is shown, methods, files of the audit, the page at the root."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from tests.api.world import Management


async def made(api: Management, path: str, body: object) -> tuple[Any, str]:
    """What was made, and where it is shown."""
    reply = await api.post(path, body)
    assert reply.status == 201, reply.body
    return reply.json, reply.headers["location"]


async def test_what_was_made_is_shown_where_location_says(api: Management) -> None:
    keyspace, at = await made(api, "/v1/keyspaces", {"name": "Main", "preset": "default"})
    assert (await api.get(at)).json == keyspace
    organization, at = await made(api, "/v1/organizations", {"name": "Acme"})
    assert (await api.get(at)).json == organization
    project, at = await made(api, f"{at}/projects", {"name": "Chat"})
    assert (await api.get(at)).json == project
    plan, at = await made(api, "/v1/plans", {"name": "pro", "models": "*"})
    assert (await api.get(at)).json == plan
    of = {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "Checkout"}
    key, at = await made(api, "/v1/keys", of)
    assert (await api.get(at)).json == key["key"]
    again, at = await made(api, f"{at}/rotate", {})
    assert (await api.get(at)).json == again["key"]
    adopted, at = await made(api, "/v1/keys/import", of | {"sha256": "0f" * 32, "hint": "kl_live_...x7Qd"})
    assert (await api.get(at)).json["id"] == adopted["key"]["id"]


async def test_money_that_was_spent_or_held_is_shown_where_location_says(api: Management) -> None:
    owned = await api.make_key(await api.make_keyspace(), await api.make_organization(credit=1_000))
    ask = {"key_id": owned.id, "request_id": "r-1", "amount_micros": 100}

    charged, at = await made(api, "/v1/charges", ask)
    assert (await api.get(at)).json["charge"] == charged["charge"]
    held, at = await made(api, "/v1/reservations", ask | {"request_id": "r-2"})
    assert (await api.get(at)).json["reservation"]["id"] == held["reservation"]["id"]
    captured, at = await made(api, f"{at}/capture", {"request_id": "r-3", "amount_micros": 50})
    assert (await api.get(at)).json["charge"] == captured["charge"]


async def test_a_replay_says_where_it_is_shown_too(api: Management) -> None:
    name = {"Idempotency-Key": "one"}
    first = await api.post("/v1/plans", {"name": "pro", "models": "*"}, **name)
    again = await api.post("/v1/plans", {"name": "pro", "models": "*"}, **name)

    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]


async def test_what_is_only_changed_has_no_location(api: Management) -> None:
    plan = (await api.post("/v1/plans", {"name": "pro", "models": "*"})).json
    changed = await api.patch(f"/v1/plans/{plan['id']}", {"name": "team"})

    assert changed.status == 200
    assert "location" not in changed.headers


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "DELETE", "TRACE", "MADE-UP"])
@pytest.mark.parametrize(
    "path, allowed",
    [
        ("/v1/keys", "GET, HEAD, POST"),
        ("/v1/charges", "POST"),
        ("/v1/keys/key_1/history", "GET, HEAD"),
        ("/v1/organizations/org_1/projects/prj_1", "GET, HEAD, PATCH"),
        ("/", "GET, HEAD"),
        ("/docs", "GET, HEAD"),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_refused_with_those_it_does(
    api: Management, method: str, path: str, allowed: str
) -> None:
    reply = await api.ask(method, path)

    assert (reply.status, reply.code, reply.headers["allow"]) == (405, "method_not_allowed", allowed)


async def test_pages_of_csv_put_together_are_one_file(api: Management) -> None:
    await api.create()
    pages: list[bytes] = []
    query = "?format=csv&limit=2&sort=at"
    first = await api.get(f"/v1/audit{query}")
    pages.append(first.body)
    cursor = first.headers["x-next-cursor"]
    pages.append((await api.get(f"/v1/audit{query}&cursor={cursor}")).body)

    assert first.headers["content-type"] == "text/csv; charset=utf-8"
    assert [page.startswith(b"position,at,") for page in pages] == [True, False]
    rows = list(csv.DictReader(io.StringIO(b"".join(pages).decode())))
    assert len({row["position"] for row in rows}) == len(rows) == 4
    assert all(row["action"][0].isupper() for row in rows)


async def test_a_cursor_of_a_csv_is_not_one_of_json(api: Management) -> None:
    await api.create()
    cursor = (await api.get("/v1/audit?format=csv&limit=2")).headers["x-next-cursor"]

    assert (await api.get(f"/v1/audit?limit=2&cursor={cursor}")).status == 400


async def test_the_root_leads_people_on(api: Management) -> None:
    page = await api.get("/")

    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path in ("/docs", "/readyz", "/schema/openapi.json"):
        assert f'<a href="{path}">'.encode() in page.body
        assert (await api.get(path)).status == 200


async def test_the_root_is_answered_by_a_process_that_owns_nothing(api: Management) -> None:
    api.ledger.standing.owner = api.ledger.standing.reachable = api.ledger._memory.caught_up = False

    assert (await api.get("/")).status == 200
    assert (await api.get("/v1/plans")).status == 503
