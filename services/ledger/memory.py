"""What a ledger process holds in memory of its log; the rooms of the ledger share it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop
from typing import Any

from domain.decisions.passing_time import is_open
from domain.facts import FactsBook
from domain.state import Draft, State
from keyledger_language import position_prefix
from services.ledger.group import DecidedGroup
from services.ledger.narrowings import Narrowings
from services.ledger.recent_claims import RecentClaims

Rows = dict[str, set[Any]]
"""Ids of rows, by table."""

_SAVED = (
    "keyspaces", "organizations", "projects", "plans", "keys", "wallets", "counters",
    "reservations", "refunds", "last_used", "versions",
)  # fmt: skip


class LedgerMemory:
    """The state, what follows from it, and which log it was read from.

    It is never behind what was answered, and can be forgotten at any time: the log tells it anew.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self.state = State()
        self.facts = FactsBook(self.state)
        self.narrowings = Narrowings()
        """What was taken away and has no receipt yet that it is fenced."""
        self.recent = RecentClaims()
        self.unsaved: Rows = {}
        """Rows changed since the state was last saved."""
        self.epoch = 0
        """The log's epoch, as it was read last; 0 before that. Nothing is appended to another."""
        self.position_prefix = position_prefix(partition, self.epoch)
        """What every position begins with that is told in this epoch."""
        self.shared_key: bytes | None = None
        """A secret of all processes of this ledger: seals leases, and what one forwards to another."""
        self.loaded = False
        """Were the saved rows read, if there are any?"""
        self.caught_up = False
        """Was the log read to its end since the start? What is in memory is then what was committed."""
        self._at_new_epoch: list[Callable[[], None]] = []

    def remember(self, group: DecidedGroup) -> None:
        """A group of this process was committed: it is merged already."""
        placed = group.desk.placed
        self.recent.remember(group.base, group.desk.taken, placed)
        self.narrowings.committed(group.changes, group.draft.at, (one.event for one in placed))
        self.note_changed(group.draft)

    def note_changed(self, draft: Draft) -> None:
        """Remember which rows are to be saved."""
        for table, ids in draft.changed():
            self.unsaved.setdefault(table, set()).update(ids)

    def note_unsaved(self, rows: Mapping[str, set[Any]]) -> None:
        """These are to be saved, too."""
        for table, ids in rows.items():
            self.unsaved.setdefault(table, set()).update(ids)

    def take_unsaved(self) -> Rows:
        """What is to be saved; from now on, that is what changes after this."""
        rows, self.unsaved = self.unsaved, {}
        return rows

    def all_rows(self) -> Rows:
        """Every row that could be saved."""
        return {name: set(getattr(self.state, name)) for name in _SAVED}

    def folded(self) -> None:
        """Events of others were folded into the state."""
        state = self.state
        # What the owner has recorded need not be on the agenda of those who follow.
        while state.agenda and state.agenda[0][0] <= state.at and not is_open(state, state.agenda[0]):
            heappop(state.agenda)
        self.facts.forget_all()

    def forget(self) -> None:
        """Start from nothing: what is in memory cannot be relied on."""
        self.state.forget()
        self.recent.clear()
        self.unsaved = {}
        self.narrowings.open.clear()
        self.facts.forget_all()
        self.loaded = self.caught_up = False

    # -- epochs

    def at_new_epoch(self, forget: Callable[[], None]) -> None:
        """Have it called when the epoch is another: for who keeps positions as they were written."""
        self._at_new_epoch.append(forget)

    def enter(self, epoch: int) -> None:
        """The log is in this epoch: what is known of another one is to be read anew."""
        if self.epoch:
            self.loaded = False
            self.shared_key = None
        self.epoch = epoch
        self.position_prefix = position_prefix(self._partition, epoch)
        for forget in self._at_new_epoch:
            forget()
