"""Audit, events, edges, fences, leaks, requests, usage, and what operators ask."""

import asyncio
import csv
import io
import json
from hashlib import sha256
from typing import Any

import pytest
from structlog.testing import capture_logs

from domain import commands as c
from domain.keyspaces import ROOT_SHAPE
from keyledger_language.events import LedgerEvent
from keyledger_language.instants import SECOND, to_text
from tests.api.world import Management

# -- the change feed


async def test_the_feed_is_paged_by_position(api: Management) -> None:
    await api.create()
    first = (await api.get("/v1/events?limit=2")).json
    rest = (await api.get(f"/v1/events?after={first['next_after']}")).json
    end = (await api.get(f"/v1/events?after={rest['next_after']}")).json

    assert [one["sequence"] for one in first["items"]] == [1, 2]
    assert [one["sequence"] for one in rest["items"]] == list(range(3, api.ledger.books.head + 1))
    assert (end["items"], end["next_after"]) == ([], rest["next_after"])
    assert rest["position"] == f"0-{api.ledger.books.head}"


async def test_an_event_is_a_cloud_event(api: Management) -> None:
    key = (await api.create())["key"]
    (event,) = (await api.get("/v1/events?types=KeyCreated&after=0-2")).json["items"]

    assert event["specversion"] == "1.0"
    assert event["type"] == "keyledger.KeyCreated"
    assert (event["subject"], event["organizationid"]) == (key["id"], key["organization_id"])
    assert event["position"] == key["position"]
    assert event["data"]["name"] == "Checkout"
    assert "fingerprint" not in event["data"]


async def test_the_feed_is_filtered_by_type_and_organization(api: Management) -> None:
    key = (await api.create())["key"]
    await api.create(keyspace_id=key["keyspace_id"])
    events = (
        await api.get(
            f"/v1/events?types=KeyCreated,keyledger.KeyRevoked&organization_id={key['organization_id']}"
        )
    ).json

    assert [one["subject"] for one in events["items"]] == [key["id"]]
    assert events["next_after"] == f"0-{api.ledger.books.head}"


async def test_a_bound_root_key_hears_of_its_own_only(api: Management) -> None:
    keyspace, own, other = (
        await api.make_keyspace(),
        await api.make_organization(),
        await api.make_organization(),
    )
    await api.make_key(keyspace, own)
    await api.make_key(keyspace, other)
    secret = await api.make_root("events:read", organization_id=own.id)
    heard = (await api.get("/v1/events", as_=secret)).json["items"]
    foreign = (await api.get(f"/v1/events?organization_id={other.id}", as_=secret)).json["items"]

    assert {one["organizationid"] for one in heard} == {own.id}
    assert foreign == []


async def test_a_root_key_bound_to_a_keyspace_hears_of_that_one(api: Management) -> None:
    own, other = await api.make_keyspace(), await api.make_keyspace("leapter")
    organization = await api.make_organization()
    mine = await api.make_key(own, organization)
    await api.make_key(other, organization)
    secret = await api.make_root("events:read", bound_keyspace_id=own.id)
    heard = (await api.get("/v1/events", as_=secret)).json["items"]

    assert [one["subject"] for one in heard][:2] == [own.id, mine.id]
    assert other.id not in {one["subject"] for one in heard}


@pytest.mark.parametrize(
    "query, field", [("after=x", "after"), ("after=1-4", "after"), ("types=Nonsense", "types")]
)
async def test_a_feed_of_nothing_is_refused(api: Management, query: str, field: str) -> None:
    answer = await api.get(f"/v1/events?{query}")

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, field)


async def test_the_feed_comes_in_two_formats(api: Management) -> None:
    assert (await api.ask("GET", "/v1/events", accept="application/json")).status == 200
    assert (await api.ask("GET", "/v1/events", accept="image/png")).code == "not_acceptable"


