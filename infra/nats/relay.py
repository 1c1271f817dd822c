"""The way out: what is in the log is published, each event once, in its order.

The log is the outbox, and the stream's own last message is the checkpoint: there is nothing else
to keep, so nothing that could contradict it. Each message names the sequence it must follow.
Whatever is killed, the next relay reads where the stream ends and goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, Self

from domain.cloud_events import source_of
from domain.events import Event
from domain.ports import LogUnavailableError, RecordedEvent
from domain.publishing import (
    Message,
    Place,
    PublicStream,
    StreamConflictError,
    StreamEnd,
    StreamRefusedError,
    StreamUnavailableError,
    event_message,
    mark_message,
    place_in,
)
from infra.nats.public_stream import JetStreamPublicStream, peek
from infra.nats.streams import StreamLimits

BATCH: Final = 1_000
"""How many events are read at once; with what may be under way, all that a relay holds in memory."""
_IDLE_SECONDS: Final = 0.5
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_REFUSED_PAUSE: Final = 5.0
_STANDBY_SECONDS: Final = 1.0
_CONFLICT_SECONDS: Final = 5.0
_FAREWELL_SECONDS: Final = 2.0

Decode = Callable[[RecordedEvent], Event]
"""A mapper without data keys: what it cannot read cannot be published."""
Open = Callable[[], Awaitable[PublicStream]]
RelayState = Literal["starting", "publishing", "standing_by", "disconnected", "refused", "stopped"]


class LogReader(Protocol):
    """What the relay needs of the log."""

    async def head(self) -> int:
        """The position of the last event."""
        ...

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Committed events behind a position, in order."""
        ...


