"""The short cut through the HTTP server: the same answers as by the usual way, whatever a client does."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import pytest

from services.api.serving.at_once import ReplyLater
from services.api.serving.server import address_of, listen, serve

BIG = b"x" * 100_000


class Said(NamedTuple):
    """An answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def said(text: bytes, status: int = 200) -> Said:
    return Said(status, [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))], text)


class Toy:
    """Answers `/now` at once, `/later` when told to; says which way a request came."""

    def __init__(self) -> None:
        self.later: list[asyncio.Future[str]] = []
        self.arrived = asyncio.Event()
        self.answered = 0

    def hears(self, method: bytes, path: bytes) -> bool:
        return method != b"HEAD" and path.startswith(
            (b"/now", b"/later", b"/not-now", b"/big", b"/fails", b"/task", b"/splits")
        )

    def at_once(self, scope: Any, body: bytes) -> Said | ReplyLater | asyncio.Future[Said] | None:
        if scope["path"] == "/now":
            return said(b"at once: %b" % self.shown(scope, body))
        if scope["path"] == "/not-now":
            return None
        if scope["path"] == "/fails":
            raise LookupError(body)
        if scope["path"] == "/splits":
            return Said(200, [(b"content-length", b"0"), (b"x-said", body)], b"")
        if scope["path"] == "/task":
            return asyncio.ensure_future(self.think(body))
        if scope["path"] == "/big":
            self.answered += 1
            return said(BIG)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.later.append(future)
        self.arrived.set()

        def reply(done: asyncio.Future[str]) -> Said | None:
            if done.exception() is not None:
                return None
            return said(b"later, %b: %b" % (done.result().encode(), self.shown(scope, body)), 201)

        return ReplyLater(future, reply)

    @staticmethod
    async def think(body: bytes) -> Said:
        await asyncio.sleep(0.01)
        if body == b"nothing":
            raise LookupError
        return said(b"after thinking: %b" % body)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = said(b"as usual: %b" % self.shown(scope, body))
        await send({"type": "http.response.start", "status": 200, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    @staticmethod
    def shown(scope: Any, body: bytes) -> bytes:
        shown = body if len(body) < 100 else b"%d bytes" % len(body)
        return b"%b %b %b %b" % (
            scope["method"].encode(), scope["path"].encode(), scope["query_string"], shown,
        )  # fmt: skip


class Client:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self) -> tuple[int, dict[bytes, bytes], bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)
        first, *lines = head[:-4].split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers.get(b"content-length", b"0")))
        return int(first.split()[1]), headers, body

    async def body(self) -> bytes:
        return (await self.answer())[2]

    async def is_closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(), 15) == b""


