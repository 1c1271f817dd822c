"""What was taken away and is not known to be fenced yet: a new owner continues these fences.

Kept by position, and saved with the state: however many events came after it, a revocation whose
receipt is missing is found again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from domain.changes import change_of
from domain.state import Books
from keyledger_language import Change
from keyledger_language import events as e
from keyledger_language.instants import Instant

_MONEY_AND_SIGHTINGS: Final = (e.WalletEvent, e.UsageDenied, e.KeysSeen)


class Narrowings:
    """Positions that took something away and have no receipt, with the time of their commit."""

    def __init__(self) -> None:
        self.open: dict[int, Instant] = {}

    def folded(self, event: e.Event, books: Books, position: int) -> None:
        """Take an event of the log, with the books as they are after it."""
        if isinstance(event, e.RevocationFenced):
            self._fenced(event)
        elif not isinstance(event, _MONEY_AND_SIGHTINGS):
            change = change_of(event, books, position)
            if change is not None and change.narrowing:
                self.open[position] = event.at

    def committed(self, changes: Sequence[Change], at: Instant, events: Iterable[e.Event]) -> None:
        """Take a committed group of this process."""
        for change in changes:
            if change.narrowing:
                self.open[change.position] = at
        if self.open:
            for event in events:
                if isinstance(event, e.RevocationFenced):
                    self._fenced(event)

    def _fenced(self, receipt: e.RevocationFenced) -> None:
        for position in receipt.fenced:
            self.open.pop(position, None)
