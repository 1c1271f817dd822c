"""How far the stream has been filled, observed outside the relay: the ledger shows it as a metric."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from nats.aio.client import Client
from nats.errors import Error
from nats.js.errors import NotFoundError

from domain.publishing import StreamEnd, place_in
from infra.nats.connection import NatsUnreachableError, connect_once
from infra.nats.public_stream import read_end
from infra.nats.streams import stream_name
from keyledger_edge._nats import abandon

_LOOK_SECONDS: Final = 1.0
_REQUEST_SECONDS: Final = 2.0
_MOST_PENDING_BYTES: Final = 1 << 16


class PublishedWatch:
    """Reads the end of a partition's stream every second."""

    def __init__(self, url: str, partition: int, *, log_id: str, epoch: Callable[[], int]) -> None:
        self._url = url
        self._partition = partition
        self._log_id = log_id
        self._epoch = epoch
        self.reachable = False
        """Whether JetStream answered the last time."""
        self.position: int | None = None
        """The last event that is known to be published."""

    async def run(self, stop: asyncio.Event) -> None:
        """Read until `stop`; after a lost connection, connect again."""
        while not stop.is_set():
            with contextlib.suppress(NatsUnreachableError, Error, OSError):
                await self._look_on_a_connection(stop)
            self.reachable = False
            await _pause(stop)

    async def _look_on_a_connection(self, stop: asyncio.Event) -> None:
        client = await connect_once(self._url, "keyledger watch", most_pending_bytes=_MOST_PENDING_BYTES)
        try:
            while not stop.is_set():
                self._note(await self._end(client))
                await _pause(stop)
        finally:
            await abandon(client)

    async def _end(self, client: Client) -> StreamEnd:
        try:
            return await read_end(client.jetstream(timeout=_REQUEST_SECONDS), stream_name(self._partition))
        except NotFoundError:
            return StreamEnd(0, None)

    def _note(self, end: StreamEnd) -> None:
        place = place_in(end.headers)
        ours = place is not None and (place.log_id, place.epoch) == (self._log_id, self._epoch())
        self.position = place.number if place is not None and ours else 0
        self.reachable = True


async def _pause(stop: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
