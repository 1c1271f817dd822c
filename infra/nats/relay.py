"""The relay: publishes the log, each event once, in its order.

The log is the outbox, and the stream's own last message is the checkpoint: nothing else is stored that
could contradict it. Each message names the sequence that it must follow. Whichever process is killed, the
next relay reads the end of the stream and continues from there.
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
from domain.ports import LogUnavailableError, Wakeups
from domain.publishing import (
    Message,
    Place,
    PublicStream,
    StreamConflictError,
    StreamEnd,
    StreamRefusedError,
    StreamUnavailableError,
    event_message,
    place_in,
    place_message,
)
from infra.nats.public_stream import JetStreamPublicStream, peek
from infra.nats.streams import StreamLimits
from keyledger_language.events import Event
from keyledger_language.history import HistoryPoint, RecordedEvent

BATCH: Final = 1_000
"""How many events are read at once; with the messages in flight, all that a relay has in memory."""
_IDLE_SECONDS: Final = 0.5
_SHORTEST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_REFUSED_PAUSE: Final = 5.0
_STANDBY_SECONDS: Final = 1.0
_CONFLICT_SECONDS: Final = 5.0
_FAREWELL_SECONDS: Final = 2.0
_EPOCH_SECONDS: Final = 1.0
_WAITS_FOR_STANDBY: Final = (
    "PostgreSQL waits for its standby: events that are not on it are not published. Bring the standby back."
)
_WHAT_TO_DO: Final = (
    ". Nothing is published for now. Once you are sure that this is the log to continue with, run"
    " `keyledger new-epoch`: then all of it is published again under the next epoch."
)

Decode = Callable[[RecordedEvent], Event]
"""A mapper without data keys: it cannot read encrypted fields, so they cannot be published."""
Open = Callable[[], Awaitable[PublicStream]]
RelayState = Literal["starting", "publishing", "standing_by", "disconnected", "refused", "stopped"]


class _EpochRaisedError(Exception):
    """The log's epoch was raised: everything has to be published again."""


