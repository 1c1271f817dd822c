"""The ledger's state, folded from the log: one committed state, with drafts on top."""

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
        """All rows by id, for reading only."""
        return self


class Layer(Table[K, V]):
    """Rows that a draft has changed, on top of the committed ones (or of those of another draft)."""

    def __init__(self, base: Table[K, V]) -> None:
        super().__init__()
        self.rest_on(base)

    def rest_on(self, base: Table[K, V]) -> None:
        """Look up in `base` what is not changed here."""
        self._base = base
        self.below: Callable[[K], V | None] = base.find if isinstance(base, Layer) else base.get

    def find(self, key: K) -> V | None:
        """The draft's row, otherwise the one below, or None."""
        row = self.get(key)
        return row if row is not None else self.below(key)

    def rows(self) -> Mapping[K, V]:
        """All rows by id: the draft's, otherwise those below."""
        return {**self._base.rows(), **self}


class SettingsLayer(Layer[K, V]):
    """Rows that few groups change: until one does, look-ups go directly to the layer below."""

    def rest_on(self, base: Table[K, V]) -> None:
        """Look up in `base` what is not changed here."""
        super().rest_on(base)
        if not self:
            self.find = self.below  # type: ignore[method-assign,assignment]

    def __setitem__(self, key: K, row: V) -> None:
        """Change a row."""
        super().__setitem__(key, row)
        self.__dict__.pop("find", None)


def owned(table: Table[K, C], key: K) -> C | None:
    """A row that may be changed in place: in a draft it is copied on first use."""
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
"""(when, kind, id, generation): something that happens through the passing of time alone."""


class Books(ABC):
    """The tables that decisions read and events change: `State` if committed, `Draft` if not yet."""

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
    """The mark of the history up to `head`; a draft gets its own once its group has an id."""
    at: Instant
    """The time of the last event: time in the log never goes back."""
    settings_changed: bool
    """Whether this draft has changed anything but money: then cached facts are stale."""

    @abstractmethod
    def due(self, when: Instant, kind: str, subject: str, generation: int = 0) -> None:
        """Schedule something that will happen through the passing of time alone."""


class State(Books):
    """The committed state: as of position `head`, true and durable."""

    def __init__(self) -> None:
        self.settings_changed = False
        self.agenda: list[Due] = []
        """A heap of what will happen through time alone; entries may be out of date."""
        self.forget()

    def forget(self) -> None:
        """Go back to the state before the first event."""
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
    """The state as one group of commands would change it, until the outcome of its commit is known.

    `above`: a draft whose commit is under way. This draft is valid only if that one is committed;
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
        """Use the state as the layer below: the draft that was there is committed, and merged into it."""
        for name in TABLES:
            getattr(self, name).rest_on(getattr(self.state, name))

    def due(self, when: Instant, kind: str, subject: str, generation: int = 0) -> None:
        """Store an entry for the agenda until the commit."""
        self.pending_due.append((when, kind, subject, generation))

    def merge(self) -> None:
        """Merge the changes into the state: the group is durable."""
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
        """(table, ids) of the rows that this draft has changed or copied."""
        for name in TABLES:
            if layer := getattr(self, name):
                yield name, layer
