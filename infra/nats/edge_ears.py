"""How much is heard of edges: of those of each root key only so much, and NATS drops the rest.

Each root key's edges speak on a subject of their own. We listen there for a number of messages
that NATS counts (its automatic unsubscribe), and listen anew while the root key's allowance
lasts. So a flood ends at the server, and costs nobody but the edges of that root key.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from keyledger_language import LEASE_SUBJECT

log = structlog.get_logger()

_PER_SECOND: Final = 200
"""For the edges of one root key, beside what their pings and their acknowledgements take."""
_AT_ONCE: Final = 100
_SPARE: Final = 2
"""An edge may ask that much more often than once a ping: out of turn, after a hole."""
_MOST_BYTES: Final = 4_096
"""In one message: what an edge says takes a few hundred. A longer one counts as many."""
_LOG_SECONDS: Final = 10.0


class Allowance:
    """How many messages of one root key's edges are heard: a bucket that fills with time.

    It also fills with each change that edges were told of, which every one of them acknowledges.
    """

    def __init__(self, pings_per_second: float, now: float, edges: int) -> None:
        self._pings_per_second = pings_per_second
        self._at = now
        self._edges = edges
        self.left = float(self.most)

    @property
    def at_once(self) -> int:
        """For how many NATS is told to listen."""
        return _AT_ONCE + self._edges

    @property
    def most(self) -> int:
        """What the bucket holds."""
        return 2 * self.at_once

    def fill(self, now: float, edges: int, changes: int) -> None:
        """Time has passed, there are so many edges, and they were told of so many changes since."""
        self._edges = edges
        per_second = _PER_SECOND + _SPARE * edges * self._pings_per_second
        gained = (now - self._at) * per_second + edges * changes
        self._at = now
        self.left = min(self.most, self.left + gained)

    def take(self) -> int:
        """Out of the bucket: what NATS may now let through."""
        taken = min(self.at_once, int(self.left))
        self.left -= taken
        return taken

    def owe(self, messages: int) -> None:
        """More was heard than was taken: that must fill again first."""
        self.left -= messages

    def give_back(self, unused: int) -> None:
        """NATS was told of more than was said."""
        self.left = min(self.most, self.left + unused)


class _Subscribed:
    """One subscription, which NATS ends by itself after `limit` messages."""

    def __init__(self, subscription: Subscription, limit: int) -> None:
        self.subscription = subscription
        self.limit = limit

    @property
    def unused(self) -> int:
        return max(0, self.limit - self.subscription.delivered)


class _Ear:
    """What listens to the edges of one root key."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.now: _Subscribed | None = None
        self.before: _Subscribed | None = None
        """Ended at NATS; what it had sent by then is still heard."""
        self.called = False
        self.deaf = False
        self.logged_at = -_LOG_SECONDS

    @property
    def unused(self) -> int:
        return self.now.unused if self.now is not None else 0

    @property
    def runs_low(self) -> bool:
        return self.unused < self.allowance.at_once // 2

    @property
    def may_renew(self) -> bool:
        at_once = self.allowance.at_once
        least = at_once // 2 if self.unused else at_once // 8
        return self.runs_low and self.allowance.left >= least


class Ears:
    """Listens on one connection to the edges of those root keys that have any.

    `hear` takes what they say, `call` asks for `tend` soon, `overflowed` counts.
    """

    def __init__(
        self,
        client: Client,
        hear: Callable[[Msg], Awaitable[None]],
        *,
        pings_per_second: float,
        call: Callable[[], None],
        overflowed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._hear = hear
        self._pings_per_second = pings_per_second
        self._call = call
        self._overflowed = overflowed
        self._clock = clock
        self._ears: dict[str, _Ear] = {}

    async def tend(self, speakers: Mapping[str, int], changes: int) -> None:
        """Listen to these root keys, which have so many edges, and to no others.

        `changes`: how many edges were told of since the last time.
        """
        for root_key_id in self._ears.keys() - speakers.keys():
            await self._end(self._ears.pop(root_key_id))
        now = self._clock()
        for root_key_id, edges in speakers.items():
            ear = self._ears.get(root_key_id)
            if ear is None:
                ear = self._ears[root_key_id] = _Ear(Allowance(self._pings_per_second, now, edges))
            await self._let_go_of_former(ear)
            ear.allowance.fill(now, edges, changes)
            await self._listen(root_key_id, ear, now)

    async def _listen(self, root_key_id: str, ear: _Ear, now: float) -> None:
        ear.called = False
        former = ear.now
        if ear.allowance.left < 0:
            ear.now = None
            await self._end_at_nats(ear, former)
        elif ear.may_renew:
            # The new one first: what is heard twice is taken once.
            ear.now, ear.deaf = await self._subscribe(root_key_id, ear), False
            await self._end_at_nats(ear, former)
        if not ear.unused and not ear.deaf:
            ear.deaf = True
            self._overflowed()
            if now - ear.logged_at >= _LOG_SECONDS:
                ear.logged_at = now
                log.warning("edges.too_many_messages", root_key_id=root_key_id)

    async def _subscribe(self, root_key_id: str, ear: _Ear) -> _Subscribed:
        limit, heard = ear.allowance.take(), 0

        async def hear(message: Msg) -> None:
            nonlocal heard
            heard += 1
            if ear.runs_low and not ear.called:
                ear.called = True
                self._call()
            size = len(message.data)
            if size > _MOST_BYTES:
                ear.allowance.owe(size // _MOST_BYTES)
                if ear.allowance.left < 0:
                    self._call()
                return
            if heard <= limit:  # what is beyond came in before NATS knew of the limit
                await self._hear(message)

        subscription = await self._client.subscribe(f"{LEASE_SUBJECT}.{root_key_id}", cb=hear)
        # Not its `unsubscribe(limit)`: that one drops what is still unread when the last one comes.
        await self._client._send_unsubscribe(subscription._id, limit)  # noqa: SLF001
        return _Subscribed(subscription, limit)

    async def _end_at_nats(self, ear: _Ear, former: _Subscribed | None) -> None:
        if former is not None:
            ear.before = former
            await self._client._send_unsubscribe(former.subscription._id)  # noqa: SLF001 - the same

    async def _let_go_of_former(self, ear: _Ear) -> None:
        former, ear.before = ear.before, None
        if former is not None:
            ear.allowance.give_back(former.unused)
            await former.subscription.unsubscribe()

    async def _end(self, ear: _Ear) -> None:
        for one in (ear.before, ear.now):
            if one is not None:
                await one.subscription.unsubscribe()
