"""The change feed: committed events from the log itself, in pages or as a stream that never ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final, get_args

from domain.cloud_events import TYPE_PREFIX, CloudEvent, cloud_event, to_json
from domain.ids import format_position
from domain.ports import LogUnavailableError, Wakeups
from domain.projecting import FoundEvent
from keyledger_language import position_prefix
from keyledger_language.events import LedgerEvent
from services.ledger.tail import Channel, EventFilter, Tail, TailEvents

MOST_SCANNED: Final = 5_000
"""How many positions one page looks at, however few of their events match."""
HEARTBEAT_SECONDS: Final = 15.0
_READ_AT_ONCE: Final = 500
_STREAMED_AT_ONCE: Final = 100
_WAKE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.05
_RETRY_MILLISECONDS: Final = 1_000

_TAGS: Final = {kind.__name__: str(kind.__struct_config__.tag) for kind in get_args(LedgerEvent)}
"""Each event type's public name to its name on disk."""


class UnknownTypeError(ValueError):
    """No event type has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no event called {name}")


def tags_of(names: Iterable[str]) -> tuple[str, ...]:
    """Names on disk of types given as `KeyRevoked` or `keyledger.KeyRevoked`; of all types if none is."""
    return tuple(_tag_of(name) for name in names) or tuple(_TAGS.values())


def _tag_of(name: str) -> str:
    try:
        return _TAGS[name.removeprefix(TYPE_PREFIX)]
    except KeyError:
        raise UnknownTypeError(name) from None


class Feed:
    """Reads the events after a position. `head` is the last committed position."""

    def __init__(
        self,
        events: TailEvents,
        head: Callable[[], int],
        wakeups: Wakeups,
        *,
        partition: int,
        epoch: Callable[[], int],
        source: str,
    ) -> None:
        self._events = events
        self._head = head
        self._partition = partition
        self._epoch = epoch
        self._source = source
        self._tail_epoch = epoch()
        self._tail = Tail(
            events, head, wakeups, lambda placed: _message(self._shown(placed, self._tail_epoch))
        )
        # One at a time: many readers that reconnect at once would occupy all sessions and the interpreter.
        self._catching_up = asyncio.Semaphore(1)

    async def page(self, *, after: int, wanted: EventFilter, limit: int) -> tuple[list[CloudEvent], int]:
        """Up to `limit` events after a position, and the position up to which everything was looked at.

        If few events match, the page may be shorter than its limit, or empty: continue from that position.
        """
        # Before anything is read: if the epoch is raised meanwhile, the page is of the previous one.
        epoch, items = self._epoch(), list[CloudEvent]()
        seen, end = after, min(self._head(), after + MOST_SCANNED)
        while seen < end and len(items) < limit:
            last = min(end, seen + _READ_AT_ONCE)
            for placed in await self._events.between(seen + 1, last, wanted.tags, wanted.organization_id):
                if not wanted.sees(placed.event):
                    continue
                items.append(self._shown(placed, epoch))
                if len(items) == limit:
                    return items, placed.position
            seen = last
        return items, seen

    async def stream(
        self, *, after: int, wanted: EventFilter, goes_on: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """Server-Sent Events after a position, for as long as a client reads them.

        New events come from the one reading of the log's end that all streams share; a stream that is
        further behind reads the log until it has caught up. Nothing is read ahead for a slow reader. The
        stream ends when `goes_on` is false, the epoch is raised or the log cannot be reached: the reader
        reconnects with its Last-Event-ID, and misses nothing (or learns that this is of another epoch).
        """
        yield b"retry: %d\n\n" % _RETRY_MILLISECONDS
        told_at, told = time.monotonic(), after
        epoch = self._epoch()
        if epoch != self._tail_epoch:
            self._tail_epoch = epoch
            self._tail.end()  # what it keeps is of the previous epoch
        channel = self._tail.join(wanted)
        try:
            while self._epoch() == epoch and goes_on() and not channel.ended:
                try:
                    messages, seen = await self._next(channel, after)
                except LogUnavailableError:
                    return
                if messages:
                    yield b"".join(messages)
                    told_at, told = time.monotonic(), seen
                elif time.monotonic() - told_at >= HEARTBEAT_SECONDS:
                    yield self._heartbeat(seen if seen > told else None, epoch)
                    told_at, told = time.monotonic(), seen
                if seen == after:
                    await self._wait(channel, after, told_at)
                after = seen
        finally:
            self._tail.leave(channel)

    async def _next(self, channel: Channel, after: int) -> tuple[list[bytes], int]:
        """The messages after a position, as they are sent, and the position up to which they are complete."""
        if channel.covers(after):
            return channel.behind(after, _STREAMED_AT_ONCE)
        async with self._catching_up:
            items, seen = await self.page(after=after, wanted=channel.wanted, limit=_STREAMED_AT_ONCE)
        return [_message(item) for item in items], seen

    async def _wait(self, channel: Channel, position: int, told_at: float) -> None:
        until_heartbeat = told_at + HEARTBEAT_SECONDS - time.monotonic()
        # A second at most, to notice that the stream must end; less until the tail covers the position.
        most = _WAKE_SECONDS if channel.covers(position) else _LOOK_SECONDS
        await channel.wait(position, max(0.0, min(until_heartbeat, most)))

    def _shown(self, placed: FoundEvent, epoch: int) -> CloudEvent:
        return cloud_event(
            placed.event,
            partition=self._partition,
            epoch=epoch,
            number=placed.position,
            source=self._source,
            personal=True,
        )

    def _heartbeat(self, seen: int | None, epoch: int) -> bytes:
        # An id alone is no event, but lets the reader resume after the events that its filter left out.
        if seen is None:
            return b": heartbeat\n\n"
        prefix = position_prefix(self._partition, epoch)
        return b": heartbeat\nid: %b\n\n" % format_position(prefix, seen).encode()


def _message(event: CloudEvent) -> bytes:
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.position.encode(), event.type.encode(), to_json(event))
