"""The desk on which one group of commands is decided."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from domain import ids
from domain.commands import Asking, Metering
from domain.evolve import evolve
from domain.facts import FactsBook
from domain.keys import Key, Secret
from domain.ports import NewClaim
from domain.state import Draft
from keyledger_language import KeyFacts, RateLimit, RateState
from keyledger_language.events import Event, Private, stream_of
from keyledger_language.instants import Instant


class Limiter(Protocol):
    """Counts uses against rate limits."""

    def take(
        self, key_id: str, limits: tuple[RateLimit, ...], provider: str | None
    ) -> tuple[bool, list[RateState]]:
        """Count one use: (allowed, the states of the limits)."""
        ...

    def give_back(self, key_id: str, limits: tuple[RateLimit, ...], provider: str | None) -> None:
        """Undo one `take`."""
        ...


class Placed(NamedTuple):
    """An event of this group, with its stream and its version there."""

    stream: str
    version: int
    event: Event


SYSTEM_ASKING = Asking(actor="system")


class Desk:
    """A draft, the time, and what the group has decided so far.

    Recording an event applies it to the draft at once, so that the next command of the
    group is decided on the result of this one.
    """

    def __init__(
        self,
        draft: Draft,
        *,
        now: Instant,
        facts: FactsBook,
        limiter: Limiter,
        entropy: Callable[[], int],
        partition: int = 0,
    ) -> None:
        self.draft = draft
        self.now = max(now, draft.at)
        self.partition = partition
        self.asking = SYSTEM_ASKING
        self.placed: list[Placed] = []
        self.claims: list[NewClaim] = []
        self.base = draft.head
        self.taken: dict[bytes, int] = {}
        """The names that this group takes for ever, each with the position of its event."""
        self.limiter = limiter
        self._facts = facts
        self._entropy = entropy
        self._rate_takes: list[tuple[str, tuple[RateLimit, ...], str | None]] = []
        self.vouched: str | None = None
        """A caller whose root key was found active in this group."""
        self.located: tuple[Metering, tuple[Key, Secret | None] | str] | None = None
        """The last command and the key that pays for it: needed for the claim, then for the decision."""

    # -- recording

    @property
    def next_position(self) -> int:
        """The position of the next event."""
        return self.draft.head + 1

    def record(self, event: Event) -> int:
        """Record an event: it is applied to the draft, and will be appended. Returns its position."""
        draft = self.draft
        position = draft.head + 1
        stream = stream_of(event)
        versions = draft.versions
        version = (versions.find(stream) or 0) + 1
        versions[stream] = version
        evolve(draft, event, position)
        self.placed.append(Placed(stream, version, event))
        return position

    def begin(self, asking: Asking) -> None:
        """Begin the decision on the next command, for its caller."""
        self.asking = asking
        self.located = None

    def claim(self, digest: bytes) -> None:
        """Take a name for the event recorded last (or, if there is none yet, for the next)."""
        index = max(0, len(self.placed) - 1)
        self.claims.append(NewClaim(digest, index))
        self.taken[digest] = self.base + index + 1

    def private(self, **fields: object) -> Private:
        """Personal fields, with the origin of the request."""
        return Private(origin=self.asking.origin, **fields)  # type: ignore[arg-type]

    # -- ids

    def new_id(self, kind: str) -> str:
        """A new random id."""
        return ids.new_id(kind, self.now, self._entropy())

    def placed_id(self, kind: str) -> str:
        """The id of what the next event creates; it contains the event's position."""
        return ids.placed_id(kind, self.now, partition=self.partition, position=self.next_position)

    # -- reading

    def facts_of(self, key: Key, secret: Secret | None) -> KeyFacts:
        """What a verdict needs to know of a key, as of this point in the group."""
        if self.draft.settings_changed:
            return self._facts.build(self.draft, key, secret)
        return self._facts.of(key, secret)

    # -- rate limits

    def take_rate(self, facts: KeyFacts, provider: str | None) -> tuple[bool, list[RateState]]:
        """Count one use; undone if the group is."""
        allowed, states = self.limiter.take(facts.key_id, facts.rate_limits, provider)
        if allowed and states:
            self._rate_takes.append((facts.key_id, facts.rate_limits, provider))
        return allowed, states

    def give_back_rate(self) -> None:
        """Undo the last count: its use is refused after all, and consumes nothing."""
        self.limiter.give_back(*self._rate_takes.pop())

    def undo(self) -> None:
        """Give back what the group took outside of the draft: the group is dropped."""
        for take in self._rate_takes:
            self.limiter.give_back(*take)
        self._rate_takes.clear()
