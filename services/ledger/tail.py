"""The end of the log, read once for all streams: each event is decoded once and rendered once."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog

from domain.ports import LogUnavailableError, Wakeups
from domain.projecting import FoundEvent
from infra.position_watch import PositionWatch
from keyledger_language.events import Event

log: Final = structlog.get_logger()

_READ_AT_ONCE: Final = 500
_AT_ONE_BREATH: Final = 32
"""After this many events other tasks run: each event takes about ten microseconds."""
_PAUSE_SECONDS: Final = 0.02
_PAUSE_SECONDS_PER_FOLLOWER: Final = 0.001
"""Waking a reader takes about fifty microseconds: this keeps all of them at a twentieth of the process."""
_WAIT_SECONDS: Final = 1.0
_MOST_KEPT_BYTES: Final = 1_048_576


class EventFilter(NamedTuple):
    """Which events a reader asks for, and may see."""

    tags: tuple[str, ...]
    sees: Callable[[Event], bool] = lambda _: True
    organization_id: str | None = None
    """If set, only its events are read at all; `sees` applies as well."""
    like: Hashable = None
    """Readers with the same value, types and organization are shown the same; None: `sees` is compared."""

    @property
    def channel(self) -> Hashable:
        """What readers that are shown the same events have in common."""
        return self.tags, self.organization_id, self.sees if self.like is None else self.like


class TailEvents(Protocol):
    """Reads the log."""

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[FoundEvent]:
        """The events of these types, and of this organization if one is named, from `first` to `last`."""
        ...


class Channel:
    """The new events for all readers that are shown the same; the latest are kept for slower readers."""

    def __init__(self, wanted: EventFilter) -> None:
        self.wanted = wanted
        self.tags = frozenset(wanted.tags)
        self.followers = 0
        self.ended = False
        self.since: int | None = None
        """Everything after this position is here, up to `until`; None until that is known."""
        self.until = 0
        self._positions: list[int] = []
        self._messages: list[bytes] = []
        self._size = 0
        self._watch = PositionWatch(self._newest)

    def _newest(self) -> int:
        if self.ended:
            return 1 << 62
        return self._positions[-1] if self._positions else -1

    def begin(self, position: int) -> None:
        """From here on everything is kept."""
        if self.since is None:
            self.since = self.until = position

    def covers(self, position: int) -> bool:
        """Whether everything after the position is here."""
        return self.since is not None and position >= self.since

    def add(self, position: int, message: bytes) -> None:
        """Add one event."""
        self._positions.append(position)
        self._messages.append(message)
        self._size += len(message)

    def reach(self, position: int) -> None:
        """All up to this position has been looked at."""
        grew = bool(self._positions) and self._positions[-1] > self.until
        self.until = max(self.until, position)
        if self._size > _MOST_KEPT_BYTES:
            self._drop_older_half()
        if grew:
            self._watch.moved()

    def _drop_older_half(self) -> None:
        # A reader that still needs it reads it from the log.
        half = len(self._positions) // 2 or 1
        self.since = self._positions[half - 1]
        self._size -= sum(map(len, self._messages[:half]))
        del self._positions[:half], self._messages[:half]

    def behind(self, position: int, most: int) -> tuple[list[bytes], int]:
        """Up to `most` events after a position, and the position up to which they are complete."""
        first = bisect_right(self._positions, position)
        found = self._messages[first : first + most]
        # Events are added before `until` includes them, and a reader that comes just then gets them.
        last = self._positions[first + len(found) - 1] if found else position
        if first + len(found) < len(self._positions):
            return found, last
        return found, max(last, self.until)

    async def wait(self, position: int, seconds: float) -> None:
        """Wait until there is an event after the position, or the time is over."""
        await self._watch.wait_beyond(position, seconds)

    def end(self) -> None:
        """The log cannot be read: readers reconnect with the position that they saw last."""
        self.ended = True
        self._watch.moved()


class Tail:
    """Reads the end of the log while it has followers. `render` renders an event for all of them."""

    def __init__(
        self,
        events: TailEvents,
        head: Callable[[], int],
        wakeups: Wakeups,
        render: Callable[[FoundEvent], bytes],
    ) -> None:
        self._events = events
        self._head = head
        self._wakeups = wakeups
        self._render = render
        self._channels: dict[Hashable, Channel] = {}
        self._position = 0
        self._reads = False
        self._following: asyncio.Task[None] | None = None

    @property
    def followers(self) -> int:
        """How many readers follow."""
        return sum(channel.followers for channel in self._channels.values())

    def join(self, wanted: EventFilter) -> Channel:
        """Follow a channel; `leave` it in the end."""
        channel = self._channels.get(wanted.channel)
        if channel is None:
            channel = self._channels[wanted.channel] = Channel(wanted)
        channel.followers += 1
        if self._following is None:
            self._position = self._head()
            self._following = asyncio.create_task(self._follow(), name="tail of the log")
        if not self._reads:
            channel.begin(self._position)
        return channel

    def leave(self, channel: Channel) -> None:
        """Stop following."""
        channel.followers -= 1
        if channel.followers == 0 and self._channels.get(channel.wanted.channel) is channel:
            del self._channels[channel.wanted.channel]
        if not self._channels and self._following is not None:
            self._following.cancel()
            self._following, self._reads = None, False

    def end(self) -> None:
        """End all channels: what was read is of a log that is not this one any more."""
        if self._following is not None:
            self._following.cancel()
        self._end()

    async def _follow(self) -> None:
        try:
            while True:
                await self._wakeups.wait_beyond(self._position, _WAIT_SECONDS)
                head = self._head()
                if head > self._position:
                    await self._read(min(head, self._position + _READ_AT_ONCE))
                    if head == self._position:
                        await asyncio.sleep(_PAUSE_SECONDS + _PAUSE_SECONDS_PER_FOLLOWER * self.followers)
        except LogUnavailableError:
            self._end()
        except Exception as error:
            log.exception("feed.failed", error=type(error).__name__)
            self._end()

    def _end(self) -> None:
        """End all channels; the next reader starts a new reading."""
        channels, self._channels = self._channels, {}
        self._following, self._reads = None, False
        for channel in channels.values():
            channel.end()

    async def _read(self, last: int) -> None:
        first, channels = self._position + 1, [*self._channels.values()]
        self._reads = True
        tags = sorted(frozenset().union(*(channel.tags for channel in channels)))
        organizations = {channel.wanted.organization_id for channel in channels}
        only = organizations.pop() if len(organizations) == 1 else None
        await self._hand_out(await self._events.between(first, last, tags, only), channels)
        for channel in channels:
            channel.reach(last)
        self._position, self._reads = last, False
        for channel in self._channels.values():
            channel.begin(last)  # those that were opened meanwhile

    async def _hand_out(self, events: Sequence[FoundEvent], channels: Sequence[Channel]) -> None:
        by_organization: dict[str | None, list[Channel]] = {}
        for channel in channels:
            by_organization.setdefault(channel.wanted.organization_id, []).append(channel)
        for number, placed in enumerate(events, 1):
            event, message = placed.event, None
            for organization_id in {None, event.organization_id}:
                for channel in by_organization.get(organization_id, ()):
                    if _tag(event) in channel.tags and channel.wanted.sees(event):
                        message = message or self._render(placed)
                        channel.add(placed.position, message)
            if number % _AT_ONE_BREATH == 0:
                await asyncio.sleep(0)


def _tag(event: Event) -> str:
    return str(event.__struct_config__.tag)
