"""What a stranger may take of a connection: both sides of every border, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import pytest
import structlog

from services.api.serving.connection_bounds import Bounds, Connections
from services.api.serving.server import address_of, listen, serve
from tests.api.test_at_once import Client, Toy, post

PATHS = ["/now", "/elsewhere"]
"""Answered at once, and the usual way."""
NEVER = 1e9


class Served(NamedTuple):
    """A server, its connections, and what is asked of it."""

    connections: Connections
    port: int
    toy: Toy

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def after(self, seconds: float) -> None:
        """What was sent has been read and seen, and then so much time passes."""
        await asyncio.sleep(0.05)
        self.connections.sweep(0)
        self.connections.sweep(seconds)

    def refused(self) -> dict[str, int]:
        return {reason: times for reason, times in self.connections.refused.items() if times}


@contextlib.asynccontextmanager
async def serving(**bounds: Any) -> AsyncGenerator[Served]:
    connections = Connections(Bounds(sweep_seconds=NEVER, **bounds))  # the tests say when time passes
    toy, listener, stop, started = Toy(), listen("127.0.0.1", 0), asyncio.Event(), asyncio.Event()
    port = int(address_of(listener).rpartition(":")[2])

    async def on_started() -> None:
        started.set()

    running = asyncio.create_task(
        serve(toy, [listener], stop, on_started=on_started, connections=connections)
    )
    await started.wait()
    try:
        yield Served(connections, port, toy)
    finally:
        stop.set()
        await asyncio.wait_for(running, 10)


@pytest.fixture
async def server() -> AsyncGenerator[Served]:
    async with serving() as served:
        yield served


def head(path: str, *headers: str, length: int = 0) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {length}", *headers]).encode()


def with_header_bytes(path: str, size: int) -> bytes:
    """A request whose headers are of this size: names, values, and 4 bytes for each."""
    rest = size - len("Host") - len("a") - 4 - len("Content-Length") - 1 - 4 - len("X") - 4
    return head(path, f"X: {'x' * rest}") + b"\r\n\r\n"


def with_headers(path: str, number: int) -> bytes:
    return head(path, *(f"X-{n}: {n}" for n in range(number - 2))) + b"\r\n\r\n"


def with_url(path: str, size: int) -> bytes:
    return head(f"{path}?{'x' * (size - len(path) - 1)}") + b"\r\n\r\n"


async def refusal(client: Client, status: int, code: str) -> None:
    """The whole of a refusal, and the end of the connection."""
    told, headers, body = await client.answer()
    problem = json.loads(body)

    assert (told, problem["code"], problem["status"]) == (status, code, status)
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"connection"] == b"close"
    assert headers[b"x-request-id"].decode() == problem["request_id"]
    assert await client.is_closed()


BORDERS = [
    (with_header_bytes, 32_768, 431, "headers_too_large"),
    (with_headers, 100, 431, "headers_too_large"),
    (with_url, 8_192, 414, "url_too_long"),
]


@pytest.mark.parametrize("way", [(path, piece) for path in PATHS for piece in (1_000_000, 997)])
@pytest.mark.parametrize("border", BORDERS)
async def test_what_is_as_large_as_it_may_be_is_taken_and_one_more_is_not(
    server: Served, border: tuple[Any, int, int, str], way: tuple[str, int]
) -> None:
    (make, most, status, code), (path, piece) = border, way
    async with server.connected() as client:
        for size in (most, most - 1, most):  # on one connection: what went before does not count
            await pieces(client, make(path, size), piece)
            assert (await client.answer())[0] == 200
        await pieces(client, make(path, most + 1), piece)

        await refusal(client, status, code)
    assert sum(server.refused().values()) == 1


async def pieces(client: Client, data: bytes, size: int) -> None:
    for start in range(0, len(data), size):
        await client.send(data[start : start + size])
        await asyncio.sleep(0)


@pytest.mark.parametrize("make,most,status,code", BORDERS)
async def test_a_border_is_the_same_behind_another_request(
    server: Served, make: Any, most: int, status: int, code: str
) -> None:
    async with server.connected() as client:
        await client.send(post("/now", b"first" * 5_000) + make("/now", most) + make("/now", most + 1))
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]

        await refusal(client, status, code)


async def test_one_endless_header_is_refused_before_it_is_kept(server: Served) -> None:
    async with server.connected() as client:
        await client.send(head("/now", "X: " + "x" * 60_000))

        await refusal(client, 431, "headers_too_large")


async def test_an_endless_url_is_refused_before_it_is_kept(server: Served) -> None:
    async with server.connected() as client:
        await client.send(b"GET /" + b"x" * 20_000)

        await refusal(client, 414, "url_too_long")


async def test_line_ends_without_end_are_refused(server: Served) -> None:
    async with server.connected() as client:
        await client.send(b"\r\n" * 50_000)

        await refusal(client, 431, "headers_too_large")


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("path", PATHS)
async def test_trailers_have_the_same_bounds_and_are_not_headers(server: Served, path: str) -> None:
    begun = b"POST %b HTTP/1.1\r\nHost: a\r\n%b5\r\nhello\r\n0\r\n" % (path.encode(), CHUNKED)
    way = b"at once" if path == "/now" else b"as usual"
    largest = b"X: " + b"x" * (32_768 - 5) + b"\r\n"
    many = [b"X-%d: y\r\n" % n for n in range(101)]
    async with server.connected() as client:
        for trailers in (largest, b"".join(many[:100])):
            await client.send(begun + trailers + b"\r\n")
            assert await client.body() == b"%b: POST %b  hello" % (way, path.encode())
    for trailers in (largest.replace(b": ", b": x"), b"".join(many), b"X: " + b"x" * 100_000):
        async with server.connected() as client:
            await client.send(begun + trailers + b"\r\n")

            await refusal(client, 431, "headers_too_large")


async def test_a_chunks_extension_cannot_grow_without_end(server: Served) -> None:
    async with server.connected() as client:
        await client.send(b"POST /now HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"5;" + b"x" * 100_000)

        await refusal(client, 431, "headers_too_large")


async def test_a_large_body_is_no_header(server: Served) -> None:
    async with server.connected() as client:
        await client.send(post("/elsewhere", b"x" * 1_000_000))
        assert await client.body() == b"as usual: POST /elsewhere  1000000 bytes"

        chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [b"x" * 50_000] * 10)
        await client.send(b"POST /now HTTP/1.1\r\nHost: a\r\n" + CHUNKED + chunks + b"0\r\n\r\n")
        assert await client.body() == b"as usual: POST /now  500000 bytes"

        small = b"40\r\n" + b"x" * 64 + b"\r\n"
        await client.send(b"POST /now HTTP/1.1\r\nHost: a\r\n" + CHUNKED + small * 10_000 + b"0\r\n\r\n")
        assert await client.body() == b"as usual: POST /now  640000 bytes"


async def test_another_ledger_process_may_add_its_headers_to_what_it_passes_on(server: Served) -> None:
    on_behalf = b"\r\nX-Keyledger-Forwarded: 1;2;3\r\nX-Request-Id: 1\r\n\r\n"
    async with server.connected() as client:
        await client.send(with_headers("/now", 100)[:-4] + on_behalf)
        assert (await client.answer())[0] == 200
        await client.send(with_header_bytes("/now", 32_768)[:-4] + on_behalf)
        assert (await client.answer())[0] == 200
        await client.send(with_headers("/now", 110)[:-4] + on_behalf)

        await refusal(client, 431, "headers_too_large")


# -- time -----------------------------------------------------------------------------------------


async def test_a_client_that_sends_nothing_is_let_go(server: Served) -> None:
    async with server.connected() as client:
        await server.after(9)
        await server.after(0.9)
        assert server.connections.open == 1
        await server.after(0.2)

        assert await client.is_closed()
    assert server.refused() == {"silent": 1}


@pytest.mark.parametrize("before", ["", "/now", "/elsewhere"])
async def test_headers_that_do_not_come_are_not_waited_for(server: Served, before: str) -> None:
    async with server.connected() as client:
        if before:
            await client.send(post(before))
            await client.answer()
            await server.after(20)  # between two requests there is more time
        await client.send(b"POST /now HTTP/1.1\r\nHo")
        await server.after(9)
        await client.send(b"st: a\r\n")
        await server.after(0.9)
        assert server.connections.open == 1
        await server.after(0.2)

        await refusal(client, 408, "request_timeout")
    assert server.refused() == {"slow_headers": 1}


@pytest.mark.parametrize("path", PATHS)
async def test_a_body_that_does_not_come_is_not_waited_for(server: Served, path: str) -> None:
    async with server.connected() as client:
        await client.send(post(path, b"x" * 16_385)[:-1])
        await server.after(29)
        await server.after(1.9 if path == "/elsewhere" else 0.9)
        assert server.connections.open == 1
        await server.after(0.2)

        await refusal(client, 408, "request_timeout")
    assert server.refused() == {"slow_body": 1}


async def test_a_large_body_has_the_time_that_it_needs(server: Served) -> None:
    async with server.connected() as client:
        body = b"x" * 1_000_000
        await client.send(post("/elsewhere", body)[:-1])
        await server.after(80)
        await client.send(b"x")

        assert await client.body() == b"as usual: POST /elsewhere  1000000 bytes"


async def test_line_ends_do_not_keep_an_idle_connection(server: Served) -> None:
    async with server.connected() as client:
        await client.send(post("/elsewhere"))
        await client.answer()
        await client.send(b"\r\n")
        for _ in range(3):
            await server.after(5)
        await server.after(0.2)

        assert await client.is_closed()


async def test_who_waits_for_an_answer_is_not_hurried(server: Served) -> None:
    async with server.connected() as client:
        await client.send(post("/later"))
        await server.toy.arrived.wait()
        for _ in range(10):
            await server.after(60)

        server.toy.later[0].set_result("at last")

        assert (await client.answer())[0] == 201


async def test_who_takes_nothing_of_an_answer_is_given_up(server: Served) -> None:
    async with server.connected() as client:
        for _ in range(300):
            client.writer.write(post("/big"))
            await asyncio.sleep(0)
        await asyncio.sleep(0.3)
        await server.after(1)
        await server.after(29)
        assert server.connections.open == 1
        await server.after(2)
        await asyncio.sleep(0.05)

        assert server.connections.open == 0
    assert server.refused() == {"not_reading": 1}


async def test_nobody_is_refused_because_the_process_stood_still() -> None:
    connections = Connections(Bounds(header_seconds=1, sweep_seconds=0.02))
    watching = asyncio.create_task(connections.watch())
    await asyncio.sleep(0.1)
    before = connections.now
    import time  # noqa: PLC0415

    time.sleep(0.5)  # the loop is stopped, not only this test
    await asyncio.sleep(0.03)
    watching.cancel()

    assert connections.now - before < 0.2


# -- connections ----------------------------------------------------------------------------------


async def test_when_all_connections_are_taken_the_oldest_silent_one_gives_way() -> None:
    async with serving(connections=3) as server, contextlib.AsyncExitStack() as stack:
        asking = await stack.enter_async_context(server.connected())
        await asking.send(post("/now"))
        assert (await asking.answer())[0] == 200
        silent = [await stack.enter_async_context(server.connected()) for _ in range(2)]
        await silent[1].send(b"POST /now HT")
        await asyncio.sleep(0.05)

        newcomer = await stack.enter_async_context(server.connected())
        await newcomer.send(post("/now"))

        assert (await newcomer.answer())[0] == 200
        assert await is_reset(silent[0])
        assert server.connections.open == 3
        await asking.send(post("/now"))
        assert (await asking.answer())[0] == 200
        assert server.refused() == {"gave_way": 1}


async def test_when_all_are_in_use_a_newcomer_is_told_to_come_back() -> None:
    async with serving(connections=2) as server, contextlib.AsyncExitStack() as stack:
        for client in [await stack.enter_async_context(server.connected()) for _ in range(2)]:
            await client.send(post("/now"))
            assert (await client.answer())[0] == 200

        async with server.connected() as newcomer:
            status, headers, body = await newcomer.answer()
            assert (status, headers[b"retry-after"]) == (503, b"1")
            assert json.loads(body)["code"] == "too_many_connections"
            assert await newcomer.is_closed()
        await stack.aclose()
        await asyncio.sleep(0.05)
        async with server.connected() as newcomer:
            await newcomer.send(post("/now"))
            assert (await newcomer.answer())[0] == 200
        assert server.refused() == {"too_many_connections": 1}


async def is_reset(client: Client) -> bool:
    try:
        return await client.is_closed()
    except ConnectionResetError:
        return True


async def test_a_flood_of_refusals_is_one_line_of_the_log_and_all_of_them_are_counted(server: Served) -> None:
    with structlog.testing.capture_logs() as lines:
        for _ in range(20):
            async with server.connected() as client:
                await client.send(b"no HTTP at all\r\n\r\n")
                await refusal(client, 400, "malformed_request")
            await server.after(0.1)
        server.connections._say(always=True)
    await server.after(1.1)  # who was refused had so long to read why
    await asyncio.sleep(0.05)

    assert [(line["reason"], line["times"], line["last_client"]) for line in lines] == [
        ("malformed", 1, "127.0.0.1"),
        ("malformed", 19, "127.0.0.1"),
    ]
    shown = server.connections.exposition().decode()
    assert 'keyledger_connections_refused_total{reason="malformed"} 20.0' in shown
    assert "keyledger_open_connections 0.0" in shown


async def test_a_process_that_may_open_no_more_files_says_so(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("services.api.serving.connection_bounds.os.open", no_more)
    server.connections._look_for_files()
    with structlog.testing.capture_logs() as lines:
        server.connections.sweep(1)

    assert "raise its limit of open files" in lines[0]["problem"]


@pytest.mark.parametrize("target", ["*", "*@127.0.0.1/x", "*/now", "http://a", "http://a?b"])
async def test_a_target_that_names_no_path_is_refused(server: Served, target: str) -> None:
    async with server.connected() as client:
        await client.send(head(target) + b"\r\n\r\n")
        await refusal(client, 400, "malformed_request")

    assert server.refused() == {"malformed": 1}


async def test_a_target_may_name_the_host_too(server: Served) -> None:
    async with server.connected() as client:
        await client.send(head("http://a/now") + b"\r\n\r\n")

        assert (await client.answer())[0] == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("chunks, size, status", [(1_000, 1, 200), (3_000, 100, 200), (1_100, 1, 400)])
async def test_a_body_cannot_come_in_ever_so_many_small_chunks(
    server: Served, path: str, chunks: int, size: int, status: int
) -> None:
    chunk = b"%x\r\n%b\r\n" % (size, b"x" * size)
    body = f"POST {path} HTTP/1.1\r\nHost: a\r\n".encode() + CHUNKED + chunk * chunks + b"0\r\n\r\n"
    async with server.connected() as client:
        for _ in range(2):
            await client.send(body)
            if status != 200:
                await refusal(client, status, "malformed_request")
                break
            assert (await client.answer())[0] == 200
