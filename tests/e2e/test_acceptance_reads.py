"""What is read over the wire, by the contract: audit, events, edges, fences, health, the description."""

import csv
import http.client
import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from tests.e2e.running import UNIT, Json, Made, Running, done, refused

CLOUD_EVENT = {
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "time",
    "datacontenttype",
    "dataschema",
    "position",
    "sequence",
    "organizationid",
    "actor",
    "data",
}


@pytest.fixture(scope="module")
def told(running: Running) -> Made:
    """A key to which a few things happened."""
    made = running.key(running.organization(UNIT), name="Before")
    running.root.patch(f"/v1/keys/{made.id}", {"name": "After"})
    running.root.post(f"/v1/keys/{made.id}/disable", {"reason": "holidays"})
    running.root.post(f"/v1/keys/{made.id}/enable")
    return made


def audit(running: Running, **query: object) -> list[Json]:
    items: list[Json] = running.read("/v1/audit", **query)["items"]
    return items


# -- audit


def test_the_audit_says_who_did_what_when_and_from_where(running: Running, told: Made) -> None:
    lines = {one["action"]: one for one in audit(running, key_id=told.id)}
    renamed = lines["KeyRenamed"]

    assert lines.keys() >= {"KeyCreated", "KeyRenamed", "KeyDisabled", "KeyEnabled"}
    assert (renamed["before"]["name"], renamed["after"]["name"]) == ("Before", "After")
    assert renamed["actor"] == told.key["created_by"]
    assert renamed["ip"] == "127.0.0.1"
    assert renamed["organization_id"] == told.key["organization_id"]
    assert lines["KeyDisabled"]["reason"] == "holidays"
    assert datetime.fromisoformat(renamed["at"]).tzinfo is not None


def test_the_audit_is_filtered_by_everything_the_contract_names(running: Running, told: Made) -> None:
    organization_id = told.key["organization_id"]
    now = datetime.now(UTC)
    soon, past = (now + timedelta(minutes=1)).isoformat(), (now - timedelta(minutes=9)).isoformat()

    def actions(**query: object) -> list[str]:
        return [one["action"] for one in audit(running, organization_id=organization_id, **query)]

    assert actions(action="KeyRenamed") == ["KeyRenamed"]
    assert "OrganizationOpened" in actions()
    assert "OrganizationOpened" not in actions(key_id=told.id)
    assert actions(actor="key_" + "0" * 26) == []
    assert "KeyRenamed" in actions(actor=told.key["created_by"])
    assert "KeyRenamed" in actions(**{"from": past}, to=soon)
    assert actions(**{"from": soon}) == []
    assert actions(to=past) == []
    assert len(actions(limit=1)) == 1


def test_an_audit_line_is_found_by_the_request_that_caused_it(running: Running, told: Made) -> None:
    answer = running.root.ask("PATCH", f"/v1/keys/{told.id}", {"tags": [running.name("tag")]})
    lines = audit(running, request_id=answer.headers["X-Request-Id"])

    assert [one["key_id"] for one in lines] == [told.id]


