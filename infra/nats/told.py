"""Events that were published to NATS but are not in the log: a restore or a lossy fail-over lost them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from nats.errors import Error
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from domain.publishing import Place, StreamUnavailableError, place_in
from infra.nats.connection import NatsUnreachableError, connect_once, reason
from infra.nats.streams import stream_name
from keyledger_edge._nats import abandon

MOST_LISTED: Final = 1_000
_MOST_PENDING_BYTES: Final = 1 << 20
_REQUEST_SECONDS: Final = 5.0

Marks = Callable[[list[int]], dict[int, int]]
"""The marks that the log has at some positions."""


class ToldEvent(NamedTuple):
    """An event as it is stored in NATS."""

    position: int
    type: str
    subject: str
    time: str


class StreamComparison(NamedTuple):
    """Up to where the stream has been filled, and which of its events the log does not have."""

    place: Place | None
    """The place of the last message; None: nothing is published."""
    lost: list[ToldEvent]
    """Oldest first; at most MOST_LISTED."""
    lost_count: int


async def told_beyond(url: str, partition: int, log_id: str, marks: Marks) -> StreamComparison:
    """Compare the end of the stream with the log. Raises StreamUnavailableError."""
    try:
        client = await connect_once(url, "keyledger new-epoch", most_pending_bytes=_MOST_PENDING_BYTES)
    except NatsUnreachableError as error:
        raise StreamUnavailableError(str(error)) from error
    try:
        return await _compare(client.jetstream(timeout=_REQUEST_SECONDS), partition, log_id, marks)
    except (Error, OSError) as error:
        raise StreamUnavailableError(reason(error)) from error
    finally:
        await abandon(client)


async def _compare(stream: JetStreamContext, partition: int, log_id: str, marks: Marks) -> StreamComparison:
    name = stream_name(partition)
    try:
        state = (await stream.stream_info(name)).state
    except NotFoundError:
        return StreamComparison(None, [], 0)
    last = None if state.messages == 0 else await _place(stream, name, state.last_seq)
    if last is None or last.log_id != log_id:
        return StreamComparison(last, [], 0)
    epoch = last.epoch

    async def is_told_rightly(sequence: int) -> bool:
        place = await _place(stream, name, sequence)
        if place is None or place.epoch != epoch:
            return True
        return place.number == 0 or marks([place.number]).get(place.number) == place.mark

    if await is_told_rightly(state.last_seq):
        return StreamComparison(last, [], 0)
    # The events that match the log come first; all after them do not match.
    low, high = state.first_seq - 1, state.last_seq
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if await is_told_rightly(middle) else (low, middle)
    lost = []
    for sequence in range(high, min(state.last_seq, high + MOST_LISTED - 1) + 1):
        lost += await _event(stream, name, sequence)
    return StreamComparison(last, lost, state.last_seq - high + 1)


async def _place(stream: JetStreamContext, name: str, sequence: int) -> Place | None:
    try:
        message = await stream.get_msg(name, sequence)
    except NotFoundError:
        return None
    return place_in({str(key): str(value) for key, value in (message.headers or {}).items()})


async def _event(stream: JetStreamContext, name: str, sequence: int) -> list[ToldEvent]:
    try:
        message = await stream.get_msg(name, sequence)
    except NotFoundError:
        return []
    if not message.data:
        return []
    told: dict[str, Any] = json.loads(message.data)
    subject, time = str(told.get("subject") or ""), str(told.get("time") or "")
    return [ToldEvent(int(told.get("sequence") or 0), str(told.get("type") or ""), subject, time)]
