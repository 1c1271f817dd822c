"""Which request ids were refused recently, so that no older try of one is granted after its refusal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from keyledger_language.bounded_dicts import TwoGenerations

KEPT_SECONDS: Final = 120.0
"""At least this long, and at most twice as long: twice the age that a forwarded try may have, which is
judged by this same clock."""
_MOST: Final = 50_000


class RecentRefusals:
    """Refused claims, each with the number of its last refusal: refusals are counted. At most 100,000."""

    def __init__(self, now: Callable[[], float] = time.monotonic, most: int = _MOST) -> None:
        self._now = now
        self._count = 0
        self._claims = TwoGenerations[bytes, int](most)
        self._since = now()
        """When the newer generation began."""

    def __len__(self) -> int:
        return len(self._claims)

    @property
    def any(self) -> bool:
        """Whether anything may be found."""
        return bool(self) and self._now() - self._since <= 2 * KEPT_SECONDS

    def note(self, claim: bytes) -> None:
        """Note that the claim was refused just now."""
        now = self._now()
        if now - self._since > 2 * KEPT_SECONDS:
            self._claims.clear()
            self._since = now
        elif self._claims.full or now - self._since > KEPT_SECONDS:
            self._claims.turn()
            self._since = now
        self._count += 1
        self._claims.put(claim, self._count)

    def find(self, claim: bytes) -> int:
        """The number of its last refusal; 0: it was not refused recently."""
        return self._claims.get(claim) or 0
