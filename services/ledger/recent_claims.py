"""The claims that this process made last: a retry that comes soon is answered without reading the log."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Final

from domain.desk import Placed
from services.ledger.group import KnownClaim

_KEPT: Final = 50_000


class _Generation:
    """Claims of groups in a row, with the events that they point to."""

    __slots__ = ("bases", "placed", "positions")

    def __init__(self) -> None:
        self.positions: dict[bytes, int] = {}
        self.bases: list[int] = []
        self.placed: list[Sequence[Placed]] = []

    def find(self, digest: bytes) -> KnownClaim | None:
        position = self.positions.get(digest)
        if position is None:
            return None
        index = bisect_right(self.bases, position - 1) - 1
        event = self.placed[index][position - self.bases[index] - 1].event
        return KnownClaim(position, event, None)


class RecentClaims:
    """At least the newest `kept` claims, and fewer than twice as many plus two groups.

    Two generations, of which the older is dropped whole: taking the oldest entries out of one dict,
    one by one, makes it search for its first entry each time, which took longer than a charge.
    """

    def __init__(self, kept: int = _KEPT) -> None:
        self._kept = kept
        self._newer, self._older = _Generation(), _Generation()

    def __len__(self) -> int:
        return len(self._newer.positions) + len(self._older.positions)

    def find(self, digest: bytes) -> KnownClaim | None:
        """The claim with its event, if it was made recently."""
        if digest in self._newer.positions:
            return self._newer.find(digest)
        return self._older.find(digest)

    def remember(self, base: int, taken: Mapping[bytes, int], placed: Sequence[Placed]) -> None:
        """Remember a committed group: its events follow `base`, its claims point to positions."""
        if not taken:
            return
        newer = self._newer
        newer.positions.update(taken)
        newer.bases.append(base)
        newer.placed.append(placed)
        if len(newer.positions) >= self._kept:
            self._older, self._newer = newer, _Generation()

    def clear(self) -> None:
        """Forget all of them: they will be looked up in the log."""
        self._newer, self._older = _Generation(), _Generation()
