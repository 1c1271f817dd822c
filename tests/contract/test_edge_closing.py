"""An edge that is closed ends: whatever it is in the middle of, and however often it must be told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from infra.nats.connection import connect_once
from keyledger_edge import _link
from keyledger_edge._bus import BusUnreachableError, EdgeBus
from keyledger_edge._clock import boottime_ns
from keyledger_edge._http import HttpClient
from keyledger_edge._leased_cache import LeasedCache
from keyledger_edge._ledger_client import LedgerClient
from keyledger_edge._link import EdgeLink
from tests.contract.test_edge_http import TERMS, Server, write

_SECONDS = 5.0


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


async def test_a_cancellation_that_was_lost_is_said_again(
    link: EdgeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, lost = asyncio.Event(), asyncio.Event()

    async def connect(*_about: object) -> EdgeBus:
        waiting.set()
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            # As `asyncio.wait_for` does before Python 3.12, if what it waits for is done in the same moment.
            if lost.is_set():
                raise
            lost.set()
        raise BusUnreachableError

    monkeypatch.setattr(EdgeBus, "connect", connect)
    monkeypatch.setattr(_link, "_CANCEL_AGAIN_SECONDS", 0.05)
    await link.connect(wait_seconds=0)
    await asyncio.wait_for(waiting.wait(), _SECONDS)

    await asyncio.wait_for(link.close(), _SECONDS)

    assert lost.is_set()