class Wakeups(Protocol):
    """Tells that the log has grown."""

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, once it is beyond `position` or the time is over."""
        ...


@dataclass(slots=True)
class RelayStatus:
    """Where the relay stands, for readiness, metrics and the doctor."""

    state: RelayState = "starting"
    position: int = 0
    """The last event that the stream is known to hold."""
    head: int = 0
    """The last event of the log that the relay knows of."""
    published: int = 0
    """Events that this relay has published."""
    reconnects: int = 0
    problem: str | None = None
    """What keeps it from publishing, in a sentence."""

    @property
    def connected(self) -> bool:
        """Does it have a stream to publish to?"""
        return self.state in {"publishing", "standing_by"}

    @property
    def lag(self) -> int:
        """How many committed events wait to be published."""
        return max(0, self.head - self.position)


class Relay:
    """Publishes one partition of one log, over and over, until it is stopped.

    `republish_after`: the position behind which a stream is filled that is new, or was emptied,
    or holds another epoch of this log.
    """

    def __init__(
        self,
        reader: LogReader,
        decode: Decode,
        open_stream: Open,
        *,
        log_id: str,
        epoch: int,
        partition: int,
        wakeups: Wakeups,
        stop: asyncio.Event,
        status: RelayStatus,
        republish_after: int = 0,
    ) -> None:
        self._reader = reader
        self._decode = decode
        self._open = open_stream
        self._origin = Place(log_id, epoch, partition, republish_after)
        self._source = source_of(log_id)
        self._wakeups = wakeups
        self._stop = stop
        self._status = status
        self._pause = _SHORTEST_PAUSE
        self._conflict_at = float("-inf")
        self._rival: str | None = None

    async def run(self) -> None:
        """Publish until stopped; whatever fails is tried again."""
        while self._goes_on():
            try:
                await self._stand_by()
                await self._connect_and_publish()
            except StreamConflictError as error:
                self._note_rival(str(error))
            except StreamRefusedError as error:
                await self._rest("refused", str(error), _REFUSED_PAUSE)
            except (StreamUnavailableError, LogUnavailableError) as error:
                self._status.reconnects += 1
                await self._rest("disconnected", str(error), self._next_pause())
            except Exception as error:  # noqa: BLE001 - an event it cannot read, say: the log waits for a fix
                await self._rest("refused", f"{type(error).__name__}: {error}", _REFUSED_PAUSE)
        self._status.state = "stopped"

    # -- publishing -----------------------------------------------------------------------------

    async def _connect_and_publish(self) -> None:
        stream = await self._open()
        try:
            end = await stream.end()
            visit = _Visit(stream, end, place=await self._resume(end))
            await self._publish(visit)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.settle(), _FAREWELL_SECONDS)
            self._report(visit)
        finally:
            await stream.close()

    async def _resume(self, end: StreamEnd) -> Place:
        """From where to go on: behind what the stream ends with, if that is this log's."""
        found, head = place_in(end.headers), await self._reader.head()
        self._status.head = max(self._status.head, head)
        if found is None:
            return self._origin
        if found.log_id != self._origin.log_id or found.partition != self._origin.partition:
            raise StreamRefusedError(
                f"The stream holds events of another log ({found.log_id}): give this ledger a NATS account of"
                " its own, or delete the stream."
            )
        if found.epoch < self._origin.epoch:
            return self._origin
        if found.epoch > self._origin.epoch or found.number > head:
            raise StreamRefusedError(
                f"The stream ends with {found.epoch}.{found.partition}.{found.number} and the log with"
                f" {self._origin.epoch}.{found.partition}.{head}: the log has lost events. Restore it with a"
                " new epoch, so that subscribers can tell."
            )
        return found

    async def _publish(self, visit: _Visit) -> None:
        async with _Ahead(self._reader, visit.place.number) as ahead:
            while self._goes_on():
                self._report(visit)
                batch = await ahead.next()
                if batch:
                    _refuse_holes(batch, visit.place.number)
                    await visit.send([self._message(recorded, visit) for recorded in batch])
                    self._status.head = max(self._status.head, visit.place.number)
                elif visit.is_under_way():
                    await visit.stream.settle()
                else:
                    await self._idle(visit)

    def _message(self, recorded: RecordedEvent, visit: _Visit) -> Message:
        place = self._origin._replace(number=recorded.position)
        return event_message(
            self._decode(recorded), place, source=self._source, most_bytes=visit.stream.most_bytes
        )

    async def _idle(self, visit: _Visit) -> None:
        self._report(visit)
        if visit.is_getting_old():
            await visit.mark()
        head = await self._wakeups.wait_beyond(visit.place.number, _IDLE_SECONDS)
        self._status.head = max(self._status.head, head)

    def _goes_on(self) -> bool:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # nats-py swallows some cancellations.
            raise asyncio.CancelledError
        return not self._stop.is_set()

    def _report(self, visit: _Visit) -> None:
        visit.stream.check()
        self._pause = _SHORTEST_PAUSE
        confirmed = visit.confirmed()
        self._status.state, self._status.problem = "publishing", None
        self._status.published += confirmed - visit.reported
        self._status.position = visit.reported = confirmed

    # -- waiting --------------------------------------------------------------------------------

    def _next_pause(self) -> float:
        self._pause, pause = min(2 * self._pause, _LONGEST_PAUSE), self._pause
        return pause

    async def _rest(self, state: RelayState, problem: str, seconds: float) -> None:
        self._status.state, self._status.problem = state, problem
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        # The lag is to be seen while nothing can be published, too.
        self._status.head = max(self._status.head, await self._wakeups.wait_beyond(-1, 0))

    def _note_rival(self, problem: str) -> None:
        previous, self._conflict_at = self._conflict_at, time.monotonic()
        # A single conflict is the last words of a relay that is gone, most likely.
        if self._conflict_at - previous < _CONFLICT_SECONDS:
            self._rival = problem

    async def _stand_by(self) -> None:
        """Leave it to whoever else publishes, until the stream no longer moves though the log does."""
        seen = -1
        while self._rival is not None and self._goes_on():
            await self._rest("standing_by", self._rival, _STANDBY_SECONDS * (0.5 + random.random()))  # noqa: S311
            end = await self._look()
            place = place_in(end.headers)
            self._status.position = place.number if place is not None else 0
            if end.sequence == seen and self._status.lag > 0:
                self._rival = None
            seen = end.sequence

    async def _look(self) -> StreamEnd:
        stream = await self._open()
        try:
            return await stream.end()
        finally:
            await stream.close()


