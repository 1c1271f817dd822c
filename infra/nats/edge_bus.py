"""The ledger's side of the bus to the edges: requests in, grants and changes out.

Every message here may be lost or arrive twice; the fence's rules allow for that. But an old message
must not wait in a buffer and be sent late, so a lost connection drops its unsent messages, and a new
one is opened.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error

from infra.nats.connection import NatsUnreachableError, connect_once
from infra.nats.edge_ears import Ears
from infra.nats.edge_logins import LOGIN_SUBJECT, EdgeLogins
from keyledger_edge._nats import abandon
from keyledger_language import CHANGES_SUBJECT, GRANT_SUBJECT

log = structlog.get_logger()

_PAUSE_SECONDS: Final = 0.2
_MOST_PENDING_BYTES: Final = 4 * 1024 * 1024
_MOST_QUEUED: Final = 10_000

Handle = Callable[[bytes], tuple[str, bytes] | None]
"""Takes an edge's message; returns `<root key id>.<edge id>` and the grant, if the edge gets one."""


class EdgeBus:
    """Connected whenever NATS is reachable. `handle` is called for every message of an edge."""

    def __init__(self, url: str, *, ping_ms: int = 250) -> None:
        self._url = url
        self._pings_per_second = 1_000 / ping_ms
        self._queue: deque[tuple[str, bytes]] = deque(maxlen=_MOST_QUEUED)
        self._woken = asyncio.Event()
        self.handle: Handle = lambda _data: None
        self.speakers: Callable[[], Mapping[str, int]] = dict[str, int]
        """The root keys whose edges' messages are received, with the number of edges of each."""
        self.overflows = 0
        """How often the edges of a root key sent more messages than the ledger receives from them."""
        self._looks = False
        self._changes = 0
        self.logins: EdgeLogins | None = None
        """Decides the logins of edges; None if NATS knows them itself."""
        self.connected = False

    def publish_change(self, data: bytes) -> None:
        """Send a change to all edges. It may be lost: a gap stops an edge until a grant fills it."""
        if self.connected:
            self._changes += 1
            self._put(CHANGES_SUBJECT, data)

    def look(self) -> None:
        """Call `speakers` at once: another root key's edges may send now, or some may send more."""
        self._looks = True
        self._woken.set()

    def _put(self, subject: str, data: bytes) -> None:
        self._queue.append((subject, data))
        self._woken.set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop`, across any number of lost connections."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                await self._serve_once(stopping)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(stopping), _PAUSE_SECONDS)
        finally:
            stopping.cancel()

    async def _serve_once(self, stopping: asyncio.Task[bool]) -> None:
        try:
            client = await connect_once(self._url, "keyledger edges", most_pending_bytes=_MOST_PENDING_BYTES)
        except NatsUnreachableError:
            return
        try:
            if self.logins is not None:
                await client.subscribe(LOGIN_SUBJECT, cb=self._hear_login)
            self._queue.clear()
            self.connected = True
            await self._serve_while_connected(client, stopping)
        except (Error, OSError) as error:
            log.warning("edges.bus_lost", error=type(error).__name__)
        finally:
            self.connected = False
            await abandon(client)

    def _overflowed(self) -> None:
        self.overflows += 1

    async def _hear(self, message: Msg) -> None:
        answered = self.handle(message.data)
        if answered is not None:
            whom, grant = answered
            self._put(f"{GRANT_SUBJECT}.{whom}", grant)

    async def _hear_login(self, message: Msg) -> None:
        answer = self.logins.answer(message.data) if self.logins is not None else None
        if answer is not None and message.reply:
            self._put(message.reply, answer)

    async def _serve_while_connected(self, client: Client, stopping: asyncio.Task[bool]) -> None:
        ears = Ears(
            client,
            self._hear,
            pings_per_second=self._pings_per_second,
            call=self.look,
            overflowed=self._overflowed,
        )
        tended = -_PAUSE_SECONDS
        while client.is_connected and not stopping.done():
            if self._looks or time.monotonic() - tended >= _PAUSE_SECONDS:
                tended = time.monotonic()
                changes, self._changes, self._looks = self._changes, 0, False
                await ears.tend(self.speakers(), changes)
            while self._queue:
                subject, data = self._queue.popleft()
                await client.publish(subject, data)
            if self._looks:
                continue
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._woken.wait()
