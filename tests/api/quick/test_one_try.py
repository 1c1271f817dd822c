"""A refusal is final for its try: no request that was sent once is refused, and carried out later."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from services.api.serving import seals
from services.api.serving.forwarding import Forwarder
from tests.api.quick.marks import mark
from tests.api.quick.test_forwarding import KEY, Beside, beside, owning, served, world_app
from tests.api.quick.world import Owned, Reply, World, nothing_else


@pytest.fixture
async def poor(world: World, keyspace: Keyspace) -> tuple[Organization, Owned]:
    """A key whose organization has no money yet."""
    organization = await world.make_organization()
    return organization, await world.make_key(keyspace, organization)


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[World, Beside, str]]:
    """The owner, a process beside it, and where the owner answers."""
    owning(world)
    async with served(world_app(world)) as address, beside(world, address) as other:
        yield world, other, address


async def pay_in(world: World, organization: Organization) -> None:
    await world.do(c.DepositCredits(organization_id=organization.id, amount_micros=10, reference="r"))


def charge(owned: Owned) -> dict[str, Any]:
    return {"key_id": owned.id, "request_id": "r1", "amount_micros": 10}


# -- A8: a process that was not meant


async def test_what_was_passed_on_to_a_process_that_has_just_started_goes_no_further(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned]
) -> None:
    owner, other, address = pair
    organization, owned = poor
    async with beside(owner, None) as restarted:
        # It knows the key by which it could tell a client from a process of ours as little as the owner.
        restarted.forwarder._seals._key = lambda: None
        restarted.forwarder._patience = 5.0
        async with served(world_app(restarted)) as stale:
            other.directory.address = stale
            asking = asyncio.create_task(other.post("/v1/charges", charge(owned)))
            await asyncio.sleep(0.1)
            other.directory.address = address
            refused = await asking
            await pay_in(owner, organization)
            restarted.directory.address = address
            restarted.forwarder._seals._key = lambda: KEY
            await asyncio.sleep(0.5)

    assert (refused.status, refused.code) == (402, "billing_shortfall")
    assert owner.balance(organization) == 10


@pytest.mark.parametrize("tenure", ["0", "ab" * 8])
async def test_what_was_meant_for_another_owner_is_neither_decided_nor_passed_on(
    pair: tuple[World, Beside, str], owned: Owned, tenure: str
) -> None:
    owner, other, _ = pair
    made = mark(owner, "/v1/charges", charge(owned), tenure=tenure)
    replies = [
        await one.post("/v1/charges", charge(owned), x_keyledger_forwarded=made) for one in (owner, other)
    ]

    assert {(one.status, one.code, one.headers["x-keyledger-not-owner"]) for one in replies} == {
        (503, "not_owner", "1")
    }


@pytest.mark.parametrize("path", ["/v1/charges", "/v1/keys"])
async def test_a_mark_that_is_old_or_that_nobody_made_is_not_believed(
    pair: tuple[World, Beside, str], owned: Owned, path: str
) -> None:
    owner, _, _ = pair
    owner.app.router = nothing_else
    clock = int(time.monotonic())
    old, early, good = (mark(owner, path, charge(owned), at=clock + seconds) for seconds in (-100, 100, 0))
    forged = f"{old}.1"

    replies = [
        await owner.post(path, charge(owned), x_keyledger_forwarded=one) for one in (old, early, forged, good)
    ]

    assert [one.status for one in replies] == [503, 503, 503, 201 if path == "/v1/charges" else 200]
    assert {one.code for one in replies[:3]} == {"not_owner"}
    # That it may go on to the next owner, and what the clock shows, is told to processes of this ledger only.
    assert {one.headers["x-keyledger-not-owner"] for one in replies[:2]} == {"1"}
    assert "x-keyledger-not-owner" not in replies[2].headers | replies[3].headers
    assert all(clock <= int(one.headers["x-keyledger-clock"]) < clock + 30 for one in replies[:2])
    assert "x-keyledger-clock" not in replies[2].headers | replies[3].headers


async def test_the_time_of_day_may_be_another_wherever_it_is_looked_at(
    pair: tuple[World, Beside, str], owned: Owned, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, other, _ = pair
    day = count(int(time.time()), 120)
    monkeypatch.setattr(time, "time", lambda: float(next(day)))
    reply = await other.post("/v1/charges", charge(owned))

    assert reply.status == 201


async def test_a_try_that_was_under_way_for_too_long_is_sent_again_only_while_its_client_waits(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than its refusal is remembered: a network that was cut delivers it late."""
    owner, other, _ = pair
    organization, owned = poor
    await other.ask("GET", "/v1/keys")
    held, came = asyncio.Event(), asyncio.Event()
    sent: list[int] = []
    pass_on = Forwarder._ask

    async def late(*args: Any) -> Any:
        sent.append(owner.balance(organization))
        came.set()
        await held.wait()
        return await pass_on(other.forwarder, *args)

    monkeypatch.setattr(other.forwarder, "_ask", late)
    asking = asyncio.create_task(other.post("/v1/charges", charge(owned)))
    await came.wait()
    refused = await owner.post("/v1/charges", charge(owned))
    await pay_in(owner, organization)
    later = int(time.monotonic()) + 300
    monkeypatch.setattr(seals, "_own_clock", lambda: later)
    monkeypatch.setattr(owner.ledger._bus._refusals, "_now", lambda: float(later))
    held.set()
    granted = await asking

    assert (refused.status, granted.status, owner.balance(organization)) == (402, 201, 0)
    # What came late was not decided: it went back, its client still waits, and so it is a try of its own.
    assert sent == [0, 10]