class Listener:
    """Reads Server-Sent Events until it is told to stop."""

    def __init__(self, api: Management, query: str = "", **headers: str) -> None:
        self.messages: list[dict[str, str]] = []
        self.headers: dict[str, str] = {}
        self._gone = asyncio.Event()
        self._buffer = b""
        named = {"accept": "text/event-stream", "authorization": f"Bearer {api.root}", **headers}
        self._scope: dict[str, Any] = {
            "type": "http", "method": "GET", "path": "/v1/events", "raw_path": b"/v1/events",
            "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": ("192.0.2.7", 1), "server": ("127.0.0.1", 8700), "asgi": {"version": "3.0"},
        }  # fmt: skip
        self.task = asyncio.create_task(api.app(self._scope, self._receive, self._send))
        self._asked = False

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        if not message.get("more_body"):
            self._gone.set()
        self._buffer += message.get("body", b"")
        *whole, self._buffer = self._buffer.split(b"\n\n")
        for one in whole:
            fields = dict(
                line.split(": ", 1) for line in one.decode().split("\n") if not line.startswith(":")
            )
            if "data" in fields:
                self.messages.append(fields)

    async def heard(self, count: int) -> list[dict[str, str]]:
        async with asyncio.timeout(5):
            while len(self.messages) < count:
                await asyncio.sleep(0.01)
        return self.messages

    async def stop(self) -> None:
        self._gone.set()
        async with asyncio.timeout(5):
            await self.task


async def test_server_sent_events_go_on_and_resume(api: Management) -> None:
    before = api.ledger.books.head
    listener = Listener(api)
    await listener.heard(before)
    key = (await api.create())["key"]
    messages = await listener.heard(before + 3)
    await listener.stop()
    resumed = Listener(api, **{"last-event-id": f"0-{before}"})
    again = await resumed.heard(3)
    await resumed.stop()

    assert listener.headers["content-type"].startswith("text/event-stream")
    assert listener.headers["x-request-id"]
    assert [one["id"] for one in messages] == [f"0-{n}" for n in range(1, before + 4)]
    assert messages[-1]["event"] == "keyledger.KeyCreated"
    assert json.loads(messages[-1]["data"])["subject"] == key["id"]
    assert [one["id"] for one in again] == [f"0-{n}" for n in range(before + 1, before + 4)]


async def test_a_stream_ends_when_the_partition_is_lost(api: Management) -> None:
    listener = Listener(api)
    await listener.heard(1)
    api.ledger.standing.owner = False
    async with asyncio.timeout(5):
        await listener.task


# -- audit


async def test_the_audit_tells_who_what_when_and_from_where(api: Management) -> None:
    await api.create()
    page = (await api.get("/v1/audit?sort=at&limit=500")).json
    line = page["items"][-1]

    assert line["action"] == "KeyCreated"
    assert line["ip"] == "192.0.2.7"
    assert line["after"]["name"] == "Checkout"
    assert line["request_id"].startswith("req_")


async def test_a_root_key_that_is_given_beside_others_is_logged_and_in_the_audit(api: Management) -> None:
    given = ROOT_SHAPE.generate()
    with capture_logs() as logs:
        await api.ledger.bootstrap(given)
        await api.ledger.bootstrap(given)
    page = (await api.get("/v1/audit?action=KeyCreated&limit=500")).json
    (line,) = [one for one in logs if one["event"] == "root_key.added"]
    (entry,) = [one for one in page["items"] if one["key_id"] == line["key_id"]]

    assert line["log_level"] == "warning"
    assert "KEYLEDGER_ROOT_KEY" in line["reason"]
    assert (entry["actor"], entry["reason"]) == ("system", line["reason"])
    assert given not in str(logs) + str(page)


async def test_the_audit_comes_as_lines_and_as_a_table(api: Management) -> None:
    await api.ask("POST", "/v1/organizations", {"name": "=1+1"}, user_agent="=cmd()")
    lines = await api.get("/v1/audit?format=ndjson")
    table = await api.get("/v1/audit?format=csv&limit=2")
    rows = list(csv.DictReader(io.StringIO(table.body.decode())))

    assert lines.headers["content-type"].startswith("application/x-ndjson")
    assert all(json.loads(line)["position"] for line in lines.body.splitlines())
    assert table.headers["content-type"].startswith("text/csv")
    assert table.headers["x-next-cursor"]
    assert len(rows) == 2
    everything = await api.get("/v1/audit?format=csv")
    assert b"'=cmd()" in everything.body, "a spreadsheet takes no stranger's word for a formula"


