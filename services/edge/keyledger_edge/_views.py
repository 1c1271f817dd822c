"""What an edge knows of its keyspaces, as of when, and how it asks for them again.

A view (shape and places of secrets) is trusted under the same rule as facts: rule 7 of docs/fence.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple, Protocol

from keyledger_edge.errors import EdgeError
from keyledger_language.messages import KeyspacesAnswer, KeyspaceView

_FLIGHTS_PER_USE: Final = 3


class ViewsAsOf(NamedTuple):
    """The point that views are true as of: a position, by a ledger process, in an epoch."""

    partition: int
    epoch: int
    lineage: bytes
    as_of: int


class ViewMemory(Protocol):
    """A memory of what has changed."""

    @property
    def has_lease(self) -> bool:
        """Whether every change that was fenced is known."""
        ...

    def believes_view(self, keyspace_id: str, told: ViewsAsOf, /) -> bool:
        """Whether a view as of `told` is at least as new as every change that is known."""
        ...


class _Flight(NamedTuple):
    """One request for the views that is under way."""

    number: int
    answer: asyncio.Task[bool]


class KeyspaceViews:
    """The views of the keyspaces that an edge serves, all received at once."""

    def __init__(self, memory: ViewMemory, ask: Callable[[], Awaitable[KeyspacesAnswer]]) -> None:
        self.known: dict[str, KeyspaceView] = {}
        """By id. Verifiers keep a reference to this dict."""
        self.on_told: Callable[[], None] = lambda: None
        self._memory = memory
        self._ask = ask
        self._told: ViewsAsOf | None = None
        self._number = self._told_by = 0
        """The number of the last request sent, and of the request whose answer is known."""
        self._flight: _Flight | None = None

    def begin(self) -> int:
        """The number of a request for the views that is about to be sent."""
        self._number += 1
        return self._number

    def told(self, number: int, keyspaces: Sequence[KeyspaceView], told: ViewsAsOf) -> None:
        """Apply the answer to a request; a late answer to an earlier request changes nothing."""
        if number < self._told_by:
            return
        self._told_by, self._told = number, told
        views = {one.keyspace_id: one for one in keyspaces}
        self.known.update(views)
        for gone in self.known.keys() - views:
            del self.known[gone]
        self.on_told()

    def are_current(self, keyspace_id: str) -> bool:
        """Whether no change was received that may concern the keyspace since its view."""
        return self._told is not None and self._memory.believes_view(keyspace_id, self._told)

    def may_be_used(self, keyspace_id: str) -> bool:
        """Whether its view may be used for a request that arrives now, without asking the ledger."""
        return self._memory.has_lease and self.are_current(keyspace_id)

    async def learn(self, keyspace_id: str | None = None) -> bool:
        """Ask the ledger, or share a request that is under way; False if there was no answer.

        Afterwards the views are from after the call, or the lease and rule 7 confirm them (rule 8).
        """
        arrived = self._number
        for _ in range(_FLIGHTS_PER_USE):
            flight = self._flight or self._take_off()
            answered = await asyncio.shield(flight.answer)
            if flight.number > arrived or (
                answered and keyspace_id is not None and self.may_be_used(keyspace_id)
            ):
                return answered
        return False

    def _take_off(self) -> _Flight:
        number = self.begin()
        flight = _Flight(number, asyncio.get_running_loop().create_task(self._fly(number)))
        self._flight = flight
        return flight

    async def _fly(self, number: int) -> bool:
        try:
            answer = await self._ask()
        except EdgeError:
            return False
        finally:
            if self._flight is not None and self._flight.number == number:
                self._flight = None
        self.told(
            number, answer.keyspaces, ViewsAsOf(answer.partition, answer.epoch, answer.lineage, answer.as_of)
        )
        return True

    def forget(self) -> None:
        """After a fork: the request that is under way is the parent's."""
        self._flight = None
