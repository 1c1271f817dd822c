"""The edge's own HTTP client against a server that does everything a server may do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from keyledger_edge import (
    ConnectRequest,
    LedgerUnreachableError,
    RefusedByLedgerError,
    Verifier,
    VerifyRequest,
)
from keyledger_edge._clock import boottime_ns
from keyledger_edge._http import HttpClient
from keyledger_edge._leased_cache import LeasedCache
from keyledger_edge._ledger_client import LedgerClient
from keyledger_edge._link import EdgeLink

Answer = Callable[[str, dict[str, Any], asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Reads requests whole; the test says what comes back."""

    def __init__(self) -> None:
        self.connections = 0
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.heads: list[bytes] = []
        self.answer: Answer = self.say_ok

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                path = head.split()[1].decode()
                body = json.loads(await reader.readexactly(length))
                self.asked.append((path, body))
                self.heads.append(head)
                await self.answer(path, body, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def say_ok(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if path.endswith("batch"):
            answer: Any = {"results": [self.verdict(one) for one in body["items"]], "position": "0-1"}
        else:
            answer = self.verdict(body)
        write(writer, 200, answer)

    @staticmethod
    def verdict(_request: dict[str, Any]) -> dict[str, Any]:
        return {"valid": True, "code": "valid", "key_id": "key_1", "position": "0-1"}


def write(writer: asyncio.StreamWriter, status: int, body: Any, *headers: str) -> None:
    text = json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} whatever", f"content-length: {len(text)}", *headers]
    writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + text)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    yield server
    await server.stop()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[LedgerClient]:
    client = LedgerClient(HttpClient(await server.start(), "kl_root_x"), patience_seconds=1.0)
    yield client
    await client.close()


def use(number: int = 1) -> VerifyRequest:
    return VerifyRequest(secret="s", cost_micros=5, request_id=f"r{number}")


async def test_a_connection_is_used_again(server: Server, client: LedgerClient) -> None:
    for number in range(5):
        assert (await client.verify(use(number))).valid

    assert server.connections == 1
    assert all(b"Authorization: Bearer kl_root_x\r\n" in head for head in server.heads)