class LogReader(Protocol):
    """What the relay needs from the log."""

    async def end(self) -> HistoryPoint:
        """The end of the log, and its epoch."""
        ...

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Committed events after a position, in order."""
        ...

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        """The same, once a standby that must have every commit has them."""
        ...

    async def waits_for_standby(self) -> bool:
        """Whether a commit waits for a disconnected standby."""
        ...


@dataclass(slots=True)
class RelayStatus:
    """The state of the relay, for readiness, metrics and the doctor."""

    state: RelayState = "starting"
    position: int = 0
    """The last event that is known to be in the stream."""
    head: int = 0
    """The last event of the log that the relay knows of."""
    published: int = 0
    """Events that this relay has published."""
    reconnects: int = 0
    problem: str | None = None
    """Why it cannot publish, as a sentence."""

    @property
    def connected(self) -> bool:
        """Whether it is connected to a stream."""
        return self.state in {"publishing", "standing_by"}

    @property
    def lag(self) -> int:
        """How many committed events wait to be published."""
        return max(0, self.head - self.position)


class Relay:
    """Publishes one partition of one log continuously, until it is stopped.

    `republish_after`: the position after which a stream is filled if it is new, was emptied,
    or has another epoch of this log.
    """

    def __init__(
        self,
        reader: LogReader,
        decode: Decode,
        open_stream: Open,
        *,
        log_id: str,
        partition: int,
        wakeups: Wakeups,
        stop: asyncio.Event,
        status: RelayStatus,
        republish_after: int = 0,
    ) -> None:
        self._reader = reader
        self._decode = decode
        self._open = open_stream
        self._log_id = log_id
        self._partition = partition
        self._republish_after = republish_after
        self._source = source_of(log_id)
        self._wakeups = wakeups
        self._stop = stop
        self._status = status
        self._pause = _SHORTEST_PAUSE
        self._heard = 0
        """The head of the log as last notified, before the last reading began."""
        self._conflict_at = float("-inf")
        self._rival: str | None = None
        self._waits_for: str | None = None

    async def run(self) -> None:
        """Publish until stopped; after any failure try again."""
        while self._goes_on():
            try:
                await self._stand_by()
                await self._connect_and_publish()
            except _EpochRaisedError:
                continue
            except StreamConflictError as error:
                self._note_rival(str(error))
            except StreamRefusedError as error:
                await self._rest("refused", str(error), _REFUSED_PAUSE)
            except (StreamUnavailableError, LogUnavailableError) as error:
                self._status.reconnects += 1
                await self._rest("disconnected", str(error), self._next_pause())
            except Exception as error:  # noqa: BLE001 - such as an event it cannot read: the log waits for a fix
                await self._rest("refused", f"{type(error).__name__}: {error}", _REFUSED_PAUSE)
        self._status.state = "stopped"

    # -- publishing -----------------------------------------------------------------------------

    async def _connect_and_publish(self) -> None:
        stream = await self._open()
        self._waits_for = None
        try:
            end = await stream.end()
            visit = _Visit(stream, end, place=await self._resume(end))
            await self._publish(visit)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stream.settle(), _FAREWELL_SECONDS)
            self._report(visit)
        finally:
            await stream.close()

    async def _resume(self, stream_end: StreamEnd) -> Place:
        """The place to continue from: after the last event of the stream, if that is in this log."""
        found, end = place_in(stream_end.headers), await self._reader.end()
        self._status.head = max(self._status.head, end.position)
        if found is None:
            return await self._origin(end)
        if found.log_id != self._log_id or found.partition != self._partition:
            raise StreamRefusedError(
                f"The stream has events of another log ({found.log_id}): give this ledger a NATS account of"
                " its own, or delete the stream."
            )
        if found.epoch < end.epoch:
            return await self._origin(end)
        if found.epoch > end.epoch or not await self._is_in_log(found):
            raise StreamRefusedError(_other_history(found, end))
        return found

    async def _origin(self, end: HistoryPoint) -> Place:
        """The place where a stream begins that has no events of this log's epoch."""
        after = self._republish_after
        if after > end.position:
            raise StreamRefusedError(
                f"KEYLEDGER_NATS_REPUBLISH_AFTER is {after}, but the log ends with {end.position}."
            )
        mark = (await self._mark_at(after) or 0) if after else 0
        return Place(self._log_id, end.epoch, self._partition, after, mark)

    async def _is_in_log(self, found: Place) -> bool:
        return found.number == 0 or await self._mark_at(found.number) == found.mark

    async def _mark_at(self, position: int) -> int | None:
        there = await self._reader.read(position - 1, 1)
        return there[0].mark if there else None

    async def _publish(self, visit: _Visit) -> None:
        looked = time.monotonic()
        async with _Ahead(self._reader, visit.place) as ahead:
            while self._goes_on():
                self._report(visit)
                if time.monotonic() - looked >= _EPOCH_SECONDS:
                    await self._refuse_another_epoch(visit)
                    looked = time.monotonic()
                batch = await ahead.next(_IDLE_SECONDS)
                self._waits_for = await self._why_not() if batch is None else None
                if batch:
                    _refuse_holes(batch, visit.place.number)
                    await visit.send([self._message(recorded, visit) for recorded in batch], batch[-1].mark)
                    self._status.head = max(self._status.head, visit.place.number)
                if ahead.is_reading:
                    continue
                if visit.is_under_way():
                    await visit.stream.settle()
                # A position that was notified but is not in the log was lost, or never was: wait for more.
                known = visit.place.number if batch else max(visit.place.number, self._heard)
                await self._idle(visit, known)

    async def _why_not(self) -> str | None:
        """Why the log returns no further events, if it is known; also updates the lag."""
        self._status.head = max(self._status.head, await self._wakeups.wait_beyond(-1, 0))
        return _WAITS_FOR_STANDBY if await self._reader.waits_for_standby() else None

    async def _refuse_another_epoch(self, visit: _Visit) -> None:
        if (await self._reader.end()).epoch != visit.place.epoch:
            raise _EpochRaisedError

    def _message(self, recorded: RecordedEvent, visit: _Visit) -> Message:
        place = visit.place._replace(number=recorded.position, mark=recorded.mark)
        return event_message(
            self._decode(recorded), place, source=self._source, most_bytes=visit.stream.most_bytes
        )

    async def _idle(self, visit: _Visit, behind: int) -> None:
        """Wait for a notification that the log has grown past this position, for a moment at most."""
        self._report(visit)
        if visit.is_getting_old():
            await visit.repeat_place()
        self._heard = await self._wakeups.wait_beyond(behind, _IDLE_SECONDS)
        self._status.head = max(self._status.head, self._heard)

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
        self._status.state, self._status.problem = "publishing", self._waits_for
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
        # The lag must also be visible while nothing can be published.
        self._status.head = max(self._status.head, await self._wakeups.wait_beyond(-1, 0))

    def _note_rival(self, problem: str) -> None:
        previous, self._conflict_at = self._conflict_at, time.monotonic()
        # A single conflict is most likely the last message of a relay that has ended.
        if self._conflict_at - previous < _CONFLICT_SECONDS:
            self._rival = problem

    async def _stand_by(self) -> None:
        """Leave publishing to the other relay, until the stream stops growing while the log does not."""
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


