"""Who asks for another protocol is answered in HTTP/1.1, body and all; a body is never a next request."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from tests.api.test_at_once import Client, post
from tests.api.test_bounds import PATHS, Served, serving

SMUGGLED = b"GET /now?smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
WISHES = {
    "Java's clients": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    "a websocket": ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
    "behind an old proxy": ["Proxy-Connection: upgrade", "Upgrade: h2c"],
}  # fmt: skip


@pytest.fixture
async def server() -> AsyncGenerator[Served]:
    async with serving() as served:
        yield served


def shown(path: str, query: bytes, body: bytes, method: bytes = b"POST") -> bytes:
    way = b"at once" if path == "/now" else b"as usual"
    return b"%b: %b %b %b %b" % (way, method, path.encode(), query, body)


async def is_quiet(client: Client) -> bool:
    """Is nothing more said before the answer to what is asked now?"""
    await client.send(post("/now?after", b"b"))
    return await client.body() == shown("/now", b"after", b"b")


@pytest.mark.parametrize("wish", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("pieces", ["one", "head and body", "bytes"])
async def test_its_body_is_its_own(server: Served, path: str, wish: list[str], pieces: str) -> None:
    whole = post(path, SMUGGLED, *wish)
    head = len(whole) - len(SMUGGLED)
    cuts = {"one": [], "head and body": [head], "bytes": list(range(1, len(whole)))}[pieces]
    async with server.connected() as client:
        for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
            await client.send(whole[start:end])

        assert await client.body() == shown(path, b"", SMUGGLED)
        assert await is_quiet(client)
    assert server.refused() == {}


@pytest.mark.parametrize("path", PATHS)
async def test_so_it_is_in_chunks_and_without_a_body(server: Served, path: str) -> None:
    wish = "Connection: upgrade\r\nUpgrade: h2c\r\n"
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)
    async with server.connected() as client:
        chunked = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{wish}\r\n"
        await client.send(chunked.encode() + chunks)
        assert await client.body() == shown(path, b"", SMUGGLED)
        await client.send(f"GET {path}?a HTTP/1.1\r\nHost: a\r\n{wish}\r\n".encode())
        assert await client.body() == shown(path, b"a", b"", method=b"GET")
        assert await is_quiet(client)


@pytest.mark.parametrize("path", PATHS)
async def test_many_that_come_together_are_each_answered(server: Served, path: str) -> None:
    count = 400
    wish = ["Connection: upgrade", "Upgrade: h2c"]
    async with server.connected() as client:
        await client.send(b"".join(post(f"{path}?{n}", b"%d" % n, *wish) for n in range(count)))

        for n in range(count):
            assert await client.body() == shown(path, b"%d" % n, b"%d" % n)
        assert await is_quiet(client)


@pytest.mark.parametrize("path", PATHS)
async def test_it_is_bounded_like_any_other(server: Served, path: str) -> None:
    too_many = [f"X-{n}: a" for n in range(server.connections.bounds.headers)]
    async with server.connected() as client:
        await client.send(post(path, b"a", "Connection: upgrade", "Upgrade: h2c", *too_many))
        status, _, _ = await client.answer()
        assert status == 431


async def test_a_tunnel_is_refused(server: Served) -> None:
    async with server.connected() as client:
        await client.send(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n" + SMUGGLED)
        status, _, _ = await client.answer()
        assert status == 400
        assert await client.is_closed()