async def test_the_audit_has_what_the_query_asks_for(api: Management) -> None:
    keyspace_id = (await api.make_keyspace()).id
    key, other = [(await api.create(keyspace_id=keyspace_id))["key"] for _ in range(2)]
    for one, trace in ((key, "t-1"), (other, "t-2"), (key, "t-3")):
        await api.patch(f"/v1/keys/{one['id']}", {"tags": [trace]}, x_request_id=trace)
    actor = (await api.get("/v1/audit?request_id=t-1")).json["items"][0]["actor"]
    at = to_text(api.clock.now())
    later = to_text(api.clock.now() + SECOND)

    async def traces(query: str) -> list[str]:
        items = (await api.get(f"/v1/audit?action=TagsSet&{query}")).json["items"]
        return [one["request_id"] for one in items]

    assert await traces(f"key_id={key['id']}") == ["t-3", "t-1"]
    assert await traces(f"organization_id={other['organization_id']}") == ["t-2"]
    assert await traces("request_id=t-3") == ["t-3"]
    assert await traces(f"actor={actor}&sort=at") == ["t-1", "t-2", "t-3"]
    assert await traces("actor=system") == []
    assert await traces(f"from={at}&to={later}") == ["t-3", "t-2", "t-1"]
    assert await traces(f"from={later}") == await traces(f"to={at}") == []


# -- usage and requests


@pytest.mark.parametrize("bucket", ["hour", "day", "month"])
@pytest.mark.parametrize("by", ["", "model", "project", "provider", "tenant", "key"])
async def test_usage_is_asked_for_by_bucket_and_dimension(api: Management, bucket: str, by: str) -> None:
    key = (await api.create())["key"]
    for path in (f"/v1/keys/{key['id']}/usage", f"/v1/organizations/{key['organization_id']}/usage"):
        answer = await api.get(f"{path}?bucket={bucket}" + (f"&by={by}" if by else ""))
        assert answer.status == 200
        assert (answer.json["bucket"], answer.json["by"]) == (bucket, by or None)
        assert answer.json["items"] == answer.json["denials"] == answer.json["verifications"] == []


