"""Two processes on one log: whichever is asked, the partition's owner answers, once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from services.api.serving.forwarding import Forwarder, OwnerAt
from services.api.serving.server import address_of, listen, serve
from tests.api.quick.world import Owned, Reply, World, call, nothing_else, running_world

KEY = b"shared by all processes of one ledger"


class Directory:
    """Where the owner answers: what the test says."""

    def __init__(self, address: str | None = None, tenure: Callable[[], str] = lambda: "0") -> None:
        self.address = address
        self.tenure = tenure
        self.error: Exception | None = None

    async def owner_at(self) -> OwnerAt | None:
        if self.error is not None:
            raise self.error
        return None if self.address is None else OwnerAt(self.address, self.tenure())


class Beside(World):
    """A second process on the log of a first one, which owns it."""

    directory: Directory
    forwarder: Forwarder


@asynccontextmanager
async def served(app: Any) -> AsyncGenerator[str]:
    """An application on a real socket."""
    listener, stop = listen("127.0.0.1", 0), asyncio.Event()
    address = address_of(listener)
    serving = asyncio.create_task(serve(app, [listener], stop, grace_seconds=1))
    try:
        yield address
    finally:
        stop.set()
        await serving


@asynccontextmanager
async def beside(world: World, address: str | None) -> AsyncGenerator[Beside]:
    other = Beside(world.storage)
    other.root = world.root
    other.directory = Directory(address, lambda: world.ledger.tenure or "0")
    other.forwarder = Forwarder(
        other.directory,
        other.ledger,
        own_address="http://other.test",
        key=lambda: KEY,
        patience_seconds=1.0,
    )
    other.serve(forwarder=other.forwarder)
    await other.start()
    try:
        yield other
    finally:
        await other.forwarder.close()
        await other.stop()


def owning(world: World) -> None:
    """Let the first process believe what the second says of its clients."""
    world.serve(
        forwarder=Forwarder(Directory(), world.ledger, own_address="http://owner.test", key=lambda: KEY)
    )


@pytest.fixture
async def pair(world: World) -> AsyncIterator[tuple[World, Beside]]:
    owning(world)
    async with served(world_app(world)) as address, beside(world, address) as other:
        yield world, other


def world_app(world: World) -> Callable[..., Awaitable[None]]:
    """The world's application, also after it was set up anew."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await world.app(scope, receive, send)

    return app


async def test_the_owner_answers_whichever_is_asked(pair: tuple[World, Beside], owned: Owned) -> None:
    owner, other = pair
    ask = {"key_id": owned.id, "request_id": "r1", "amount_micros": 400}

    there = await other.post("/v1/charges", ask, x_request_id="trace-7")
    here = await owner.post("/v1/charges", ask)

    assert (there.status, there.headers["x-request-id"]) == (201, "trace-7")
    assert (here.json["charge"], here.json["replayed"]) == (there.json["charge"], True)
    assert other.ledger.owner is False


