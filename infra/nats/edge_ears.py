"""How many messages of edges are received: a bounded number for each root key; NATS drops the rest.

Each root key's edges publish on a subject of their own. The ledger subscribes there for a number of
messages that NATS counts (its automatic unsubscribe), and again while the root key's allowance
lasts. So a flood ends at the server, and affects only the edges of that root key.
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
"""For the edges of one root key, in addition to their pings and acknowledgements."""
_AT_ONCE: Final = 100
_SPARE: Final = 2
"""An edge may send this many times as many requests as pings: extra ones follow a gap."""
_MOST_BYTES: Final = 4_096
"""For one message: an edge's messages take a few hundred bytes. A longer one counts as several."""
_LOG_SECONDS: Final = 10.0


class Allowance:
    """How many messages of one root key's edges are received: a bucket that fills with time.

    It also fills with each change sent to edges, since every edge acknowledges it.
    """

    def __init__(self, pings_per_second: float, now: float, edges: int) -> None:
        self._pings_per_second = pings_per_second
        self._at = now
        self._edges = edges
        self.left = float(self.most)

    @property
    def at_once(self) -> int:
        """The number of messages for one subscription at NATS."""
        return _AT_ONCE + self._edges

    @property
    def most(self) -> int:
        """The size of the bucket."""
        return 2 * self.at_once

    def fill(self, now: float, edges: int, changes: int) -> None:
        """Fill the bucket for the time passed, for this many edges, and for the changes sent since."""
        self._edges = edges
        per_second = _PER_SECOND + _SPARE * edges * self._pings_per_second
        gained = (now - self._at) * per_second + edges * changes
        self._at = now
        self.left = min(self.most, self.left + gained)

    def take(self) -> int:
        """Take from the bucket the number of messages that NATS may let through now."""
        taken = min(self.at_once, int(self.left))
        self.left -= taken
        return taken

    def owe(self, messages: int) -> None:
        """Subtract messages that were received but not taken; the bucket has to refill first."""
        self.left -= messages

    def give_back(self, unused: int) -> None:
        """Return the messages that were taken but not sent by edges."""
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
    """The subscriptions for the edges of one root key."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self.now: _Subscribed | None = None
        self.before: _Subscribed | None = None
        """Ended at NATS; messages that NATS had sent by then are still received."""
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
    """Subscribes, on one connection, to the edges of all root keys that have any.

    `hear` receives their messages, `call` requests an early `tend`, `overflowed` counts overflows.
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
        """Subscribe to the edges of these root keys (with their numbers of edges), and to no others.

        `changes`: how many were sent to edges since the last call.
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
            # The new one first: a message that is received twice is applied once.
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
            if heard <= limit:  # NATS sent any further ones before it knew of the limit
                await self._hear(message)

        subscription = await self._client.subscribe(f"{LEASE_SUBJECT}.{root_key_id}", cb=hear)
        # Not its `unsubscribe(limit)`: that drops unread messages when the last one arrives.
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