async def test_a_connection_that_was_closed_meanwhile_is_no_failure(
    server: Server, client: LedgerClient
) -> None:
    async def and_close(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await server.say_ok(path, body, writer)
        await writer.drain()
        writer.close()

    server.answer = and_close
    assert (await client.verify(use(1))).valid
    await asyncio.sleep(0.05)

    assert (await client.verify(use(2))).valid
    assert server.connections == 2


async def test_chunks_and_bodies_that_end_with_the_connection_are_read(
    server: Server, client: LedgerClient
) -> None:
    text = json.dumps(server.verdict({})).encode()
    forms = [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (text[:9], text[9:]))
        + b"0\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n" + text,
    ]

    async def by_form(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        form = forms[len(server.asked) - 1]
        writer.write(form)
        if b"1.0" in form:
            await writer.drain()
            writer.close()

    server.answer = by_form
    for number in range(2):
        assert (await client.verify(use(number))).key_id == "key_1"


async def test_what_waits_goes_together_and_each_gets_its_own_answer(
    server: Server, client: LedgerClient
) -> None:
    async def slowly(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        items = body.get("items", [body])
        verdicts = [{"valid": True, "code": "valid", "key_id": one["request_id"]} for one in items]
        write(writer, 200, {"results": verdicts} if "items" in body else verdicts[0])

    server.answer = slowly
    answers = await asyncio.gather(*(client.verify(use(number)) for number in range(200)))

    assert [one.key_id for one in answers] == [f"r{number}" for number in range(200)]
    assert len(server.asked) < 20


async def test_an_item_that_is_refused_spoils_no_other(server: Server, client: LedgerClient) -> None:
    async def mixed(_path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.02)
        problem = {"type": "x", "status": 409, "code": "idempotency_conflict"}
        items = body.get("items", [body])
        results = [problem if one["request_id"] == "r7" else server.verdict(one) for one in items]
        write(writer, 200, {"results": results} if "items" in body else results[0])

    server.answer = mixed
    answers = await asyncio.gather(
        *(client.verify(use(number)) for number in range(20)), return_exceptions=True
    )
    refused = answers.pop(7)

    assert isinstance(refused, RefusedByLedgerError)
    assert (refused.status, refused.reason) == (409, "idempotency_conflict")
    assert all(not isinstance(one, BaseException) and one.valid for one in answers)


async def test_what_may_have_happened_is_asked_again_with_the_same_request_id(
    server: Server, client: LedgerClient
) -> None:
    async def lose_the_first(path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if len(server.asked) == 1:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
            await writer.drain()
            writer.transport.abort()
        elif len(server.asked) == 2:
            write(writer, 503, {"code": "not_owner", "status": 503})
        else:
            await server.say_ok(path, body, writer)

    server.answer = lose_the_first

    assert (await client.verify(VerifyRequest(secret="s", cost_micros=5))).valid
    ids = {body["request_id"] for _, body in server.asked}
    assert len(server.asked) == 3
    assert len(ids) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"nonsense\r\n\r\n",
        b"nonsense without an end " * 10_000,
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n??",
    ],
)
async def test_garbage_is_no_answer(server: Server, client: LedgerClient, garbage: bytes) -> None:
    async def babble(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)
        await writer.drain()
        writer.close()

    server.answer = babble
    with pytest.raises(LedgerUnreachableError):
        await client.verify(use())


async def test_garbage_while_it_joins_does_not_stop_an_edge(server: Server) -> None:
    async def babble(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b"nonsense without an end " * 10_000)
        await writer.drain()
        writer.close()

    server.answer = babble
    verifier = Verifier.at(await server.start(), "kl_root_x")
    verifier.start()
    async with asyncio.timeout(10):
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
    problem = verifier.problem
    await verifier.close()

    assert problem is not None


async def test_a_refusal_is_not_asked_again(server: Server, client: LedgerClient) -> None:
    async def refuse(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        write(writer, 403, {"code": "permission_denied", "status": 403})

    server.answer = refuse
    with pytest.raises(RefusedByLedgerError):
        await client.verify(use())
    with pytest.raises(RefusedByLedgerError):
        await client.connect(ConnectRequest(incarnation="0" * 32))
    with pytest.raises(LedgerUnreachableError):
        await client.fill(bytes(32), "ks_1")

    assert len(server.asked) == 3


async def test_nobody_there_is_unreachable_and_never_shows_a_secret() -> None:
    client = LedgerClient(HttpClient("http://127.0.0.1:9", "kl_root_x"), patience_seconds=0.2)
    with pytest.raises(LedgerUnreachableError) as caught:
        await client.verify(VerifyRequest(secret="kl_live_secret", request_id="r"))

    assert "kl_live_secret" not in repr(caught.value)
    assert "kl_root_x" not in repr(caught.value)


@pytest.mark.parametrize("url", ["ftp://x", "keys.example.com", "http://"])
def test_an_address_that_is_none_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="https://host:port"):
        HttpClient(url, "k")


# -- terms that are none

TERMS: dict[str, Any] = {
    "edge_id": "edge_1", "root_key_id": "key_1", "nonce": "ab" * 24, "edge_key": "cd" * 32, "keyspaces": [],
    "lease_ms": 1_000, "ping_ms": 10, "drift": 0.01, "max_serve_stale_ms": 0, "partition": 0, "epoch": 1,
    "lineage": "bGluZWFnZTE=", "as_of": 1,
    "nats_urls": ["nats://127.0.0.1:1"],
}  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "zz" * 24}, {"nonce": "ab"}, {"edge_key": "no hex"}, {"edge_key": "cd" * 65},
        {"edge_key": ""}, {"edge_key": None}, {"edge_id": ""}, {"root_key_id": "k" * 65},
        {"lease_ms": 10**300}, {"ping_ms": 0}, {"drift": 2.0}, {"max_serve_stale_ms": -1},
        {"partition": 2**70}, {"epoch": -1}, {"keyspaces": None}, {"as_of": -1}, {"lineage": 7},
        b"\xff", b'"\xff"', b'{"edge_id": "\xff"}', b"[" * 100_000, b"", b"null",
    ],
    ids=lambda wrong: str(wrong)[:30],
)  # fmt: skip
async def test_an_edge_asks_again_when_it_is_told_nonsense(
    server: Server, client: LedgerClient, wrong: dict[str, Any] | bytes
) -> None:
    good = asyncio.Event()

    async def nonsense_first(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if len(server.asked) > 2:
            write(writer, 200, TERMS)
            good.set()
        elif isinstance(wrong, bytes):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(wrong), wrong))
        else:
            write(writer, 200, TERMS | wrong)

    server.answer = nonsense_first
    link = EdgeLink(client, LeasedCache(boottime_ns), version="")
    with pytest.raises(LedgerUnreachableError):
        await link.connect(wait_seconds=0)
    link.start()
    try:
        await asyncio.wait_for(good.wait(), 5)
        async with asyncio.timeout(5):
            while link.edge_id is None or link.refusal is not None:
                await asyncio.sleep(0.01)
        assert not link._tasks[-1].done()
    finally:
        await link.close()