def test_the_audit_comes_as_json_ndjson_and_csv(running: Running, told: Made) -> None:
    as_json = audit(running, key_id=told.id)
    ndjson = running.root.ask("GET", f"/v1/audit?key_id={told.id}&format=ndjson")
    table = running.root.ask("GET", f"/v1/audit?key_id={told.id}&format=csv")

    assert ndjson.headers["Content-Type"].startswith("application/x-ndjson")
    assert [json.loads(line) for line in ndjson.raw.splitlines()] == as_json
    assert table.headers["Content-Type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(table.raw.decode())))
    assert [one["action"] for one in rows] == [one["action"] for one in as_json]
    answer = running.root.ask("GET", "/v1/audit?format=xml")
    refused(answer, 400, "invalid_request", "format")


def test_metered_use_is_not_in_the_way_of_the_audit(running: Running, told: Made) -> None:
    charge = {"key_id": told.id, "request_id": running.name("use"), "amount_micros": 1}
    running.root.post("/v1/charges", charge, 201)

    assert "UsageCharged" not in [one["action"] for one in audit(running, key_id=told.id)]


# -- events


def test_the_feed_is_cloud_events_in_order(running: Running, told: Made) -> None:
    organization_id = told.key["organization_id"]
    page = running.root.get("/v1/events", organization_id=organization_id, limit=500)
    events = page["items"]
    renamed = next(one for one in events if one["type"] == "keyledger.KeyRenamed")

    assert renamed.keys() >= CLOUD_EVENT
    assert (renamed["specversion"], renamed["subject"]) == ("1.0", told.id)
    assert renamed["organizationid"] == organization_id
    assert renamed["actor"] == told.key["created_by"]
    assert all(one["position"].endswith(f"-{one['sequence']}") for one in events)
    assert [one["sequence"] for one in events] == sorted(one["sequence"] for one in events)
    assert told.secret not in str(page)


def test_the_feed_goes_on_where_one_stopped(running: Running, told: Made) -> None:
    query: Json = {"organization_id": told.key["organization_id"], "limit": 2}
    seen: list[str] = []
    for _ in range(50):
        page = running.root.get("/v1/events", **query)
        seen += [one["position"] for one in page["items"]]
        if page["next_after"] == query.get("after"):
            break
        query["after"] = page["next_after"]
    whole = running.root.get("/v1/events", organization_id=query["organization_id"], limit=500)["items"]

    assert seen == [one["position"] for one in whole]


def test_the_feed_is_filtered_by_type(running: Running, told: Made) -> None:
    query = {"organization_id": told.key["organization_id"], "types": "KeyRenamed,KeyDisabled"}
    types = [one["type"] for one in running.root.get("/v1/events", **query)["items"]]

    assert types == ["keyledger.KeyRenamed", "keyledger.KeyDisabled"]
    for wrong, field in (("types=KeyEaten", "types"), ("after=nonsense", "after"), ("limit=0", "limit")):
        refused(running.root.ask("GET", f"/v1/events?{wrong}"), 400, "invalid_request", field)


@contextmanager
def stream(running: Running, query: str, last_event_id: str | None = None) -> Generator[Iterator[Json]]:
    """Server-Sent Events, message by message."""
    address = urlsplit(running.url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=10)
    headers = {"Authorization": f"Bearer {running.root_key}", "Accept": "text/event-stream"}
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    connection.request("GET", f"/v1/events?{query}", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")

    def messages() -> Iterator[Json]:
        message: Json = {}
        while line := answer.readline():
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                message[name] = value
            elif "data" in message:
                yield message
                message = {}

    try:
        yield messages()
    finally:
        connection.close()


def test_the_feed_streams_and_resumes(running: Running, told: Made) -> None:
    query = f"organization_id={told.key['organization_id']}&types=KeyRenamed,KeyDisabled,KeyRevoked"
    with stream(running, query) as messages:
        first, second = next(messages), next(messages)
    assert [one["event"] for one in (first, second)] == ["keyledger.KeyRenamed", "keyledger.KeyDisabled"]
    assert json.loads(first["data"])["position"] == first["id"]

    with stream(running, query, first["id"]) as messages:
        assert next(messages)["id"] == second["id"]
        made = running.key(told.key["organization_id"])
        running.root.post(f"/v1/keys/{made.id}/revoke")
        live = next(messages)
    assert (live["event"], json.loads(live["data"])["subject"]) == ("keyledger.KeyRevoked", made.id)


# -- times that no calendar shows


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00%2B14:00"])
def test_a_time_beyond_the_calendar_is_named(running: Running, told: Made, time: str) -> None:
    for path in ("/v1/audit", f"/v1/keys/{told.id}/usage"):
        for field in ("from", "to"):
            refused(running.root.ask("GET", f"{path}?{field}={time}"), 400, "invalid_request", field)
    first = running.root.ask("GET", f"/v1/keys/{told.id}/usage?to=0001-01-01T05:00:00Z")
    assert (first.status, first.body["items"]) == (200, [])


# -- edges and fences


def test_edges_are_listed(running: Running) -> None:
    page = running.root.get("/v1/edges")

    assert page["items"] == []


def test_a_fence_is_asked_for_by_its_position(running: Running, told: Made) -> None:
    narrowed = running.root.patch(f"/v1/keys/{told.id}/scopes", {"models": ["a"]})
    fence = running.root.get(f"/v1/fences/{narrowed['fence']['position']}")

    assert fence.keys() >= {"position", "held", "edges", "acknowledged", "expired", "waited_ms"}
    assert fence["held"] is True
    for unknown in ("nonsense", "7-1"):
        refused(running.root.ask("GET", f"/v1/fences/{unknown}"), 404, "not_found")
    for never_told in ("0-999999999", "0.2-1"):
        refused(running.root.ask("GET", f"/v1/fences/{never_told}"), 410, "position_unknown")


# -- every answer


def test_every_answer_has_a_trace_id_of_its_own_or_the_callers(running: Running) -> None:
    paths = ["/healthz", "/readyz", "/metrics", "/docs", "/v1/keys", "/v1/nowhere", "/nowhere", "/v1/self"]
    ids = [running.root.ask("GET", path).headers["X-Request-Id"] for path in paths]

    assert all(ids)
    assert len(set(ids)) == len(ids)
    mine = running.root.ask("GET", "/v1/keys", None, X_Request_Id="trace-1")
    assert mine.headers["X-Request-Id"] == "trace-1"


def test_every_answer_about_state_has_its_position(running: Running, told: Made) -> None:
    organization_id = told.key["organization_id"]
    paths = [
        "/v1/keys",
        f"/v1/keys/{told.id}",
        f"/v1/keys/{told.id}/history",
        f"/v1/keys/{told.id}/usage",
        "/v1/organizations",
        f"/v1/organizations/{organization_id}",
        f"/v1/organizations/{organization_id}/wallet",
        f"/v1/organizations/{organization_id}/wallet/statement",
        "/v1/plans",
        "/v1/keyspaces",
        "/v1/audit",
        "/v1/events",
        "/v1/edges",
    ]

    for path in paths:
        answer = running.root.ask("GET", path)
        assert answer.headers["X-Keyledger-Position"] or answer.body["position"], path
    holder = running.as_root(told.secret)
    assert holder.get("/v1/self")["position"]
    assert running.verify("nonsense")["position"]


def test_a_read_waits_for_the_position_it_names(running: Running, told: Made) -> None:
    made = running.key(told.key["organization_id"], name=running.name("fresh"))
    path = f"/v1/keys?q={made.key['name']}"
    seen = running.root.ask("GET", path, None, X_Keyledger_Position=running.position)
    assert [one["id"] for one in seen.body["items"]] == [made.id]

    refused(
        running.root.ask("GET", path, None, X_Keyledger_Position="0-99999999"), 503, "position_not_reached"
    )
    refused(running.root.ask("GET", path, None, X_Keyledger_Position="soon"), 400, "invalid_request")


UNREADABLE = [
    b"{",
    b"[]",
    b'"text"',
    b"null",
    b"\xff\xfe",
    b'{"name": "x"} trailing',
    b"[" * 100_000,
    b'{"name": 1e999}',
    b'{"name": "\\ud800"}',
]


@pytest.mark.parametrize(
    "path", ["/v1/keys", "/v1/verify", "/v1/charges", "/v1/organizations", "/v1/keys/import"]
)
@pytest.mark.parametrize("raw", UNREADABLE, ids=[str(raw[:12]) for raw in UNREADABLE])
def test_what_is_no_json_object_is_a_problem_and_never_our_fault(
    running: Running, path: str, raw: bytes
) -> None:
    answer = running.root.send("POST", path, raw, {})

    assert 400 <= answer.status < 500, answer.raw
    assert answer.body["code"] in {"malformed_body", "invalid_request"}
    assert answer.body["errors"]


def test_an_absurdly_large_body_is_refused(running: Running) -> None:
    for path in ("/v1/organizations", "/v1/verify", "/v1/charges"):
        caller = running.as_root(running.root_key)
        answer = caller.send("POST", path, b'{"name": "' + b"x" * 2_000_000 + b'"}', {})
        refused(answer, 413, "body_too_large")


def test_paths_and_methods_that_are_not_there_are_problems(running: Running) -> None:
    refused(running.root.ask("GET", "/v1/nowhere"), 404, "not_found")
    refused(running.root.ask("PUT", "/v1/keys", {}), 405, "method_not_allowed")
    refused(running.root.ask("GET", "/v1/verify"), 405, "method_not_allowed")


# -- operating


def test_it_is_alive_and_ready(running: Running) -> None:
    nobody = running.as_root(None)

    assert done(nobody.ask("GET", "/healthz"))["status"] == "alive"
    ready = done(nobody.ask("GET", "/readyz"))
    assert (ready["ready"], ready["waits_for"]) == (True, [])


def test_metrics_are_prometheus_and_name_no_secret(running: Running, told: Made) -> None:
    running.verify(told.secret)
    answer = running.as_root(None).ask("GET", "/metrics")

    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert b"# TYPE keyledger_" in answer.raw
    assert not [secret for secret in running.secrets if secret.encode() in answer.raw]


ROUTES = """
    /v1/keyspaces                                       get post
    /v1/keyspaces/{id}                                  get patch
    /v1/organizations                                   get post
    /v1/organizations/{id}                              get patch
    /v1/organizations/{id}/suspend                      post
    /v1/organizations/{id}/resume                       post
    /v1/organizations/{id}/projects                     get post
    /v1/organizations/{id}/projects/{id}                patch
    /v1/organizations/{id}/projects/{id}/archive        post
    /v1/organizations/{id}/wallet                       get patch
    /v1/organizations/{id}/wallet/credits               post
    /v1/organizations/{id}/wallet/statement             get
    /v1/organizations/{id}/usage                        get
    /v1/plans                                           get post
    /v1/plans/{id}                                      get patch
    /v1/keys                                            get post
    /v1/keys/import                                     post
    /v1/keys/revoke                                     post
    /v1/keys/{id}                                       get patch delete
    /v1/keys/{id}/scopes                                patch
    /v1/keys/{id}/rotate                                post
    /v1/keys/{id}/disable                               post
    /v1/keys/{id}/enable                                post
    /v1/keys/{id}/revoke                                post
    /v1/keys/{id}/history                               get
    /v1/keys/{id}/usage                                 get
    /v1/verify                                          post
    /v1/verify/batch                                    post
    /v1/forward-auth                                    get
    /v1/forward-auth/{id}                               get
    /v1/charges                                         post
    /v1/charges/batch                                   post
    /v1/charges/{id}/refund                             post
    /v1/reservations                                    post
    /v1/reservations/{id}                               get
    /v1/reservations/{id}/capture                       post
    /v1/reservations/{id}/release                       post
    /v1/requests/{id}                                   get
    /v1/self                                            get
    /v1/self/revoke                                     post
    /v1/explain                                         post
    /v1/audit                                           get
    /v1/events                                          get
    /v1/edges                                           get
    /v1/leaks                                           post
    /v1/fences/{id}                                     get
"""


def test_the_description_has_every_route_of_the_contract(running: Running) -> None:
    answer = running.as_root(None).ask("GET", "/schema/openapi.json")
    described = {
        "/".join("{id}" if part.startswith("{") else part for part in path.split("/")): set(methods)
        for path, methods in answer.body["paths"].items()
    }
    wanted = {words[0]: set(words[1:]) for words in map(str.split, ROUTES.strip().splitlines())}

    assert answer.body["openapi"].startswith("3.1")
    assert {path: methods - described.get(path, set()) for path, methods in wanted.items()} == {
        path: set() for path in wanted
    }


def test_people_can_read_it(running: Running) -> None:
    answer = running.as_root(None).ask("GET", "/docs")

    assert (answer.status, answer.headers["Content-Type"].split(";")[0]) == (200, "text/html")
    assert b"/v1/keys" in answer.raw