def _refuse_holes(batch: list[RecordedEvent], after: int) -> None:
    if (batch[0].position, batch[-1].position) != (after + 1, after + len(batch)):
        raise StreamRefusedError(f"The log misses positions behind {after}: restore it, and start again.")


class _Visit:
    """One connection's time at the stream: what was sent, and how much of it is stored."""

    def __init__(self, stream: PublicStream, end: StreamEnd, *, place: Place) -> None:
        self.stream = stream
        self.place = place
        """Of the last event sent."""
        self.reported = place.number
        self._sequence = self._first = end.sequence
        self._stored_at = time.time() if end.stored_at is None else end.stored_at
        self._empty = end.headers is None

    async def send(self, messages: Sequence[Message]) -> None:
        """Send one message for each next event."""
        await self.stream.send(messages, behind=self._sequence)
        self._sequence += len(messages)
        self.place = self.place._replace(number=self.place.number + len(messages))
        self._stored_at, self._empty = time.time(), False

    def confirmed(self) -> int:
        """The last event that the stream is known to hold."""
        under_way = self._sequence - max(self._first, self.stream.acknowledged)
        return self.place.number - under_way

    def is_under_way(self) -> bool:
        """Is anything sent that is not known to be stored?"""
        return self.confirmed() < self.place.number

    def is_getting_old(self) -> bool:
        """Is the message that says where to go on about to be dropped for its age?"""
        most = self.stream.most_age_seconds
        return not self._empty and 0 < most / 2 < time.time() - self._stored_at

    async def mark(self) -> None:
        """Repeat the place, and nothing else."""
        await self.stream.send([mark_message(self.place, self._sequence)], behind=self._sequence)
        self._sequence += 1
        await self.stream.settle()
        self._first = self._sequence
        self._stored_at = time.time()


class _Ahead:
    """Reads the next batch while the one before is being published."""

    def __init__(self, reader: LogReader, after: int) -> None:
        self._reader = reader
        self._after = after
        self._reading: asyncio.Task[list[RecordedEvent]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    async def next(self) -> list[RecordedEvent]:
        """The next batch; empty when there is nothing more."""
        reading, self._reading = self._reading, None
        batch = await (reading or self._reader.read(self._after, BATCH))
        if batch:
            self._after = batch[-1].position
            self._reading = asyncio.create_task(self._reader.read(self._after, BATCH))
            await asyncio.sleep(0)  # so that it begins, and a log in memory keeps nobody from running
        return batch


async def run_relay(
    reader: LogReader,
    decode: Decode,
    nats_url: str,
    *,
    log_id: str,
    epoch: int,
    partition: int,
    wakeups: Wakeups,
    stop: asyncio.Event,
    status: RelayStatus,
    limits: StreamLimits | None = None,
    republish_after: int = 0,
) -> None:
    """Relay a partition's log to JetStream until `stop`; `status` says how it goes."""

    async def open_stream() -> PublicStream:
        return await JetStreamPublicStream.open(nats_url, partition, limits=limits)

    relay = Relay(
        reader,
        decode,
        open_stream,
        log_id=log_id,
        epoch=epoch,
        partition=partition,
        wakeups=wakeups,
        stop=stop,
        status=status,
        republish_after=republish_after,
    )
    await relay.run()


async def published_place(nats_url: str, partition: int) -> Place | None:
    """Up to where the stream holds the log, as it says itself: for a doctor in another process."""
    return place_in((await peek(nats_url, partition)).headers)