async def test_refusals_and_the_routers_answers_come_back_as_they_are(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    owner, other = pair
    owner.app.router = nothing_else

    refused = await other.post("/v1/charges", {"key_id": owned.id, "request_id": "r", "amount_micros": 2_000})
    wrong = await other.post("/v1/charges", b"{")
    routed = await other.ask("GET", "/v1/keys?limit=1")

    assert (refused.status, refused.code) == (402, "billing_shortfall")
    assert refused.headers["content-type"] == "application/problem+json"
    assert (wrong.status, wrong.code) == (400, "malformed_body")
    assert routed.body == b"router: GET /v1/keys"


async def test_the_owner_sees_the_clients_own_address(pair: tuple[World, Beside], owned: Owned) -> None:
    owner, other = pair
    only_from = await owner.make_root("verify", allowed_ips=("192.0.2.7/32",))
    ask = {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}

    through = await other.post("/v1/verify", ask, as_=only_from)

    assert through.code == "valid"


async def test_nobody_else_can_say_where_a_request_comes_from(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    owner, _ = pair
    only_from = await owner.make_root("verify", allowed_ips=("10.0.0.1/32",))
    ask = {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}

    for forged in (f"{int(time.time())};{'0' * 64};10.0.0.1", "nonsense", "1;2;10.0.0.1"):
        reply = await owner.post("/v1/verify", ask, as_=only_from, x_keyledger_forwarded=forged)
        assert (reply.status, reply.code) == (403, "ip_denied"), forged


async def test_the_second_process_takes_over_when_the_owner_is_gone(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    owner, other = pair
    ask = {"key_id": owned.id, "request_id": "r1", "amount_micros": 400}
    first = await other.post("/v1/charges", ask)

    owner.log.cut_off()
    again = await other.post("/v1/charges", ask)

    assert (again.status, again.json["charge"]) == (201, first.json["charge"])
    assert sum((owner.ledger.owner, other.ledger.owner)) == 1


async def test_who_takes_over_meanwhile_sees_the_client_behind_a_trusted_proxy(
    world: World, owned: Owned
) -> None:
    only_from = await world.make_root("verify", allowed_ips=("203.0.113.9/32",))
    ask = {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}
    other = Beside(world.storage)
    forwarder = Forwarder(Directory(), other.ledger, own_address="http://other.test", key=lambda: KEY)
    other.serve(forwarder=forwarder, trusted_proxies=("192.0.2.7/32",))
    asking = asyncio.create_task(other.post("/v1/verify", ask, as_=only_from, x_forwarded_for="203.0.113.9"))
    await asyncio.sleep(0.05)
    world.log.cut_off()
    await other.start()
    reply = await asking
    await other.stop()

    assert (reply.status, reply.code) == (200, "valid")


async def test_without_an_owner_the_answer_is_503_in_bounded_time(world: World, owned: Owned) -> None:
    async with beside(world, None) as other:
        began = time.monotonic()
        reply = await other.post("/v1/charges", {"key_id": owned.id, "request_id": "r", "amount_micros": 1})

    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "not_owner", "1")
    assert time.monotonic() - began < 5


async def test_a_directory_that_is_down_is_named(world: World, owned: Owned) -> None:
    async with beside(world, None) as other:
        other.directory.error = OSError("down")
        reply = await other.post("/v1/charges", {"key_id": owned.id, "request_id": "r", "amount_micros": 1})

    assert (reply.status, reply.code, reply.json["dependency"]) == (
        503,
        "dependency_unavailable",
        "postgresql",
    )


async def test_without_postgresql_every_process_says_so(pair: tuple[World, Beside], owned: Owned) -> None:
    owner, other = pair
    owner.storage.up = False
    while owner.ledger.reachable or other.ledger.reachable:
        await asyncio.sleep(0.01)
    # All at once, for each waits as long as PostgreSQL is waited for.
    replies = await asyncio.gather(
        *(
            one.post(path, {"key_id": owned.id, "request_id": "r", "amount_micros": 1})
            for path in ("/v1/charges", "/v1/verify", "/v1/keys")
            for one in (owner, other)
        )
    )
    owner.storage.up = True

    assert {(one.status, one.code, one.json["dependency"]) for one in replies} == {
        (503, "dependency_unavailable", "postgresql")
    }
    assert {one.headers["retry-after"] for one in replies} == {"1"}


async def test_a_process_that_nobody_is_beside_says_that_postgresql_is_missing(
    world: World, owned: Owned
) -> None:
    world.storage.up = False
    while world.ledger.reachable:
        await asyncio.sleep(0.01)
    reply = await world.post("/v1/charges", {"key_id": owned.id, "request_id": "r", "amount_micros": 1})
    world.storage.up = True

    assert (reply.status, reply.code, reply.json["dependency"]) == (
        503,
        "dependency_unavailable",
        "postgresql",
    )


async def test_two_that_think_the_other_is_the_owner_send_nothing_round(world: World, owned: Owned) -> None:
    async with beside(world, None) as one, beside(world, None) as two:
        hops: list[str] = []

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                hops.append(scope["path"])
                await two.app(scope, receive, send)

        async with served(counted) as address, served(world_app(one)) as back:
            one.directory.address, two.directory.address = address, back
            reply = await one.post("/v1/charges", {"key_id": owned.id, "request_id": "r", "amount_micros": 1})

    assert (reply.status, reply.code) == (503, "not_owner")
    assert 1 < len(hops) < 60


# -- an owner that breaks


class Breaking:
    """Answers requests, or hangs up in the middle of them."""

    def __init__(self, breaks: int) -> None:
        self.breaks = breaks
        self.bodies: list[bytes] = []
        self.server: asyncio.Server | None = None

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line.split(b":")[1])
                        for line in head.lower().split(b"\r\n")
                        if b"content-length" in line
                    ),
                    0,
                )
                self.bodies.append(await reader.readexactly(length))
                if len(self.bodies) <= self.breaks:
                    break
                writer.write(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
        writer.close()


@asynccontextmanager
async def breaking(breaks: int) -> AsyncGenerator[tuple[Breaking, str]]:
    owner = Breaking(breaks)
    server = await asyncio.start_server(owner.handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield owner, f"http://127.0.0.1:{port}"
    finally:
        server.close()


@pytest.mark.parametrize(
    "method,path,headers",
    [
        ("POST", "/v1/charges", {}),
        ("POST", "/v1/verify", {}),
        ("GET", "/v1/keys", {}),
        ("POST", "/v1/keys", {"idempotency_key": "once"}),
    ],
)
async def test_what_can_be_repeated_is_repeated_when_the_owner_hangs_up(
    world: World, method: str, path: str, headers: dict[str, str]
) -> None:
    async with breaking(2) as (owner, address), beside(world, address) as other:
        reply = await other.ask(method, path, {"n": 1}, **headers)

    assert (reply.status, len(owner.bodies)) == (201, 3)
    assert set(owner.bodies) == {b'{"n": 1}'}


@pytest.mark.parametrize("method,path", [("POST", "/v1/keys"), ("DELETE", "/v1/keys/key_1")])
async def test_what_may_have_happened_is_not_repeated_but_told(world: World, method: str, path: str) -> None:
    async with breaking(1) as (owner, address), beside(world, address) as other:
        reply = await other.ask(method, path, {"n": 1})

    assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "outcome_unknown", "1")
    assert len(owner.bodies) == 1


async def test_what_was_certainly_not_sent_is_sent_to_the_next_owner(world: World) -> None:
    async with breaking(0) as (owner, address), beside(world, "http://127.0.0.1:1") as other:
        asking = asyncio.create_task(other.post("/v1/keys", {"n": 1}))
        await asyncio.sleep(0.2)
        other.directory.address = address
        reply = await asking

    assert (reply.status, len(owner.bodies)) == (201, 1)


async def test_an_owner_that_hangs_is_left_when_another_takes_over(world: World) -> None:
    async def hangs(scope: Any, _receive: Any, _send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(60)

    async with served(hangs) as stuck, breaking(0) as (owner, address), beside(world, stuck) as other:
        asking = asyncio.create_task(other.post("/v1/charges", {"n": 1}))
        await asyncio.sleep(0.2)
        other.directory.address = address
        reply = await asyncio.wait_for(asking, 5)

    assert (reply.status, len(owner.bodies)) == (201, 1)


# -- answers that go on


async def test_a_stream_is_passed_on_as_it_comes_and_ends_with_the_client(world: World) -> None:
    ended = asyncio.Event()

    async def feed(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        with contextlib.suppress(asyncio.CancelledError):
            gone = asyncio.create_task(receive())
            for number in range(1_000):
                body = f"id: 0-{number}\n\n".encode()
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.wait({gone}, timeout=0.01)
                if gone.done():
                    break
            gone.cancel()
        ended.set()

    async with served(feed) as address, beside(world, address) as other:
        received: list[bytes] = []
        hung_up = asyncio.Event()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await hung_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            received.append(message.get("body", b""))
            if len(received) > 3:
                hung_up.set()

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/v1/events",
            "raw_path": b"/v1/events",
            "query_string": b"",
            "headers": [(b"accept", b"text/event-stream")],
            "client": ("192.0.2.7", 1),
        }
        await asyncio.wait_for(other.app(scope, receive, send), 5)
        await asyncio.wait_for(ended.wait(), 5)

    assert b"id: 0-0" in b"".join(received)


@pytest.mark.parametrize(
    "method, target",
    [
        ("GET", "/v1/self"),
        ("GET", "/v1/reservations/rsv_01JD0000000000000000000000"),
        ("GET", "/v1/forward-auth"),
        ("POST", "/v1/forward-auth"),
    ],
)
async def test_what_was_asked_for_is_passed_on_by_an_owner_that_is_one_no_more(
    world: World, owned: Owned, method: str, target: str
) -> None:
    """It slept, say, and learns only while it answers that another process took over meanwhile."""
    headers = {
        "x-api-key": owned.secret,
        "x-keyledger-proxy-key": await world.make_root("verify", "charges:write"),
        "x-keyledger-cost-micros": "5",
        "x-keyledger-request-id": "r1",
    }
    forwarded = target == "/v1/forward-auth"
    if not forwarded:
        headers["authorization"] = f"Bearer {world.root if 'reservations' in target else owned.secret}"
    async with served(nothing_else) as address:
        forwarder = Forwarder(
            Directory(address), world.ledger, own_address="http://owner.test", key=lambda: KEY
        )
        world.serve(forwarder=forwarder)
        world.ledger.fences.lost()
        try:
            async with asyncio.timeout(10):
                asked = f"{target}?keyspace_id={owned.key.keyspace_id}" if forwarded else target
                reply = await call(world.app, method, asked, headers=headers, body=b"a body", chunks=2)
        finally:
            await forwarder.close()

    assert reply.body == f"router: {method} {target}".encode()


async def test_what_every_process_tells_of_itself_is_not_forwarded(pair: tuple[World, Beside]) -> None:
    owner, other = pair
    owner.app.router = nothing_else
    reply: Reply = await call(other.app, "GET", "/healthz")

    assert reply.json == {"status": "alive"}


async def test_the_first_process_alone_needs_no_forwarder() -> None:
    async with running_world() as world:
        world.ledger.standing.owner = False
        reply = await world.ask("GET", "/v1/self")

    assert (reply.status, reply.code) == (503, "not_owner")


async def test_no_target_sends_a_request_to_another_host(pair: tuple[World, Beside]) -> None:
    _, other = pair
    heard: list[bytes] = []

    async def bystander(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"for the private network only"})

    async with served(bystander) as address:
        host = address.removeprefix("http://")
        told = [await call(other.app, method, f"*@{host}/private") for method in ("GET", "POST")]

    assert heard == []
    assert [(reply.status, reply.code) for reply in told] == [(400, "malformed_request")] * 2


async def test_text_that_is_none_is_refused_whichever_is_asked(
    pair: tuple[World, Beside], owned: Owned
) -> None:
    owner, other = pair
    proxy = await owner.make_root("verify")
    shown = [
        ("X-Keyledger-Proxy-Key", proxy), ("Authorization", f"Bearer {owned.secret}"),
        ("X-Keyledger-Model", "m\xe9"),
    ]  # fmt: skip
    target = f"/v1/forward-auth?keyspace_id={owned.key.keyspace_id}"
    told = [await call(one.app, "GET", target, headers=shown) for one in (owner, other)]

    assert [(reply.status, reply.code) for reply in told] == [(400, "invalid_request")] * 2
