"""The changes sent to edges: what a grant must carry, and whether what an edge knows is of this history."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from keyledger_language import Change, next_chain
from keyledger_language.bounded_dicts import NewestDict

_KEPT_CHANGES: Final = 100_000
_KEPT_MARKS: Final = 100_000
_MAX_GRANTED_CHANGES: Final = 4_000


class RecentChanges:
    """The latest changes by position, the chain of messages that carried them, and marks of positions."""

    def __init__(self, head: int, mark: int, *, chain: bytes) -> None:
        self.chain = chain
        """The chain of all messages of this tenure; it begins with a random value."""
        self.last_message = head
        """The position that the last message brought edges to."""
        self._chains = NewestDict[bytes, int](_KEPT_CHANGES)
        self._chains[chain] = head
        self._marks = NewestDict[int, int](_KEPT_MARKS)
        self._marks[head] = mark
        """The marks of positions that edges may name: which history they are of (rule 15)."""
        self._changes: list[Change] = []
        self._positions: list[int] = []
        self._after = head

    def preload(self, changes: Iterable[Change], *, after: int, marks: Iterable[tuple[int, int]]) -> None:
        """Take the changes after a position, and marks of positions, from the log."""
        own = list(self._marks.items())
        self._marks.clear()
        self._marks.update([*marks, *own])
        self._changes = sorted(changes, key=lambda change: change.position)
        self._positions = [change.position for change in self._changes]
        self._after = after

    def remember(self, changes: Sequence[Change]) -> None:
        """Remember committed changes; the oldest ones are forgotten."""
        for change in changes:
            self._changes.append(change)
            self._positions.append(change.position)
        if len(self._changes) > 2 * _KEPT_CHANGES:
            self._after = self._positions[-_KEPT_CHANGES - 1]
            self._changes = self._changes[-_KEPT_CHANGES:]
            self._positions = self._positions[-_KEPT_CHANGES:]

    def sent(self, message: bytes, position: int) -> None:
        """A message is sent to all edges, and brings those that receive it to this position."""
        self.last_message = position
        self.chain = next_chain(self.chain, message)
        self._chains[self.chain] = position

    def note_mark(self, head: int, mark: int) -> None:
        """Remember the mark of a head: edges that receive it may name it."""
        self._marks[head] = mark

    def knows(self, chain: bytes) -> bool:
        """Whether this is the chain of messages that this owner sent."""
        return chain in self._chains

    def heard_up_to(self, chain: bytes) -> int:
        """The position up to which an edge with this chain has received messages; 0 if it is unknown."""
        return self._chains.get(chain, 0)

    def has_mark(self, position: int, mark: int) -> bool:
        """Whether the position is one of this history, as far as is remembered."""
        return self._marks.get(position) == mark

    def since(self, position: int) -> tuple[Change, ...] | None:
        """The changes after a position; None if some are forgotten, or there are too many for a grant."""
        if position < self._after:
            return None
        first = bisect_right(self._positions, position)
        if len(self._changes) - first > _MAX_GRANTED_CHANGES:
            return None
        return tuple(self._changes[first:])