def _other_history(found: Place, end: HistoryPoint) -> str:
    return (
        f"The stream ends with {found.epoch}.{found.partition}.{found.number}, which is not in the log; the"
        f" log ends with {end.epoch}.{found.partition}.{end.position}: it has lost events{_WHAT_TO_DO}"
    )


def _refuse_holes(batch: list[RecordedEvent], after: int) -> None:
    if (batch[0].position, batch[-1].position) != (after + 1, after + len(batch)):
        raise StreamRefusedError(f"The log misses positions after {after}: restore it, and start again.")


class _Visit:
    """One connection to the stream: what was sent on it, and how much of that is stored."""

    def __init__(self, stream: PublicStream, end: StreamEnd, *, place: Place) -> None:
        self.stream = stream
        self.place = place
        """The place of the last event sent."""
        self.reported = place.number
        self._sequence = self._first = end.sequence
        self._stored_at = time.time() if end.stored_at is None else end.stored_at
        self._empty = end.headers is None

    async def send(self, messages: Sequence[Message], mark: int) -> None:
        """Send one message for each of the next events; the last event has this mark."""
        await self.stream.send(messages, behind=self._sequence)
        self._sequence += len(messages)
        self.place = self.place._replace(number=self.place.number + len(messages), mark=mark)
        self._stored_at, self._empty = time.time(), False

    def confirmed(self) -> int:
        """The last event that is known to be in the stream."""
        under_way = self._sequence - max(self._first, self.stream.acknowledged)
        return self.place.number - under_way

    def is_under_way(self) -> bool:
        """Whether a message was sent that is not known to be stored."""
        return self.confirmed() < self.place.number

    def is_getting_old(self) -> bool:
        """Whether the message that has the checkpoint may soon be dropped for its age."""
        most = self.stream.most_age_seconds
        return not self._empty and 0 < most / 2 < time.time() - self._stored_at

    async def repeat_place(self) -> None:
        """Send a message that only repeats the place."""
        await self.stream.send([place_message(self.place, self._sequence)], behind=self._sequence)
        self._sequence += 1
        await self.stream.settle()
        self._first = self._sequence
        self._stored_at = time.time()


class _Ahead:
    """Reads the next batch while the previous one is being published, if more events are likely.

    Each reading begins with the last event that was read, and compares its mark.
    """

    def __init__(self, reader: LogReader, place: Place) -> None:
        self._reader = reader
        self._after = place.number
        self._mark = place.mark
        self._reading: asyncio.Task[list[RecordedEvent]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)

    @property
    def is_reading(self) -> bool:
        """Whether the next batch is already being read."""
        return self._reading is not None

    async def next(self, seconds: float) -> list[RecordedEvent] | None:
        """The next batch; empty if there are no more events, None if the log held it back for so long."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait({self._reading}, timeout=seconds)
        if not self._reading.done():
            return None
        batch, self._reading = self._reading.result(), None
        if batch:
            self._after, self._mark = batch[-1].position, batch[-1].mark
        # After a smaller one there is most likely nothing yet, and a wake-up costs less than a query.
        if len(batch) == BATCH:
            self._reading = asyncio.create_task(self._read())
            await asyncio.sleep(0)  # so that it starts, and a log in memory does not block other tasks
        return batch

    async def _read(self) -> list[RecordedEvent]:
        if self._after == 0:
            return await self._reader.read_durable(0, BATCH)
        found = await self._reader.read_durable(self._after - 1, BATCH + 1)
        if not found or (found[0].position, found[0].mark) != (self._after, self._mark):
            raise StreamRefusedError(
                f"Event {self._after}, which was published, is no longer in the log, or another one is in"
                f" its place{_WHAT_TO_DO}"
            )
        return found[1:]


async def run_relay(
    reader: LogReader,
    decode: Decode,
    nats_url: str,
    *,
    log_id: str,
    partition: int,
    wakeups: Wakeups,
    stop: asyncio.Event,
    status: RelayStatus,
    limits: StreamLimits | None = None,
    republish_after: int = 0,
) -> None:
    """Relay a partition's log to JetStream until `stop`; `status` is kept up to date."""

    async def open_stream() -> PublicStream:
        return await JetStreamPublicStream.open(nats_url, partition, limits=limits)

    relay = Relay(
        reader,
        decode,
        open_stream,
        log_id=log_id,
        partition=partition,
        wakeups=wakeups,
        stop=stop,
        status=status,
        republish_after=republish_after,
    )
    await relay.run()


async def published_place(nats_url: str, partition: int) -> Place | None:
    """Up to where the stream has been filled, by its last message: for a doctor in another process."""
    return place_in((await peek(nats_url, partition)).headers)
