"""The ledger's state: everything that the log says, folded. One committed, drafts above it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from heapq import heappush
from typing import Any, Generic, Protocol, Self, TypeVar

from domain.accounts import Counters, Reservation, Wallet
from domain.keys import Key, Secret
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan, Project
from keyledger_language.instants import Instant

K = TypeVar("K")
V = TypeVar("V")


class _Copies(Protocol):
    def copy(self) -> Self: ...


C = TypeVar("C", bound=_Copies)


class Table(dict[K, V], Generic[K, V]):
    """Committed rows by id."""

    def find(self, key: K) -> V | None:
        """The row, or None."""
        return self.get(key)

    def rows(self) -> Mapping[K, V]:
        """All rows by id, to be looked at."""
        return self


class Layer(Table[K, V]):
    """Rows that a draft has changed, above the committed ones (or above those of another draft)."""

    def __init__(self, base: Table[K, V]) -> None:
        super().__init__()
        self.rest_on(base)

    def rest_on(self, base: Table[K, V]) -> None:
        """What is not changed here is found in `base`."""
        self._base = base
        self.below: Callable[[K], V | None] = base.find if isinstance(base, Layer) else base.get

    def find(self, key: K) -> V | None:
        """The draft's row, else the one below, or None."""
        row = self.get(key)
        return row if row is not None else self.below(key)

    def rows(self) -> Mapping[K, V]:
        """All rows by id: the draft's, else those below."""
        return {**self._base.rows(), **self}


class SettingsLayer(Layer[K, V]):
    """Rows that few groups change: until one does, look-ups go straight to what is below."""

    def rest_on(self, base: Table[K, V]) -> None:
        """What is not changed here is found in `base`."""
        super().rest_on(base)
        if not self:
            self.find = self.below  # type: ignore[method-assign,assignment]

    def __setitem__(self, key: K, row: V) -> None:
        """Change a row."""
        super().__setitem__(key, row)
        self.__dict__.pop("find", None)


def owned(table: Table[K, C], key: K) -> C | None:
    """A row that may be changed in place: in a draft it is copied on the first touch."""
    row = table.get(key)
    if row is None and isinstance(table, Layer):
        below = table.below(key)
        if below is not None:
            row = table[key] = below.copy()
    return row


SETTINGS = ("keyspaces", "organizations", "projects", "plans", "keys", "secrets", "members")
MONEY = ("wallets", "counters", "reservations", "refunds", "last_used", "versions")
TABLES = SETTINGS + MONEY

Due = tuple[Instant, str, str, int]
"""(when, kind, id, generation): something that time alone brings about."""


class Books(ABC):
    """What decisions read and events change; `State` when committed, `Draft` when not yet."""

    keyspaces: Table[str, Keyspace]
    organizations: Table[str, Organization]
    projects: Table[str, Project]
    plans: Table[str, Plan]
    keys: Table[str, Key]
    secrets: Table[bytes, Secret]
    """By fingerprint."""
    wallets: Table[str, Wallet]
    counters: Table[str, Counters]
    """By the id of a key, project or organization."""
    reservations: Table[str, Reservation]
    refunds: Table[str, int]
    """Micros refunded so far, by charge."""
    last_used: Table[str, Instant]
    versions: Table[str, int]
    """The version of each stream's last event."""
    members: Table[str, frozenset[str]]
    """The projects of an organization that can be used."""
    head: int
    mark: int
    """The mark of the history up to `head`; a draft knows its own once its group has an id."""
    at: Instant
    """The time of the last event: time in the log never steps back."""
    settings_changed: bool
    """Has this draft changed anything but money? Then facts kept elsewhere are stale."""

    @abstractmethod
    def due(self, when: Instant, kind: str, subject: str, generation: int = 0) -> None:
        """Remember that time alone will bring something about."""


class State(Books):
    """The committed state: as of position `head`, true and durable."""

    def __init__(self) -> None:
        self.settings_changed = False
        self.agenda: list[Due] = []
        """A heap of what time will bring about; entries may be out of date."""
        self.forget()

    def forget(self) -> None:
        """Begin anew, before the first event."""
        for name in TABLES:
            setattr(self, name, Table())
        self.head = 0
        self.mark = 0
        self.at = 0
        self.agenda = []

    def due(self, when: Instant, kind: str, subject: str, generation: int = 0) -> None:
        """Put an entry on the agenda."""
        heappush(self.agenda, (when, kind, subject, generation))


class Draft(Books):
    """What one group of commands would make of the state, until its commit is known.

    `above`: a draft whose commit is under way. This one holds only if that one comes to be, and
    `rest_on_state` must be called then.
    """

    def __init__(self, state: State, above: Draft | None = None) -> None:
        below: Books = state if above is None else above
        for name in SETTINGS:
            setattr(self, name, SettingsLayer(getattr(below, name)))
        for name in MONEY:
            setattr(self, name, Layer(getattr(below, name)))
        self.state = state
        self.head = below.head
        self.mark = below.mark
        self.at = below.at
        self.settings_changed = above is not None and above.settings_changed
        self.pending_due: list[Due] = []

    def rest_on_state(self) -> None:
        """The draft below was committed: what it changed is in the state now."""
        for name in TABLES:
            getattr(self, name).rest_on(getattr(self.state, name))

    def due(self, when: Instant, kind: str, subject: str, generation: int = 0) -> None:
        """Keep an entry for the agenda until the commit."""
        self.pending_due.append((when, kind, subject, generation))

    def merge(self) -> None:
        """The group is durable: what it changed is the state now."""
        state = self.state
        for name in TABLES:
            layer = getattr(self, name)
            if layer:
                getattr(state, name).update(layer)
        for entry in self.pending_due:
            heappush(state.agenda, entry)
        state.head = self.head
        state.mark = self.mark
        state.at = self.at

    def changed(self) -> Iterable[tuple[str, Iterable[Any]]]:
        """(table, ids) of the rows that this draft has touched."""
        for name in TABLES:
            if layer := getattr(self, name):
                yield name, layer
