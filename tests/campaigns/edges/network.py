"""A network that misbehaves: a TCP proxy that delays, cuts one way, drips and resets, per edge."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Literal, Self

Way = Literal["up", "down"]
_CHUNK = 64 * 1024
_NAME = re.compile(rb'"(?:edge_id|name)"\s*:\s*"(edge_[0-9A-Z]{26})"')
_NAME_IS_WITHIN = 4_096
_DRIP_BYTES, _DRIP_SECONDS = 7, 0.002


@dataclass
class Weather:
    """How it is on the way of one edge to one server."""

    delay: dict[Way, float] = field(default_factory=lambda: {"up": 0.0, "down": 0.0})
    cut: dict[Way, asyncio.Event] = field(default_factory=lambda: {"up": _set(), "down": _set()})
    """Set: bytes pass."""
    drip: bool = False
    flows: set[Flow] = field(default_factory=set)

    def clear(self) -> None:
        self.drip = False
        for way in self.cut:
            self.delay[way] = 0.0
            self.cut[way].set()

    def reset(self) -> None:
        for flow in list(self.flows):
            flow.reset()


class Flow:
    """One connection through the proxy."""

    def __init__(self, weather: Weather, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.weather = weather
        self._writers = (near, far)

    def move(self, weather: Weather) -> None:
        """Whose connection it is has turned out."""
        self.weather.flows.discard(self)
        self.weather = weather
        weather.flows.add(self)

    async def pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: Way,
        seen: Callable[[bytes], None],
    ) -> None:
        passed = 0
        while data := await reader.read(_CHUNK):
            if passed < _NAME_IS_WITHIN:
                seen(data)
            passed += len(data)
            await self.weather.cut[way].wait()
            if self.weather.delay[way]:
                await asyncio.sleep(self.weather.delay[way])
            await self._pass(writer, data)

    async def _pass(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data:
            some = data[:_DRIP_BYTES] if self.weather.drip else data
            data = data[len(some) :]
            writer.write(some)
            await writer.drain()
            if data:
                await asyncio.sleep(_DRIP_SECONDS)

    def reset(self) -> None:
        """Drop it with an RST, so that neither side may take it for an end in order."""
        for writer in self._writers:
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError, AttributeError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Network:
    """One way to NATS that all edges share, as they are all told one address; one to HTTP for each."""

    def __init__(self, edges: int, nats: tuple[str, int], ledgers: list[tuple[str, int]]) -> None:
        self.nats_weather = [Weather() for _ in range(edges)]
        self.http_weather = [Weather() for _ in range(edges)]
        self.nats_port = 0
        self.http_ports: list[int] = []
        self._fair = Weather()
        self._nats = nats
        self._ledgers = ledgers
        self._owners: dict[bytes, int] = {}
        self._servers = AsyncExitStack()
        self._flows: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self.nats_port = await self._listen(None)
        for edge in range(len(self.http_weather)):
            self.http_ports.append(await self._listen(edge))
        return self

    async def __aexit__(self, *_: object) -> None:
        for flow in self._flows:
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)
        await self._servers.aclose()

    async def _listen(self, edge: int | None) -> int:
        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            flow = asyncio.create_task(self._carry(edge, reader, writer))
            self._flows.add(flow)
            flow.add_done_callback(self._flows.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.callback(server.close)
        port: int = server.sockets[0].getsockname()[1]
        return port

    async def _carry(
        self, edge: int | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, port = self._nats if edge is None else self._ledgers[edge % len(self._ledgers)]
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        weather = self._fair if edge is None else self.http_weather[edge]
        flow = Flow(weather, writer, far_writer)
        flow.move(weather)

        def seen(data: bytes) -> None:
            if (found := _NAME.search(data)) is None:
                return
            if edge is not None:
                self._owners[found[1]] = edge
            elif found[1] in self._owners:
                flow.move(self.nats_weather[self._owners[found[1]]])

        up = asyncio.create_task(flow.pump(reader, far_writer, "up", seen))
        down = asyncio.create_task(flow.pump(far_reader, writer, "down", seen))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            flow.weather.flows.discard(flow)
            for one in (writer, far_writer):
                one.transport.abort()


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
