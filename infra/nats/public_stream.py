"""A connection to the public stream in JetStream: many messages in flight, none out of order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from domain.publishing import (
    MESSAGE_ID,
    Message,
    StreamConflictError,
    StreamEnd,
    StreamUnavailableError,
)
from infra.nats.connection import NatsUnreachableError, connect_once, reason
from infra.nats.streams import StreamLimits, ensure_stream, stream_name
from keyledger_edge._nats import abandon

STALL_SECONDS: Final = 5.0
"""A server that has not answered for this long is considered frozen."""
MOST_UNDER_WAY: Final = 4096
MOST_BYTES_UNDER_WAY: Final = 8 * 1024 * 1024
_ASK_EVERY: Final = 64
_EXPECTED_SEQUENCE: Final = "Nats-Expected-Last-Sequence"
_EXPECTED_ID: Final = "Nats-Expected-Last-Msg-Id"
_CONFLICTS: Final = {10070, 10071}
"""JetStream's codes for a wrong last message id and a wrong last sequence."""
_REQUEST_SECONDS: Final = 5.0
_ROOM_FOR_HEADERS: Final = 1024


class _Asked(NamedTuple):
    sequence: int
    sent_bytes: int
    """The total size of all messages sent up to there."""
    at: float


class JetStreamPublicStream:
    """Publishes each message with the sequence and the message that it must follow, or else it is refused.

    The sequence alone would not be enough: if another program's message takes the place of one of ours,
    ours is refused, but the next would fit. Only every 64th message asks for an acknowledgement: a message
    is stored only if the one before it was, so one answer covers all before it.
    """

    def __init__(self, client: Client, partition: int, *, most_age_seconds: float) -> None:
        self.most_bytes = client.max_payload - _ROOM_FOR_HEADERS
        self.most_age_seconds = most_age_seconds
        self.acknowledged = 0
        self._client = client
        self._jetstream = _jetstream(client)
        self._name = stream_name(partition)
        self._inbox = client.new_inbox()
        self._asked: deque[_Asked] = deque()
        self._sent = 0
        self._sent_bytes = 0
        self._acknowledged_bytes = 0
        self._progress = asyncio.Event()
        self._failure: Exception | None = None
        self._previous_id: str | None = None

    @classmethod
    async def open(
        cls, url: str, partition: int, *, limits: StreamLimits | None = None
    ) -> JetStreamPublicStream:
        """Connect, and make the stream if it does not exist."""
        try:
            client = await connect_once(url, "keyledger relay", most_pending_bytes=MOST_BYTES_UNDER_WAY)
        except NatsUnreachableError as error:
            raise StreamUnavailableError(str(error)) from error
        try:
            config = await ensure_stream(_jetstream(client), partition, limits or StreamLimits())
            stream = cls(client, partition, most_age_seconds=config.max_age or 0.0)
            await client.subscribe(f"{stream._inbox}.*", cb=stream._hear)
        except BaseException as error:
            await abandon(client)
            if isinstance(error, Error | OSError):
                raise StreamUnavailableError(reason(error)) from error
            raise
        return stream

    async def end(self) -> StreamEnd:
        """The current end of the stream."""
        try:
            return await read_end(self._jetstream, self._name)
        except (Error, OSError) as error:
            raise StreamUnavailableError(reason(error)) from error

    async def send(self, messages: Sequence[Message], *, behind: int) -> None:
        """Send messages, to be stored right after `behind`; returns once few enough are in flight."""
        last = behind + len(messages)
        try:
            async with asyncio.timeout(2 * STALL_SECONDS):
                for sequence, message in enumerate(messages, start=behind + 1):
                    first = self._previous_id is None
                    await self._publish(message, sequence, ask=first or sequence == last)
                    if first:
                        # A server that was restarted may have forgotten its last message's id.
                        await self.settle()
        except (Error, OSError) as error:
            self.check()
            raise StreamUnavailableError(reason(error)) from error
        while self._too_much_under_way():
            await self._wait_for_progress()

    async def settle(self) -> None:
        """Wait until every message sent is stored."""
        while self.acknowledged < self._sent:
            await self._wait_for_progress()
        self.check()

    def check(self) -> None:
        """Raise the connection's failure, if there was one."""
        if self._failure is None and self._client.is_closed:
            self._failure = StreamUnavailableError("NATS: the connection was lost")
        if self._failure is None and self._asked and time.monotonic() - self._asked[0].at > STALL_SECONDS:
            self._failure = StreamUnavailableError(f"NATS: no answer for {STALL_SECONDS:g} s")
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Drop the connection and its unsent messages."""
        await abandon(self._client)

    async def _publish(self, message: Message, sequence: int, *, ask: bool) -> None:
        if self._failure is not None:
            raise self._failure
        self._sent = sequence
        self._sent_bytes += len(message.body)
        ask = ask or sequence % _ASK_EVERY == 0
        if ask:
            self.check()
            self._asked.append(_Asked(sequence, self._sent_bytes, time.monotonic()))
        headers = {**message.headers, _EXPECTED_SEQUENCE: str(sequence - 1)}
        if self._previous_id is not None:
            headers[_EXPECTED_ID] = self._previous_id
        self._previous_id = message.headers[MESSAGE_ID]
        await self._client.publish(
            message.subject, message.body, reply=f"{self._inbox}.{sequence}" if ask else "", headers=headers
        )

    def _too_much_under_way(self) -> bool:
        return bool(self._asked) and (
            self._sent - self.acknowledged > MOST_UNDER_WAY
            or self._sent_bytes - self._acknowledged_bytes > MOST_BYTES_UNDER_WAY
        )

    async def _wait_for_progress(self) -> None:
        self.check()
        self._progress.clear()
        with contextlib.suppress(TimeoutError):
            # Shorter than a stall, to notice a connection that was lost in the meantime.
            await asyncio.wait_for(self._progress.wait(), STALL_SECONDS / 10)
        self.check()

    async def _hear(self, answer: Msg) -> None:
        expected = int(answer.subject.rpartition(".")[2])
        failure = _failure_in(answer, expected)
        if failure is not None:
            self._failure = self._failure or failure
        elif self._failure is None:
            while self._asked and self._asked[0].sequence <= expected:
                self._acknowledged_bytes = self._asked.popleft().sent_bytes
            self.acknowledged = max(self.acknowledged, expected)
        self._progress.set()


async def peek(url: str, partition: int) -> StreamEnd:
    """The end of the stream, without making it: sequence 0 if it does not exist."""
    try:
        client = await connect_once(url, "keyledger doctor", most_pending_bytes=MOST_BYTES_UNDER_WAY)
    except NatsUnreachableError as error:
        raise StreamUnavailableError(str(error)) from error
    try:
        return await read_end(_jetstream(client), stream_name(partition))
    except NotFoundError:
        return StreamEnd(0, None)
    except (Error, OSError) as error:
        raise StreamUnavailableError(reason(error)) from error
    finally:
        await abandon(client)


async def read_end(jetstream: JetStreamContext, name: str) -> StreamEnd:
    """The stream's last sequence, and the headers of the last message that is still stored."""
    state = (await jetstream.stream_info(name)).state
    if state.messages == 0:
        return StreamEnd(state.last_seq, None)
    try:
        last = await jetstream.get_last_msg(name, ">")
    except NotFoundError:  # it has just become too old
        return StreamEnd(state.last_seq, None)
    return StreamEnd(state.last_seq, _headers_of(last), last.time.timestamp() if last.time else None)


def _jetstream(client: Client) -> JetStreamContext:
    return client.jetstream(timeout=_REQUEST_SECONDS)


def _failure_in(answer: Msg, expected: int) -> Exception | None:
    if not answer.data:
        return StreamUnavailableError("NATS: the stream was deleted, or JetStream is not available")
    said: dict[str, Any] = json.loads(answer.data)
    error = said.get("error")
    if error is not None and error.get("err_code") in _CONFLICTS:
        return StreamConflictError(f"the stream does not end at {expected - 1}")
    if error is not None:
        return StreamUnavailableError(f"JetStream: {error.get('description')}")
    if said.get("duplicate") or said.get("seq") != expected:
        return StreamConflictError(f"message {expected} was stored before, as {said.get('seq')}")
    return None


def _headers_of(message: RawStreamMsg) -> dict[str, str]:
    return {str(name): str(value) for name, value in (message.headers or {}).items()}
