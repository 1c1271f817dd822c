"""An edge that is closed ends: whatever it is in the middle of, and however often it must be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra.nats.connection import connect_once
from keyledger_edge import _link
from keyledger_edge._clock import boottime_ns
from keyledger_edge._http import HttpClient
from keyledger_edge._leased_cache import LeasedCache
from keyledger_edge._ledger_client import LedgerClient
from keyledger_edge._link import EdgeLink
from keyledger_edge._nats import BusUnreachableError, NatsConnection, abandon
from tests.contract.test_edge_http import TERMS, Server, write

_SECONDS = 5.0


async def _ignore(_message: object) -> None:
    pass


class SilentNats:
    """Takes connections, and says nothing."""

    def __init__(self) -> None:
        self.connected = asyncio.Event()
        self.left = asyncio.Event()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"nats://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set()
        try:
            await reader.read()
        except OSError:
            pass
        finally:
            self.left.set()
            writer.close()


@pytest.fixture
async def nats() -> AsyncIterator[SilentNats]:
    nats = SilentNats()
    yield nats
    await nats.stop()


@pytest.fixture
async def link(nats: SilentNats) -> AsyncIterator[EdgeLink]:
    """Of an edge that the ledger took, and that NATS keeps waiting."""
    server, terms = Server(), TERMS | {"nats_urls": [await nats.start()]}

    async def take(_path: str, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        write(writer, 200, terms)

    server.answer = take
    client = LedgerClient(HttpClient(await server.start(), "kl_root_x"))
    yield EdgeLink(client, LeasedCache(boottime_ns), version="")
    await server.stop()


async def test_who_closes_while_it_connects_leaves_no_socket(nats: SilentNats, link: EdgeLink) -> None:
    await link.connect(wait_seconds=0)
    await asyncio.wait_for(nats.connected.wait(), _SECONDS)

    await asyncio.wait_for(link.close(), _SECONDS)

    await asyncio.wait_for(nats.left.wait(), _SECONDS)


async def test_a_ledger_that_gives_up_connecting_leaves_no_socket_either(nats: SilentNats) -> None:
    connecting = asyncio.create_task(connect_once(await nats.start(), "test", most_pending_bytes=1_000))
    await asyncio.wait_for(nats.connected.wait(), _SECONDS)

    connecting.cancel()
    await asyncio.wait([connecting], timeout=_SECONDS)

    assert connecting.cancelled()
    await asyncio.wait_for(nats.left.wait(), _SECONDS)


async def test_a_server_that_hangs_is_given_its_time_and_the_socket_is_dropped() -> None:
    left, serving = asyncio.Event(), set[asyncio.Task[Any] | None]()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        writer.write(b'INFO {"max_payload":1048576}\r\n')
        await reader.readuntil(b"PING\r\n")
        writer.write(b"PONG\r\n")
        # From here on nothing is read: what is published fills both ends' buffers, and stays there.
        while not writer.is_closing():
            try:
                await asyncio.sleep(0.01)
                writer.write(b"+OK\r\n")
                await writer.drain()
            except OSError:
                break
        left.set()
        writer.transport.abort()

    async with await asyncio.start_server(hang, "127.0.0.1", 0, limit=1_024) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = await connect_once(url, "test", most_pending_bytes=64 << 20)
        await client.subscribe("answers", cb=_ignore)
        others = asyncio.all_tasks()
        for _ in range(16):
            await client.publish("subject", bytes(1 << 20))
        loop = asyncio.get_running_loop()
        began = loop.time()

        await asyncio.wait_for(abandon(client, seconds=0.2), _SECONDS)

        assert loop.time() - began >= 0.2
        await asyncio.wait_for(left.wait(), _SECONDS)
        assert all(task.done() for task in others - {asyncio.current_task(), *serving})


async def test_a_server_that_answers_is_left_at_once(nats_url: str) -> None:
    client = await connect_once(nats_url, "test", most_pending_bytes=1_000)
    loop = asyncio.get_running_loop()
    began = loop.time()

    await abandon(client, seconds=_SECONDS)

    assert client.is_closed
    assert loop.time() - began < _SECONDS / 2


async def test_a_cancellation_that_was_lost_is_said_again(
    link: EdgeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, lost = asyncio.Event(), asyncio.Event()

    async def connect(*_about: object) -> NatsConnection:
        waiting.set()
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            # As `asyncio.wait_for` does before Python 3.12, if what it waits for is done in the same moment.
            if lost.is_set():
                raise
            lost.set()
        raise BusUnreachableError

    monkeypatch.setattr(NatsConnection, "connect", connect)
    monkeypatch.setattr(_link, "_CANCEL_AGAIN_SECONDS", 0.05)
    await link.connect(wait_seconds=0)
    await asyncio.wait_for(waiting.wait(), _SECONDS)

    await asyncio.wait_for(link.close(), _SECONDS)

    assert lost.is_set()
