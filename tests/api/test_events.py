"""GET /v1/events: pages and streams of what is committed, as far as the caller may see."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from domain import commands as c
from keyledger_language import fingerprint
from tests.api.quick.world import Reply, World
from tests.api.world import Management


async def sequences(api: Management, query: str = "", **named: str) -> list[int]:
    answer = await api.get(f"/v1/events?limit=500{query}", **named)

    assert answer.status == 200, answer.body

    return [item["sequence"] for item in answer.json["items"]]


async def test_the_feed_tells_everything_from_the_first_event_on(api: Management) -> None:
    await api.create(name="Ada's key")
    head = api.ledger.books.head

    answer = await api.get("/v1/events?limit=500")

    assert [item["sequence"] for item in answer.json["items"]] == list(range(1, head + 1))
    assert answer.json["next_after"] == f"0-{head}"
    assert answer.json["items"][-1]["data"]["name"] == "Ada's key"


async def test_types_and_a_position_narrow_it(api: Management) -> None:
    made = await api.create()
    revoked = await api.post(f"/v1/keys/{made['key']['id']}/revoke?fence=false", {})
    number = int(revoked.headers["x-keyledger-position"].removeprefix("0-"))
    types = "types=keyledger.KeyRevoked,KeyCreated"

    assert await sequences(api, f"&after=0-{api.ledger.books.head}") == []
    assert await sequences(api, f"&after={made['position']}&{types}") == [number]


async def test_a_position_that_the_log_has_not_reached_is_gone(api: Management) -> None:
    beyond = f"0-{api.ledger.books.head + 1}"

    page = await api.get(f"/v1/events?after={beyond}")
    fence = await api.get(f"/v1/fences/{beyond}")

    assert (page.status, page.code) == (fence.status, fence.code) == (410, "position_unknown")
    assert "lost events" in page.json["detail"]


@pytest.mark.parametrize("query", ["types=KeySung", "after=never", "after=7-1", "limit=0", "since=1"])
async def test_what_cannot_be_meant_is_refused_by_name(query: str, api: Management) -> None:
    answer = await api.get(f"/v1/events?{query}")

    assert answer.status in {400, 422}
    assert answer.json["errors"][0]["field"] == query.partition("=")[0]


async def test_a_key_of_one_organization_sees_its_events_only(api: Management) -> None:
    own, other = await api.make_organization(), await api.make_organization()
    bound = await api.make_root("events:read", organization_id=own.id)

    mine = await api.get("/v1/events?limit=500", as_=bound)
    theirs = await api.get(f"/v1/events?organization_id={other.id}", as_=bound)

    assert {item["organizationid"] for item in mine.json["items"]} == {own.id}
    assert theirs.json["items"] == []


async def test_a_stream_resumes_behind_the_last_event_id_and_follows(api: Management) -> None:
    root = await api.make_root("events:read")
    seen = f"0-{api.ledger.books.head}"
    reading = asyncio.create_task(
        api.get("/v1/events", as_=root, accept="text/event-stream", last_event_id=seen)
    )
    await asyncio.sleep(0.05)
    made = await api.create()
    await asyncio.sleep(0.2)
    await end_root(api, root)
    answer = await asyncio.wait_for(reading, 5)

    assert answer.headers["content-type"].startswith("text/event-stream")
    ids = [line.removeprefix("id: ") for line in answer.body.decode().splitlines() if line.startswith("id: ")]
    first = int(seen.partition("-")[2]) + 1
    assert ids == [f"0-{first + n}" for n in range(len(ids))]
    assert made["position"] in ids


async def test_a_stream_ends_when_its_root_key_is_revoked(api: Management) -> None:
    root = await api.make_root("events:read")
    reading = asyncio.create_task(api.get("/v1/events", as_=root, accept="text/event-stream"))
    await asyncio.sleep(0.05)

    assert not reading.done()

    await end_root(api, root)

    assert (await asyncio.wait_for(reading, 5)).status == 200
    assert (await api.get("/v1/events", as_=root)).status == 401


async def end_root(api: Management, secret: str) -> None:
    facts = api.ledger.facts.find(fingerprint(secret))
    assert facts is not None
    await api.do(c.RevokeKey(key_id=facts.key_id))


async def test_streams_are_bounded_for_each_root_key_and_free_their_place(api: Management) -> None:
    mine, other = await api.make_root("events:read"), await api.make_root("events:read")
    reading = [asyncio.create_task(follow(api, mine)) for _ in range(10)]
    await asyncio.sleep(0.1)

    refused = await follow(api, mine)
    assert (refused.status, refused.code) == (429, "too_many_streams")
    assert int(refused.headers["retry-after"]) > 0
    assert (await api.get("/v1/events", as_=mine)).status == 200  # pages are not streams
    others = asyncio.create_task(follow(api, other))
    await asyncio.sleep(0.1)
    assert not others.done()
    shown = (await api.get("/metrics")).body.decode()
    assert "keyledger_event_streams 11.0" in shown
    assert 'keyledger_event_streams_refused_total{bound="key"} 1.0' in shown

    reading.pop().cancel()
    await asyncio.sleep(0.05)
    reading.append(asyncio.create_task(follow(api, mine)))
    await asyncio.sleep(0.1)
    assert not reading[-1].done()
    assert (await follow(api, mine)).status == 429
    for secret in (mine, other):
        await end_root(api, secret)
    await asyncio.wait_for(asyncio.gather(*reading, others), 5)
    assert api.app.api.streams.open == 0


async def test_streams_are_bounded_for_the_process(api: Management) -> None:
    roots = [await api.make_root("events:read") for _ in range(11)]
    reading = [asyncio.create_task(follow(api, root)) for root in roots[:10] for _ in range(10)]
    await asyncio.sleep(0.5)

    refused = await follow(api, roots[10])
    assert (refused.status, refused.code) == (429, "too_many_streams")
    for one in reading:
        one.cancel()
    await asyncio.wait(reading)
    assert api.app.api.streams.open == 0


def follow(api: Management, secret: str) -> Coroutine[Any, Any, Reply]:
    return api.get("/v1/events", as_=secret, accept="text/event-stream")


async def test_a_head_of_the_stream_ends_at_once_and_takes_no_place(api: Management) -> None:
    root, seen = await api.make_root("events:read"), f"0-{api.ledger.books.head}"
    asking = {"accept": "text/event-stream", "last_event_id": seen}

    answer = await asyncio.wait_for(World.ask(api, "HEAD", "/v1/events", as_=root, **asking), 5)

    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert api.app.api.streams.open == 0
