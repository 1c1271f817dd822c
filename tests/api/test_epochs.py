"""A raised epoch: positions of the one before are not taken for those of this one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.api.serving.front import Front
from services.ledger.ledger import Ledger
from tests.api.quick.world import Reply, call
from tests.api.test_reading import Listener
from tests.api.world import Management


async def raise_epoch(api: Management) -> None:
    """What `keyledger new-epoch` does, and until this process has noticed."""
    before = api.ledger.fences
    api.storage.raise_epoch()
    async with asyncio.timeout(20):
        while not api.ledger.confirmed or api.ledger.fences is before:
            await asyncio.sleep(0.02)
    # Nobody was granted anything before: there are no leases to wait for.
    api.ledger.fences._quiet_until = 0
    api.ledger.fences.advance()


def is_gone(reply: Reply) -> bool:
    return (reply.status, reply.code) == (410, "position_unknown") and "beginning" in reply.json["detail"]


async def verify(hot: Front, api: Management, made: Any) -> Reply:
    body = {"secret": made["secret"], "keyspace_id": made["key"]["keyspace_id"]}
    return await call(hot, "POST", "/v1/verify", headers={"Authorization": f"Bearer {api.root}"}, body=body)


async def test_positions_of_the_epoch_before_are_gone_though_the_log_has_reached_their_number(
    api: Management,
) -> None:
    made = await api.create()
    old = made["position"]
    assert old.startswith("0-")
    await raise_epoch(api)

    assert is_gone(await api.get(f"/v1/events?after={old}"))
    assert is_gone(await api.get("/v1/events", accept="text/event-stream", last_event_id=old))
    assert is_gone(await api.get(f"/v1/fences/{old}"))
    assert is_gone(await api.get("/v1/plans", x_keyledger_position=old))
    assert is_gone(await api.get(f"/v1/keys/{made['key']['id']}", x_keyledger_position=old))
    assert is_gone(await api.get("/v1/events?after=0.3-1"))  # nor is one that is still to come


async def test_everything_that_is_told_says_the_new_epoch_and_is_taken(api: Management) -> None:
    made = await api.create()
    key, hot = made["key"], api.app
    first = await verify(hot, api, made)
    assert first.json["position"] == f"0-{api.ledger.books.head}"
    seen = api.ledger.books.head
    await raise_epoch(api)

    # Nothing was written since: what was kept as text is of the epoch before all the same.
    assert api.ledger.books.head == seen
    head = f"0.2-{seen}"
    again = await verify(hot, api, made)
    shown = await api.get(f"/v1/keys/{key['id']}")
    feed = await api.get("/v1/events?limit=500")
    assert again.json["position"] == shown.headers["x-keyledger-position"] == head
    assert shown.json["position"].startswith("0.2-")
    assert feed.json["next_after"] == feed.json["position"] == head
    assert [one["position"] for one in feed.json["items"]] == [f"0.2-{n}" for n in range(1, seen + 1)]

    revoked = await api.post(f"/v1/keys/{key['id']}/revoke", {})
    written = f"0.2-{api.ledger.books.head}"
    position = revoked.json["fence"]["position"]
    assert position.startswith("0.2-")
    assert (await api.get(f"/v1/fences/{position}")).json["held"]
    assert (await api.get(f"/v1/events?after={written}")).json["items"] == []
    assert len((await api.get(f"/v1/events?after={head}")).json["items"]) == api.ledger.books.head - seen
    assert (await api.get("/v1/plans", x_keyledger_position=written)).status == 200


async def test_forward_auth_says_the_new_epoch_though_nothing_was_written(api: Management) -> None:
    made = await api.create()
    key, hot = made["key"], api.app
    path = f"/v1/forward-auth?keyspace_id={key['keyspace_id']}"
    shown = {"X-Keyledger-Proxy-Key": api.root, "Authorization": f"Bearer {made['secret']}"}

    before = await call(hot, "GET", path, headers=shown)
    await raise_epoch(api)
    after = await call(hot, "GET", path, headers=shown)

    assert before.status == after.status == 200
    assert before.headers["x-keyledger-key-id"] == key["id"]
    number = before.headers["x-keyledger-position"].removeprefix("0-")
    assert after.headers["x-keyledger-position"] == f"0.2-{number}"


async def test_cursors_of_lists_are_gone_as_well(api: Management) -> None:
    key = (await api.create())["key"]
    path = f"/v1/keys/{key['id']}"
    await api.patch(path, {"name": "Other"})
    await api.patch(path, {"name": "Yet another"})
    first = (await api.get(f"{path}/history?limit=1")).json["next_cursor"]
    assert "." not in first
    assert (await api.get(f"{path}/history?limit=1&cursor={first}")).status == 200
    await raise_epoch(api)

    assert is_gone(await api.get(f"{path}/history?limit=1&cursor={first}"))
    anew = (await api.get(f"{path}/history?limit=1")).json["next_cursor"]
    assert anew == f"2.{first}"
    assert (await api.get(f"{path}/history?limit=1&cursor={anew}")).status == 200
    listed = (await api.get("/v1/keys?limit=1")).json["next_cursor"]
    assert listed is None or listed.startswith("2.")


@pytest.mark.parametrize("text", ["0.1-1", "0.02-1", "0.2", "0.2.2-1", "0.-1", "1.2-1"])
async def test_what_is_no_position_is_refused(text: str, api: Management) -> None:
    feed = await api.get(f"/v1/events?after={text}")
    waiting = await api.get("/v1/plans", x_keyledger_position=text)
    fence = await api.get(f"/v1/fences/{text}")

    assert (feed.code, waiting.code) == ("invalid_request", "invalid_request")
    assert fence.status == 404


@pytest.mark.parametrize("text", [".WzFd", "x.WzFd", "2.2.WzFd", "%C2%B2.WzFd", "99999999999.WzFd"])
async def test_what_is_no_cursor_is_refused(text: str, api: Management) -> None:
    key = (await api.create())["key"]
    await raise_epoch(api)

    answer = await api.get(f"/v1/keys/{key['id']}/history?cursor={text}")

    assert answer.json["errors"][0]["field"] == "cursor"


async def test_a_stream_ends_with_its_epoch_and_the_next_one_is_told_nothing_of_it(api: Management) -> None:
    old = Listener(api)
    seen = api.ledger.books.head
    await old.heard(seen)
    await api.create()
    told = api.ledger.books.head
    await old.heard(told)
    await raise_epoch(api)
    anew = Listener(api)  # while the other may be about to end still
    await anew.heard(told)
    await api.make_organization()
    now = api.ledger.books.head
    messages = await anew.heard(now)
    async with asyncio.timeout(5):
        await old.task
    await anew.stop()

    assert {one["id"].partition("-")[0] for one in old.messages} == {"0"}
    assert [one["id"] for one in messages] == [f"0.2-{n}" for n in range(1, now + 1)]


def test_a_ledger_that_has_not_read_its_epoch_tells_none(api: Management) -> None:
    assert Ledger(api.ledger._ports).position_prefix == "0-"
