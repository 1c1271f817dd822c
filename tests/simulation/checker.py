"""What must never happen: an accept that arrived after the fence, or too long after the commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


class ViolationError(AssertionError):
    """A key was accepted that nobody may accept any more."""


@dataclass(slots=True)
class Subject:
    """Something that a use rests on: a key, its organization, project, plan or keyspace."""

    name: str
    good: bool = True
    """As committed."""
    bad_position: int = 0
    bad_committed_at: int | None = None
    bad_known_at: int | None = None
    """When a ledger process first knew that its commit had happened."""
    fenced_at: int | None = None

    def turned_bad(self, position: int, at: int) -> None:
        self.good = False
        self.bad_position = position
        self.bad_committed_at = at
        self.bad_known_at = None
        self.fenced_at = None

    def turned_good(self) -> None:
        self.good = True
        self.bad_committed_at = self.bad_known_at = self.fenced_at = None


@dataclass(slots=True)
class Checker:
    """Watches accepts and fences, on the world's own clock."""

    bound: int
    accepts: int = 0
    stale_accepts: int = 0
    fences: int = 0
    worst_staleness: int = 0
    worst_fence: int = 0
    by_position: dict[int, Subject] = field(default_factory=dict)
    on_known: Callable[[Subject], None] = lambda subject: None
    on_fenced: Callable[[Subject], None] = lambda subject: None

    def known(self, position: int, now: int) -> None:
        subject = self.by_position.get(position)
        if subject is not None and subject.bad_position == position and subject.bad_known_at is None:
            subject.bad_known_at = now
            self.on_known(subject)

    def restored(self, length: int) -> None:
        """The log has lost what came behind this position."""
        for position in [one for one in self.by_position if one > length]:
            del self.by_position[position]

    def fenced(self, position: int, now: int) -> None:
        """A ledger answered: nobody accepts this any more."""
        self.fences += 1
        subject = self.by_position.get(position)
        if subject is None or subject.bad_position != position or subject.good:
            return
        if subject.fenced_at is None:
            subject.fenced_at = now
            self.on_fenced(subject)
        if subject.bad_known_at is not None:
            self.worst_fence = max(self.worst_fence, now - subject.bad_known_at)

    def accepted(self, who: str, arrived: int, subjects: tuple[Subject, ...]) -> None:
        """An accept whose request arrived at `arrived`."""
        self.accepts += 1
        for subject in subjects:
            if not subject.good:
                self._stale(who, arrived, subject)

    def _stale(self, who: str, arrived: int, subject: Subject) -> None:
        self.stale_accepts += 1
        said = (
            f"{who} accepted {subject.name}, bad since position {subject.bad_position}; arrived at {arrived}"
        )
        if subject.fenced_at is not None and arrived > subject.fenced_at:
            raise ViolationError(f"{said}, fenced at {subject.fenced_at}")
        if subject.bad_known_at is not None:
            staleness = arrived - subject.bad_known_at
            self.worst_staleness = max(self.worst_staleness, staleness)
            if staleness > self.bound:
                raise ViolationError(f"{said}, known bad since {subject.bad_known_at}: {staleness} ns")