@pytest.mark.parametrize(
    "query, field",
    [
        ("from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("from=2026-01-01T00:00:00Z&to=2026-01-01T00:00:00Z", "from"),
        ("from=2020-01-01T00:00:00Z&to=2026-01-01T00:00:00Z&bucket=hour", "from"),
        ("from=yesterday", "from"),
        ("bucket=week", "bucket"),
        ("by=colour", "by"),
    ],
)
async def test_usage_of_no_time_is_refused(api: Management, query: str, field: str) -> None:
    key = (await api.create())["key"]
    answer = await api.get(f"/v1/keys/{key['id']}/usage?{query}")

    assert (answer.status, answer.json["errors"][0]["field"]) == (400, field)


async def test_a_request_is_found_by_its_id_also_of_a_deleted_key(api: Management) -> None:
    keyspace, organization = await api.make_keyspace(), await api.make_organization(credit=1_000)
    owned = await api.make_key(keyspace, organization)
    await api.do(c.ChargeUsage(key_id=owned.id, request_id="r-1", base_micros=400))
    await api.delete(f"/v1/keys/{owned.id}")
    found = await api.get("/v1/requests/r-1")
    secret = await api.make_root("usage:read", organization_id=(await api.make_organization()).id)

    (line,) = found.json["items"]
    assert (line["kind"], line["amount_micros"], line["key_id"]) == ("charge", 400, owned.id)
    assert (await api.get("/v1/requests/r-2")).status == 404
    assert (await api.get("/v1/requests/r-1", as_=secret)).status == 404
    assert (await api.get(f"/v1/requests/r-1?organization_id={organization.id}", as_=secret)).status == 404


# -- edges, fences, leaks


async def test_nobody_is_connected(api: Management) -> None:
    assert (await api.get("/v1/edges")).json["items"] == []


async def test_a_change_that_took_nothing_away_is_fenced_anyhow(api: Management) -> None:
    fence = (await api.get("/v1/fences/0-1?wait=true")).json

    assert (fence["held"], fence["edges"]) == (True, 0)


@pytest.mark.parametrize("tail", ["", "?wait=true"])
async def test_only_the_owner_says_that_a_fence_holds(api: Management, tail: str) -> None:
    """Who reads on without PostgreSQL knows of no fence that is open, and must not call it held."""
    api.ledger.standing.owner = api.ledger.standing.reachable = False
    answer = await api.get(f"/v1/fences/0-1{tail}")

    assert (answer.status, answer.code) == (503, "dependency_unavailable")


@pytest.mark.parametrize("caught_up, status", [(True, 200), (False, 503)])
async def test_without_postgresql_a_process_reads_on_unless_it_was_still_starting(
    api: Management,
    caught_up: bool,  # noqa: FBT001  # the case
    status: int,
) -> None:
    """Half of the log is not what was committed: an old balance was told so."""
    made = await api.create()
    path = f"/v1/organizations/{made['key']['organization_id']}/wallet"
    assert (await api.get(path)).status == 200
    api.ledger.standing.owner = api.ledger.standing.reachable = False
    api.ledger._memory.caught_up = caught_up

    assert (await api.get(path)).status == status


async def test_a_leaked_secrets_key_dies(api: Management) -> None:
    made = await api.create()
    body = {"secret": made["secret"], "source": "scanner", "where": f"https://x.test/{made['secret']}"}
    reported = await api.post("/v1/leaks", body)
    again = await api.post("/v1/leaks", body)
    history = (await api.get(f"/v1/keys/{made['key']['id']}/history")).json

    assert (reported.status, reported.json["found"]) == (200, True)
    assert reported.json["key"]["status"] == "revoked"
    assert reported.json["fence"]["held"] is True
    assert again.json["key"]["status"] == "revoked"
    assert made["secret"] not in json.dumps(history)
    assert "LeakReported" in [one["action"] for one in history["items"]]


async def test_an_older_generation_leaks_too(api: Management) -> None:
    made = await api.create()
    await api.post(f"/v1/keys/{made['key']['id']}/rotate", b"")
    reported = await api.post("/v1/leaks", {"secret": made["secret"], "source": "scanner"})

    assert reported.json["key"]["status"] == "revoked"


async def test_a_leak_may_be_reported_by_digest(api: Management) -> None:
    made = await api.create()
    digest = sha256(made["secret"].encode()).hexdigest()
    both = await api.post("/v1/leaks", {"secret": made["secret"], "sha256": digest, "source": "scanner"})
    neither = await api.post("/v1/leaks", {"source": "scanner"})
    reported = await api.post("/v1/leaks", {"sha256": digest, "source": "scanner"})

    for answer in (both, neither):
        assert (answer.status, answer.json["errors"][0]["field"]) == (400, "secret")
    assert reported.json["key"]["status"] == "revoked"


async def test_a_strangers_secret_is_only_said_so(api: Management) -> None:
    made = await api.create()
    secret = await api.make_root("keys:write", organization_id=(await api.make_organization()).id)
    unknown = await api.post("/v1/leaks", {"secret": "x" * 40, "source": "scanner"})
    foreign = await api.post("/v1/leaks", {"secret": made["secret"], "source": "scanner"}, as_=secret)
    elsewhere = await api.post(
        "/v1/leaks", {"secret": made["secret"], "source": "scanner", "keyspace_id": "ks_x"}
    )

    for answer in (unknown, foreign, elsewhere):
        assert (answer.status, answer.json["found"], answer.json["key"]) == (200, False, None)
    assert (await api.get(f"/v1/keys/{made['key']['id']}")).json["status"] == "active"


# -- operating


async def test_it_is_alive_and_ready(api: Management) -> None:
    assert (await api.get("/healthz")).json == {"status": "alive"}
    ready = (await api.get("/readyz")).json
    assert (ready["ready"], ready["owner"], ready["waits_for"]) == (True, True, [])
    assert ready["does_without"] == []


@pytest.mark.parametrize("reachable", [True, False])
async def test_a_process_is_ready_without_nats_and_says_what_it_does_without(
    api: Management,
    reachable: bool,  # noqa: FBT001  # the case
) -> None:
    api.serve(nats_reachable=lambda: reachable)
    ready = await api.get("/readyz")
    figures = (await api.get("/metrics")).body.decode()

    assert (ready.status, ready.json["ready"], ready.json["waits_for"]) == (200, True, [])
    assert [one["dependency"] for one in ready.json["does_without"]] == ([] if reachable else ["nats"])
    assert f"keyledger_nats_reachable {float(reachable)}" in figures


async def test_figures_for_prometheus(api: Management) -> None:
    await api.create()
    await api.get("/v1/keys/x")
    text = (await api.get("/metrics")).body.decode()

    assert f"keyledger_position {api.ledger.books.head:.1f}" in text
    assert 'keyledger_answers_total{code="ok",method="POST",route="/v1/keys",status="201"} 1.0' in text
    assert 'route="/v1/keys/{key_id}",status="404"' in text
    assert "kl_live_" not in text


async def test_paths_that_are_none_share_one_figure(api: Management) -> None:
    for number in range(5):
        await api.get(f"/v1/nonsense{number}")
    text = (await api.get("/metrics")).body.decode()

    assert 'keyledger_answers_total{code="not_found",method="GET",route="other",status="404"} 5.0' in text


def test_every_event_can_be_asked_for() -> None:
    assert len(LedgerEvent.__args__) > 40
