"""What a ledger process holds in memory of its log; the parts of the ledger share it."""

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
    """The state, what is derived from it, and which log it was read from.

    It is never behind what was answered, and can be forgotten at any time: it is read again from the log.
    """

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self.state = State()
        self.facts = FactsBook(self.state)
        self.narrowings = Narrowings()
        """What was taken away and has no fence receipt yet."""
        self.recent = RecentClaims()
        self.unsaved: Rows = {}
        """Rows changed since the state was last saved."""
        self.epoch = 0
        """The log's epoch, as it was read last; 0 before that. Nothing is appended to another."""
        self.position_prefix = position_prefix(partition, self.epoch)
        """The beginning of every position that is given out in this epoch."""
        self.shared_key: bytes | None = None
        """A secret that all processes of this ledger share: seals leases and forwarded requests."""
        self.loaded = False
        """Whether the saved rows were read, if there are any."""
        self.caught_up = False
        """Whether the log was read to its end since the start: memory then has what was committed."""
        self._at_new_epoch: list[Callable[[], None]] = []

    def remember(self, group: DecidedGroup) -> None:
        """Remember a committed group of this process, which is merged already."""
        placed = group.desk.placed
        self.recent.remember(group.base, group.desk.taken, placed)
        self.narrowings.committed(group.changes, group.draft.at, (one.event for one in placed))
        self.note_changed(group.draft)

    def note_changed(self, draft: Draft) -> None:
        """Remember which rows are to be saved."""
        for table, ids in draft.changed():
            self.unsaved.setdefault(table, set()).update(ids)

    def note_unsaved(self, rows: Mapping[str, set[Any]]) -> None:
        """Remember that these rows are to be saved, too."""
        for table, ids in rows.items():
            self.unsaved.setdefault(table, set()).update(ids)

    def take_unsaved(self) -> Rows:
        """Take the rows that are to be saved; what changes after this is to be saved next."""
        rows, self.unsaved = self.unsaved, {}
        return rows

    def all_rows(self) -> Rows:
        """Every row that could be saved."""
        return {name: set(getattr(self.state, name)) for name in _SAVED}

    def folded(self) -> None:
        """Events of other processes were folded into the state."""
        state = self.state
        # What the owner has recorded need not be on the agenda of a process that follows.
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
        """Register a function to call at a new epoch, for code that keeps positions as they were written."""
        self._at_new_epoch.append(forget)

    def enter(self, epoch: int) -> None:
        """The log is in this epoch: what was read in another one has to be read again."""
        if self.epoch:
            self.loaded = False
            self.shared_key = None
        self.epoch = epoch
        self.position_prefix = position_prefix(self._partition, epoch)
        for forget in self._at_new_epoch:
            forget()
