"""The management API on a real ledger: what it writes can be listed at once, by every filter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.quick.world import Reply
from tests.api.world import check_described
from tests.e2e.ledgers import Place, place, until


class Client:
    """Speaks to a real ledger as its first root key; every answer must be as it is described."""

    def __init__(self, here: Place) -> None:
        secret = Path(here.told["root_key_file"]).read_text().strip()
        headers = {"Authorization": f"Bearer {secret}"}
        self.http = httpx.Client(base_url=here.told["api"], headers=headers, timeout=30)

    def ask(self, method: str, target: str, body: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = self.http.request(method, target, json=body, headers=named)
        reply = Reply(answer.status_code, {k.lower(): v for k, v in answer.headers.items()}, answer.content)
        check_described(method, answer.request.url.path, reply)
        return answer

    def get(self, target: str, **headers: str) -> Any:
        answer = self.ask("GET", target, **headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, target: str, body: Any = None, **headers: str) -> Any:
        answer = self.ask("POST", target, body, **headers)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def ids(self, target: str) -> list[str]:
        return [one["id"] for one in self.get(target)["items"]]

    def charge(self, key_id: str, request_id: str, amount: int, **use: str) -> None:
        body = {"key_id": key_id, "request_id": request_id, "amount_micros": amount, **use}
        answer = self.http.post("/v1/charges", json=body)
        assert answer.status_code == 201, answer.text


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with place() as here:
        here.start()
        client = Client(here)
        yield client
        client.http.close()


@pytest.fixture(scope="module")
def keyspace(client: Client) -> str:
    made: str = client.post("/v1/keyspaces", {"name": "gateway", "preset": "default"})["id"]
    return made


@pytest.fixture
def acme(client: Client) -> str:
    made: str = client.post("/v1/organizations", {"name": "Acme"})["id"]
    return made


def test_what_is_written_is_listed_at_once(client: Client, keyspace: str, acme: str) -> None:
    for number in range(20):
        body = {"keyspace_id": keyspace, "organization_id": acme, "name": f"key {number}"}
        key_id = client.post("/v1/keys", body)["key"]["id"]

        assert client.ids(f"/v1/keys?organization_id={acme}&limit=1") == [key_id]


def test_what_is_taken_away_is_in_the_audit_and_the_lists_at_once(
    client: Client, keyspace: str, acme: str
) -> None:
    of_key = {"keyspace_id": keyspace, "organization_id": acme, "name": "x"}
    key_ids = [client.post("/v1/keys", of_key)["key"]["id"] for _ in range(40)]
    stale = []
    for key_id in key_ids:
        client.post(f"/v1/keys/{key_id}/revoke", {"reason": "left"})
        newest = client.get(f"/v1/audit?key_id={key_id}&limit=1")["items"][0]
        if newest["action"] != "KeyRevoked":
            stale.append(newest)

    assert stale == []
    assert client.ids(f"/v1/keys?organization_id={acme}") == []


def test_keys_are_found_by_every_filter(client: Client, keyspace: str, acme: str) -> None:
    project = client.post(f"/v1/organizations/{acme}/projects", {"name": "Chat"})["id"]
    base = {"keyspace_id": keyspace, "organization_id": acme}
    wanted = client.post(
        "/v1/keys",
        {
            **base,
            "name": "Wanted",
            "owner_id": "user-7",
            "environment": "production",
            "tags": ["team:a", "x"],
            "scopes": {"projects": [project]},
        },
    )["key"]
    other = client.post("/v1/keys", {**base, "name": "other"})["key"]
    here = f"/v1/keys?organization_id={acme}"

    for query in (
        f"keyspace_id={keyspace}&owner_id=user-7",
        "owner_id=user-7",
        "environment=production",
        "tag=team:a",
        f"project_id={project}",
        "q=WANT",
        f"q={wanted['id']}",
        f"q={wanted['hint'][-4:]}",
        "status=active&q=wanted",
    ):
        assert client.ids(f"{here}&{query}") == [wanted["id"]], query
    assert client.ids(f"{here}&sort=name") == [other["id"], wanted["id"]]
    assert client.ids(f"{here}&sort=-name") == [wanted["id"], other["id"]]
    assert client.ids(f"{here}&sort=created_at") == [wanted["id"], other["id"]]
    assert client.ids(f"{here}&owner_id=nobody") == []

    client.post(f"/v1/keys/{wanted['id']}/disable?fence=false")
    client.post(f"/v1/keys/{other['id']}/revoke?fence=false")
    position = client.ask("GET", f"/v1/keys/{other['id']}").headers["x-keyledger-position"]
    seen = {"x_keyledger_position": position}
    assert [one["id"] for one in client.get(f"{here}&status=disabled", **seen)["items"]] == [wanted["id"]]
    assert client.ids(here) == [wanted["id"]]
    assert set(client.ids(f"{here}&include_revoked=true")) == {wanted["id"], other["id"]}
    assert client.ids(f"{here}&status=revoked") == [other["id"]]


def test_pages_follow_each_other_without_gap_or_repetition(client: Client, keyspace: str, acme: str) -> None:
    items = [
        {
            "keyspace_id": keyspace,
            "organization_id": acme,
            "name": f"import {number % 7}",
            "sha256": sha256(f"{acme}{number}".encode()).hexdigest(),
            "hint": "kl_live_...x7Qd",
        }
        for number in range(230)
    ]
    imported = client.post("/v1/keys/import", {"items": items})
    everything = {one["key"]["id"] for one in imported["results"]}

    assert imported["imported"] == 230
    for sort in ("name", "-name", "created_at", "-created_at", "last_used_at", "-expires_at"):
        found: list[str] = []
        cursor = ""
        while True:
            page = client.get(f"/v1/keys?organization_id={acme}&limit=50&sort={sort}{cursor}")
            found += [one["id"] for one in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(found) == 230
        assert set(found) == everything
    other_list = client.get("/v1/keys?limit=1&sort=name&include_revoked=true")["next_cursor"]
    assert client.ask("GET", f"/v1/keys?sort=-name&cursor={other_list}").status_code == 400

    revoked = client.post("/v1/keys/revoke", {"filter": {"organization_id": acme}, "reason": "over"})
    assert (revoked["revoked"], revoked["more"], revoked["fence"]["held"]) == (230, False, True)


def test_things_beside_keys_are_listed_and_searched(client: Client, acme: str) -> None:
    project = client.post(f"/v1/organizations/{acme}/projects", {"name": "Chat"})["id"]
    gone = client.post(f"/v1/organizations/{acme}/projects", {"name": "Gone"})["id"]
    plan = client.post("/v1/plans", {"name": "searchable plan", "models": "*"})["id"]
    client.ask("PATCH", f"/v1/organizations/{acme}", {"external_id": "crm-9", "name": "Zebra Ltd"})
    client.post(f"/v1/organizations/{acme}/projects/{gone}/archive")

    assert client.ids("/v1/organizations?external_id=crm-9") == [acme]
    assert client.ids("/v1/organizations?q=zebra") == [acme]
    position = client.ask("GET", f"/v1/organizations/{acme}").headers["x-keyledger-position"]
    shown = client.get(f"/v1/organizations/{acme}/projects", x_keyledger_position=position)
    assert [one["id"] for one in shown["items"]] == [project]
    assert set(client.ids(f"/v1/organizations/{acme}/projects?include_archived=true")) == {project, gone}
    assert client.ids("/v1/plans?q=SEARCHABLE") == [plan]
    assert "ks_00000000000000000000000000" in client.ids("/v1/keyspaces")


def test_a_refused_charge_is_found_whole_under_its_request_id(client: Client, keyspace: str) -> None:
    poor = client.post("/v1/organizations", {"name": "Poor"})["id"]
    project = client.post(f"/v1/organizations/{poor}/projects", {"name": "Chat"})["id"]
    plan = client.post("/v1/plans", {"name": "dear", "models": "*", "price_multiplier": "1.5"})["id"]
    of_key = {"keyspace_id": keyspace, "organization_id": poor, "name": "x", "plan_id": plan}
    key_id = client.post("/v1/keys", of_key)["key"]["id"]
    use = {
        "model": "gpt-5", "provider": "openai", "project_id": project, "tenant": {"user_id": "u-1"},
        "metadata": {"trace": "t-1"},
    }  # fmt: skip
    asked = {"key_id": key_id, "request_id": "refused-1", "amount_micros": 1_000, **use}
    refused = client.ask("POST", "/v1/charges", asked)
    until(lambda: client.ask("GET", "/v1/requests/refused-1").status_code == 200)
    [found] = client.get("/v1/requests/refused-1")["items"]
    [listed] = client.get(f"/v1/keys/{key_id}/requests")["items"]

    assert refused.status_code == 402
    assert (found["kind"], found["code"], found["key_id"]) == ("refusal", "billing_shortfall", key_id)
    assert (found["base_micros"], found["price_multiplier"], found["amount_micros"]) == (1_000, "1.5", 1_500)
    shown = {**use, "tenant": {"org_id": None, "user_id": "u-1"}}
    assert {name: found[name] for name in use} == shown
    assert found == listed


def test_an_archived_keyspace_is_listed_where_it_is_asked_for_and_its_prefix_is_free(client: Client) -> None:
    old = client.post("/v1/keyspaces", {"name": "old typo", "prefix": "typo_"})["id"]
    client.post(f"/v1/keyspaces/{old}/archive")
    new = client.post("/v1/keyspaces", {"name": "new typo", "prefix": "typo_"})["id"]
    told = client.get("/v1/audit?action=KeyspaceArchived")["items"]

    assert client.ids("/v1/keyspaces?q=typo") == [new]
    assert client.ids("/v1/keyspaces?q=typo&include_archived=true&sort=name") == [new, old]
    assert [one["subject"] for one in told] == [old]
    assert (told[0]["before"], told[0]["after"]) == ({"archived": False}, {"archived": True})


def test_money_is_in_statement_usage_and_request_log(client: Client, keyspace: str, acme: str) -> None:
    key = client.post("/v1/keys", {"keyspace_id": keyspace, "organization_id": acme, "name": "x"})["key"]
    client.post(f"/v1/organizations/{acme}/wallet/credits", {"amount_micros": 10_000, "reference": "r"})
    client.charge(key["id"], "req-1", 1_000, model="gpt-5", provider="openai")
    client.charge(key["id"], "req-2", 500, model="opus", provider="anthropic")
    client.ask("DELETE", f"/v1/keys/{key['id']}")
    wallet = client.ask("GET", f"/v1/organizations/{acme}/wallet")
    position = {"x_keyledger_position": wallet.headers["x-keyledger-position"]}

    assert wallet.json()["balance_micros"] == 8_500
    lines = client.get(f"/v1/organizations/{acme}/wallet/statement?sort=at")["items"]
    assert [line["amount_micros"] for line in lines] == [10_000, -1_000, -500]
    assert [line["balance_micros"] for line in lines] == [10_000, 9_000, 8_500]
    usage = client.get(f"/v1/organizations/{acme}/usage?by=model&bucket=hour", **position)
    assert {row["model"]: row["spent_micros"] for row in usage["items"]} == {"gpt-5": 1_000, "opus": 500}
    total = client.get(f"/v1/keys/{key['id']}/usage?bucket=month", **position)["items"]
    assert [(row["requests"], row["charged_micros"]) for row in total] == [(2, 1_500)]
    (found,) = client.get("/v1/requests/req-1", **position)["items"]
    assert (found["kind"], found["amount_micros"], found["key_id"]) == ("charge", 1_000, key["id"])
    log = client.get(f"/v1/keys/{key['id']}/requests", **position)["items"]
    assert [line["request_id"] for line in log] == ["req-2", "req-1"]


def test_the_audit_is_searched_and_exported(client: Client, keyspace: str, acme: str) -> None:
    body = {"keyspace_id": keyspace, "organization_id": acme, "name": "audited"}
    key = client.post("/v1/keys", body, x_request_id="trace-audit", user_agent="test/1")["key"]
    changed = client.ask("PATCH", f"/v1/keys/{key['id']}", {"name": "renamed"})
    position = {"x_keyledger_position": changed.headers["x-keyledger-position"]}

    lines = client.get(f"/v1/audit?key_id={key['id']}&sort=at", **position)["items"]
    assert [line["action"] for line in lines] == ["KeyCreated", "KeyRenamed"]
    assert (lines[1]["before"], lines[1]["after"]["name"]) == ({"name": "audited"}, "renamed")
    (made,) = client.get("/v1/audit?request_id=trace-audit")["items"]
    assert (made["action"], made["user_agent"], made["ip"]) == ("KeyCreated", "test/1", "127.0.0.1")
    assert len(client.get(f"/v1/audit?organization_id={acme}&action=KeyRenamed")["items"]) == 1
    assert (
        client.get(f"/v1/audit?key_id={key['id']}&to={lines[1]['at']}")["items"][0]["action"] == "KeyCreated"
    )
    assert (
        client.get(f"/v1/audit?key_id={key['id']}&from={lines[1]['at']}")["items"][0]["action"]
        == "KeyRenamed"
    )
    table = client.ask("GET", f"/v1/audit?key_id={key['id']}&format=csv")
    assert len(table.text.splitlines()) == 3
    text = client.ask("GET", f"/v1/audit?key_id={key['id']}&format=ndjson").text
    assert [json.loads(line)["action"] for line in text.splitlines()] == ["KeyRenamed", "KeyCreated"]


def test_the_feed_streams_what_is_committed(client: Client, acme: str) -> None:
    after = client.ask("GET", f"/v1/organizations/{acme}").headers["x-keyledger-position"]
    headers = {"Accept": "text/event-stream"}
    with client.http.stream("GET", f"/v1/events?after={after}&types=PlanDefined", headers=headers) as stream:
        lines = stream.iter_lines()
        made = client.post("/v1/plans", {"name": "streamed", "models": "*"})
        data = next(line for line in lines if line.startswith("data: "))

    event = json.loads(data.removeprefix("data: "))
    assert (event["type"], event["position"]) == ("keyledger.PlanDefined", made["position"])
    page = client.get(f"/v1/events?after={after}&types=PlanDefined")["items"]
    assert [one["id"] for one in page] == [event["id"]]


def test_what_operators_ask_is_answered(client: Client) -> None:
    ready = until(lambda: (answer := client.http.get("/readyz")).status_code == 200 and answer.json())
    figures = client.http.get("/metrics").text

    assert ready["waits_for"] == []
    for name in ("keyledger_position", "keyledger_answers_total"):
        assert name in figures
    assert client.http.get("/docs").headers["content-type"].startswith("text/html")
    assert client.get("/schema/openapi.json")["openapi"].startswith("3.1")