class Running(NamedTuple):
    """A server, and how to reach and to stop it."""

    toy: Toy
    port: int
    stop: asyncio.Event
    serving: asyncio.Task[None]

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving_a_toy() -> AsyncGenerator[Running]:
    toy, listener, stop, started = Toy(), listen("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    port = int(address_of(listener).rpartition(":")[2])

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(serve(toy, [listener], stop, on_started=on_started))
    await started.wait()
    try:
        yield Running(toy, port, stop, serving)
    finally:
        stop.set()
        await asyncio.wait_for(serving, 10)


@pytest.fixture
async def server() -> AsyncGenerator[Running]:
    async with serving_a_toy() as running:
        yield running


def post(path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_a_whole_request_is_answered_at_once_and_the_connection_goes_on(server: Running) -> None:
    async with server.connected() as client:
        for number in range(3):
            await client.send(post(f"/now?n={number}", b"x" * number))

            status, headers, body = await client.answer()

            assert (status, body) == (200, b"at once: POST /now n=%d %b" % (number, b"x" * number))
            assert headers[b"content-type"] == b"text/plain"
            assert b"date" in headers
            assert b"connection" not in headers


async def test_a_body_that_comes_in_pieces_is_put_together(server: Running) -> None:
    async with server.connected() as client:
        whole = post("/now", b"hello world")
        for byte in range(len(whole)):
            await client.send(whole[byte : byte + 1])
            await asyncio.sleep(0)
        assert await client.body() == b"at once: POST /now  hello world"

        await client.send(b"POST /now HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        await client.send(b"5\r\nhello\r\n")
        await client.send(b"6\r\n world\r\n0\r\n\r\n")
        assert await client.body() == b"at once: POST /now  hello world"


async def test_what_is_not_heard_goes_the_usual_way(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/elsewhere", b"a"))
        assert await client.body() == b"as usual: POST /elsewhere  a"

        await client.send(post("/now?a#b", b"c"))
        assert await client.body() == b"as usual: POST /now a c"

        await client.send(b"HEAD /now HTTP/1.1\r\nHost: test\r\n\r\n")
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await client.send(post("/not-now?a=b", b"c"))
        assert await client.body() == b"as usual: POST /not-now a=b c"


@pytest.mark.parametrize("size,way", [(65_536, b"at once"), (65_537, b"as usual")])
async def test_a_body_is_kept_up_to_64_kib(server: Running, size: int, way: bytes) -> None:
    async with server.connected() as client:
        await client.send(post("/now", b"x" * size))

        assert await client.body() == b"%b: POST /now  %d bytes" % (way, size)


async def test_an_old_client_and_one_that_closes_go_the_usual_way(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/now", b"a", version="1.0"))
        status, headers, body = await client.answer()
        assert (status, body) == (200, b"as usual: POST /now  a")
        assert headers[b"connection"] == b"close"
        assert await client.is_closed()
    async with server.connected() as client:
        await client.send(post("/now", b"a", "Connection: close"))
        assert await client.body() == b"as usual: POST /now  a"
        assert await client.is_closed()


async def test_who_says_how_to_go_on_is_understood(server: Running) -> None:
    for manners, version, way in (
        (["Connection: keep-alive"], "1.1", b"at once"),
        (["Connection: keep-alive"], "1.0", b"as usual"),
        (["Connection: upgrade", "Upgrade: h2c"], "1.1", b"at once"),
    ):
        async with server.connected() as client:
            await client.send(post("/now", b"", *manners, version=version))
            assert await client.body() == b"%b: POST /now  " % way


async def test_a_client_that_waits_for_a_hundred_gets_it(server: Running) -> None:
    async with server.connected() as client:
        whole = post("/now", b"abc", "Expect: 100-continue")
        await client.send(whole[:-3])
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await client.send(whole[-3:])
        assert await client.body() == b"as usual: POST /now  abc"


async def test_an_answer_can_come_later(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/later?a", b"b"))
        await server.toy.arrived.wait()

        server.toy.later[0].set_result("at last")

        status, _, body = await client.answer()
        assert (status, body) == (201, b"later, at last: POST /later a b")
        await client.send(post("/now"))
        assert await client.body() == b"at once: POST /now  "


async def test_an_answer_can_be_a_task(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/task", b"a"))
        assert await client.body() == b"after thinking: a"

        await client.send(post("/task", b"nothing"))
        assert await client.body() == b"as usual: POST /task  nothing"


async def test_an_application_that_fails_at_once_is_asked_the_usual_way(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/fails", b"a"))
        assert await client.body() == b"as usual: POST /fails  a"


async def test_no_header_can_begin_another(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/splits", b"fine"))
        assert (await client.answer())[1][b"x-said"] == b"fine"

        await client.send(post("/splits", b"fine\r\nset-cookie: mine"))
        assert await client.is_closed()


async def test_requests_behind_one_that_waits_are_answered_in_order(server: Running) -> None:
    async with server.connected() as client:
        asked = [
            post("/now", b"1"),
            post("/later", b"2"),
            post("/now", b"3"),
            post("/later", b"4"),
            post("/x"),
        ]
        await client.send(b"".join(asked))
        assert await client.body() == b"at once: POST /now  1"
        await server.toy.arrived.wait()

        server.toy.later[0].set_result("first")

        assert await client.body() == b"later, first: POST /later  2"
        # Behind one that waits, uvicorn's own queue is what keeps the order.
        assert await client.body() == b"as usual: POST /now  3"
        assert await client.body() == b"as usual: POST /later  4"
        assert await client.body() == b"as usual: POST /x  "
        await client.send(post("/now", b"5"))
        assert await client.body() == b"at once: POST /now  5"


async def test_a_later_answer_that_cannot_be_given_sends_the_request_the_usual_way(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/later", b"1") + post("/now", b"2"))
        await server.toy.arrived.wait()

        server.toy.later[0].set_exception(LookupError())

        assert await client.body() == b"as usual: POST /later  1"
        assert await client.body() == b"as usual: POST /now  2"
        await client.send(post("/later", b"3"))
        await asyncio.sleep(0.05)
        server.toy.later[1].set_exception(LookupError())
        assert await client.body() == b"as usual: POST /later  3"
        await client.send(post("/now", b"4"))
        assert await client.body() == b"at once: POST /now  4"


async def test_a_client_that_hangs_up_while_it_waits_is_given_up_and_disturbs_nobody(server: Running) -> None:
    async with server.connected() as gone:
        await gone.send(post("/later"))
        await server.toy.arrived.wait()
    await asyncio.sleep(0.05)

    assert server.toy.later[0].cancelled()

    async with server.connected() as client:
        await client.send(post("/now"))
        assert await client.body() == b"at once: POST /now  "


async def test_who_waits_when_the_server_stops_is_answered_first(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/later"))
        await server.toy.arrived.wait()
        server.stop.set()
        await asyncio.sleep(0.2)

        server.toy.later[0].set_result("still")

        status, headers, body = await client.answer()
        assert (status, body) == (201, b"later, still: POST /later  ")
        assert headers[b"connection"] == b"close"
        assert await client.is_closed()
    await asyncio.wait_for(server.serving, 5)


async def test_a_request_that_is_coming_in_when_the_server_stops_is_answered(server: Running) -> None:
    async with server.connected() as client:
        whole = post("/now", b"abcdef")
        await client.send(whole[:-3])
        await asyncio.sleep(0.05)
        server.stop.set()
        await asyncio.sleep(0.2)

        await client.send(whole[-3:])

        assert await client.body() == b"as usual: POST /now  abcdef"
        assert await client.is_closed()
    await asyncio.wait_for(server.serving, 5)


async def test_an_answer_that_is_given_up_closes_the_connection(server: Running) -> None:
    async with server.connected() as client:
        await client.send(post("/later"))
        await server.toy.arrived.wait()

        server.toy.later[0].cancel()

        assert await client.is_closed()


async def test_a_client_that_reads_nothing_is_not_answered_without_end(server: Running) -> None:
    async with server.connected() as client:
        for _ in range(1_000):
            client.writer.write(post("/big"))
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        # What the kernel takes on both sides, and one answer that waits; never the 100 MB asked for.
        assert server.toy.answered < 500

        for _ in range(1_000):
            assert (await client.body()) in (BIG, b"as usual: POST /big  ")


async def test_garbage_is_refused_as_ever(server: Running) -> None:
    async with server.connected() as client:
        await client.send(b"no HTTP at all\r\n\r\n")
        assert (await client.answer())[0] == 400
        assert await client.is_closed()


async def test_a_connection_that_nobody_uses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.serving.server._KEEP_ALIVE_SECONDS", 4)
    async with serving_a_toy() as server, server.connected() as client:
        # Whichever way it was answered, and whoever's timer runs: only idle seconds count.
        for path in ("/now", "/elsewhere", "/now", "/elsewhere", "/now"):
            await asyncio.sleep(1)
            await client.send(post(path))
            assert (await client.answer())[0] == 200
        begun = time.monotonic()

        assert await client.is_closed()
        assert 3.9 < time.monotonic() - begun < 12


async def test_a_connection_that_waits_for_its_answer_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.api.serving.server._KEEP_ALIVE_SECONDS", 1)
    async with serving_a_toy() as server, server.connected() as client:
        await client.send(post("/now"))
        assert (await client.answer())[0] == 200
        await client.send(post("/later"))
        await asyncio.sleep(1.5)

        server.toy.later[0].set_result("at last")

        assert (await client.answer())[0] == 201
        half = post("/now", b"abcdef")
        await client.send(half[:-3])
        await asyncio.sleep(1.5)
        await client.send(half[-3:])
        assert (await client.answer())[0] == 200
        assert await client.is_closed()
