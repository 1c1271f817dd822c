"""The two worlds that a public stream lives in."""

import asyncio
import json
import os
import signal
from typing import NamedTuple, Protocol

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from domain.publishing import Message, PublicStream
from infra.embedded import EmbeddedNats
from infra.memory.event_stream import MemoryPublicStream, MemoryStreamStorage
from infra.nats.public_stream import JetStreamPublicStream
from infra.nats.streams import StreamLimits, stream_name


class Stored(NamedTuple):
    sequence: int
    subject: str
    message_id: str
    body: bytes

    @property
    def position(self) -> int:
        return int(json.loads(self.body)["sequence"])


class StreamWorld(Protocol):
    async def open(self) -> PublicStream: ...
    async def stored(self) -> list[Stored]: ...
    async def purge(self) -> None: ...
    def go_down(self) -> None: ...
    def come_up(self) -> None: ...


class MemoryStreamWorld:
    def __init__(self) -> None:
        self.storage = MemoryStreamStorage()

    async def open(self) -> MemoryPublicStream:
        return await MemoryPublicStream.open(self.storage)

    async def stored(self) -> list[Stored]:
        return [_stored(sequence, message) for sequence, message in sorted(self.storage.messages.items())]

    async def purge(self) -> None:
        self.storage.empty()

    def go_down(self) -> None:
        self.storage.up = False

    def come_up(self) -> None:
        self.storage.up = True


class NatsStreamWorld:
    def __init__(self, server: EmbeddedNats) -> None:
        self.server = server
        self.limits = StreamLimits()

    async def open(self) -> JetStreamPublicStream:
        return await JetStreamPublicStream.open(self.server.url, 0, limits=self.limits)

    async def stored(self) -> list[Stored]:
        return await read_all(self.server.url)

    async def purge(self) -> None:
        connection = await nats.connect(self.server.url)
        await connection.jetstream().purge_stream(stream_name(0))
        await connection.close()

    def go_down(self) -> None:
        self.kill()

    def come_up(self) -> None:
        self.server.start()

    def kill(self) -> None:
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGKILL)
        while self.server.alive:
            pass


async def read_all(url: str) -> list[Stored]:
    """Everything in the stream, in its order."""
    connection = await nats.connect(url, connect_timeout=5)
    try:
        jetstream = connection.jetstream()
        last = (await jetstream.stream_info(stream_name(0))).state.last_seq
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL, mem_storage=True)
        subscription = await jetstream.pull_subscribe("", stream=stream_name(0), config=config)
        found: list[Stored] = []
        while not found or found[-1].sequence < last:
            for message in await subscription.fetch(500, timeout=5):
                headers = message.headers or {}
                found.append(
                    Stored(
                        message.metadata.sequence.stream,
                        message.subject,
                        headers["Nats-Msg-Id"],
                        message.data,
                    )
                )
        return found
    finally:
        await connection.close()


def _stored(sequence: int, message: Message) -> Stored:
    return Stored(sequence, message.subject, message.headers["Nats-Msg-Id"], message.body)


async def until(condition: object, *, seconds: float = 15.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