# -- A9: a client that hung up


class Client:
    """One connection, as a client that gives up has it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer

    @classmethod
    async def asks(cls, address: str, root: str, body: Any, path: str = "/v1/charges") -> Client:
        host, _, port = address.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {root}\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        writer.write(head.encode() + data)
        await writer.drain()
        return cls(writer)

    async def hang_up(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


async def test_what_waits_for_an_owner_is_given_up_with_its_client(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned]
) -> None:
    owner, other, address = pair
    organization, owned = poor
    other.directory.address = None
    async with served(world_app(other)) as asked:
        client = await Client.asks(asked, owner.root, charge(owned))
        await asyncio.sleep(0.1)
        await client.hang_up()
        refused = await owner.post("/v1/charges", charge(owned))
        await pay_in(owner, organization)
        other.directory.address = address
        await asyncio.sleep(0.5)

    assert refused.status == 402
    assert owner.balance(organization) == 10


async def test_what_came_in_together_with_the_end_of_its_connection_is_not_passed_on(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned]
) -> None:
    """As in a process that was paused: both are there when it wakes up."""
    owner, other, _ = pair
    organization, owned = poor
    await pay_in(owner, organization)
    app = world_app(other)

    async def sleepy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            time.sleep(0.3)  # the whole process is paused
        await app(scope, receive, send)

    async with served(sleepy) as asked:
        client = await Client.asks(asked, owner.root, charge(owned))
        await client.hang_up()
        await asyncio.sleep(0.5)

    assert owner.balance(organization) == 10


@pytest.mark.parametrize("path", ["/v1/charges", "/v1/keys"])
async def test_the_owner_gives_up_what_the_process_that_passed_it_on_gave_up(
    world: World, owned: Owned, path: str
) -> None:
    """The client hangs up, so the process that it asked does; the bus finds nobody waiting."""
    owning(world)
    begun, left = asyncio.Event(), asyncio.Event()

    body = charge(owned)
    if path == "/v1/keys":
        of = {"keyspace_id": owned.key.keyspace_id, "organization_id": owned.key.organization_id}
        body = {**of, "name": "Checkout"}
    submitted: list[asyncio.Future[Any]] = []
    bus = world.ledger._bus

    def never_decided(*_: Any) -> asyncio.Future[Any]:
        submitted.append(asyncio.get_running_loop().create_future())
        submitted[0].add_done_callback(lambda _: left.set())
        begun.set()
        return submitted[0]

    submit = bus.queue.submit
    bus.queue.submit = never_decided  # type: ignore[method-assign,assignment]  # nothing is decided
    async with served(world_app(world)) as address, beside(world, address) as other:
        async with served(world_app(other)) as asked:
            client = await Client.asks(asked, world.root, body, path)
            await asyncio.wait_for(begun.wait(), 5)
            await client.hang_up()
            await asyncio.wait_for(left.wait(), 5)
        bus.queue.submit = submit  # type: ignore[method-assign]  # as it was

    assert submitted[0].cancelled()


async def test_a_try_under_way_is_granted_behind_a_refusal_only_while_its_client_waits(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned]
) -> None:
    owner, other, _ = pair
    organization, owned = poor
    held = asyncio.Event()
    pass_on = Forwarder._ask

    async def late(self: Forwarder, *args: Any) -> Any:
        await held.wait()
        return await pass_on(self, *args)

    other.forwarder._ask = late.__get__(other.forwarder)  # type: ignore[method-assign]  # a slow network
    waits = asyncio.create_task(other.post("/v1/charges", charge(owned)))
    await asyncio.sleep(0.1)
    refused = await owner.post("/v1/charges", charge(owned))
    await pay_in(owner, organization)
    made = mark(owner, "/v1/charges", charge(owned))
    straight = await owner.post("/v1/charges", charge(owned), x_keyledger_forwarded=made)
    balance = owner.balance(organization)
    held.set()
    granted: Reply = await waits

    # What its client was told nothing of is granted to nobody; a client that waits gets its own answer.
    assert (refused.status, straight.status, balance) == (402, 503, 10)
    assert straight.headers["x-keyledger-refused-lately"] == "1"
    assert (granted.status, owner.balance(organization)) == (201, 0)
    assert "x-keyledger-refused-lately" not in granted.headers


async def test_a_new_try_after_a_refusal_is_decided_anew_whichever_is_asked(
    pair: tuple[World, Beside, str], poor: tuple[Organization, Owned]
) -> None:
    owner, other, _ = pair
    organization, owned = poor
    refused = [await one.post("/v1/charges", charge(owned)) for one in (owner, other)]
    await pay_in(owner, organization)
    batch = await other.post("/v1/charges/batch", {"items": [charge(owned)]})

    assert [one.status for one in refused] == [402, 402]
    assert batch.json["results"][0]["status"] == 201
    assert owner.balance(organization) == 0
