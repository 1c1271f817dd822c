"""What the ledger needs of the world: a log, a place for its state rows, a clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NamedTuple, Protocol

from keyledger_language.history import HistoryPoint, RecordedEvent, mark_of
from keyledger_language.instants import Instant


class NewEvent(NamedTuple):
    """One event, encoded, on its way into the log."""

    stream: str
    version: int
    type: str
    """The name on disk, such as `key.revoked`; never a Python path."""
    data: bytes


class NewClaim(NamedTuple):
    """A name that may be taken once: a request id, a reference, a fingerprint, a command id."""

    digest: bytes
    """16 bytes, see `domain.claims`."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks of a claim
    """Which event of the group the claim points to (0-based)."""
    expires_at: Instant | None = None
    """None: for ever. Else the log may forget the claim after this instant."""
    answer: bytes | None = None
    """What to answer a replay with, where the event alone cannot say."""


class TakenClaim(NamedTuple):
    """A claim that the log holds."""

    position: int
    answer: bytes | None


class NewDataKey(NamedTuple):
    """A key that encrypts the personal fields of one subject, made with its first event."""

    subject: str
    """An organization's id, or `platform`."""
    material: bytes


class DataKeyError(Exception):
    """What is encrypted does not fit its data key: that is another one, or it was changed."""


class Group(NamedTuple):
    """All that one commit writes: it is in the log as a whole, or not at all."""

    group_id: bytes
    """16 random bytes, claimed with the group: an unknown outcome is looked up by them."""
    behind: HistoryPoint
    """The end of the log that it was decided on; it is written nowhere else."""
    events: Sequence[NewEvent]
    claims: Sequence[NewClaim] = ()
    data_keys: Sequence[NewDataKey] = ()

    @property
    def end(self) -> HistoryPoint:
        """The end of the log once the group is written."""
        if not self.events:
            return self.behind
        return self.behind._replace(
            position=self.behind.position + len(self.events), mark=mark_of(self.group_id)
        )


class HeadMovedError(Exception):
    """Another writer appended first: catch up and decide again. Nothing was written."""


class OtherHistoryError(HeadMovedError):
    """The log is not the one that was read: another mark at a position, or another epoch."""


class ClaimTakenError(Exception):
    """A claim of the group is taken already. Nothing was written."""


class NotOwnerError(Exception):
    """This process does not (or no longer) hold the partition. Nothing was written."""


class OutcomeUnknownError(Exception):
    """The connection was lost while committing: the group may or may not be in the log."""


class LogUnavailableError(Exception):
    """The log cannot be reached, and nothing was written."""


class Log(Protocol):
    """One partition's ordered, append-only log. Only its owner appends; anyone reads."""

    partition: int

    async def acquire(self) -> bool:
        """Become the partition's owner, if nobody else is. True when held (asking twice is fine)."""
        ...

    async def confirm(self) -> bool:
        """Was the partition held at the moment of the call, in the one log that may be written?

        Waits while a standby that must have every commit is away, and returns by itself once it is
        back. Appends may be under way meanwhile. Raises LogUnavailableError.
        """
        ...

    async def waits_for_standby(self) -> bool:
        """Does a commit wait for a standby that is away? Raises LogUnavailableError."""
        ...

    async def release(self) -> None:
        """Stop being the owner."""
        ...

    async def head(self) -> int:
        """The position of the last event; 0 for an empty log."""
        ...

    async def end(self) -> HistoryPoint:
        """Where the log ends: the last event's position and mark, and the log's epoch."""
        ...

    def append(self, group: Group) -> Awaitable[int]:
        """Write the group right behind the point that it names; the new head, once durable.

        Raises HeadMovedError (OtherHistoryError where it is mark or epoch that differ),
        ClaimTakenError, NotOwnerError, LogUnavailableError (in all of these nothing was written),
        or OutcomeUnknownError.
        """
        ...

    async def committed(self, group: Group) -> bool | None:
        """Was this group written, durably? False: it never will be. None: it may be under way still.

        It is false only where another group stands in its place, or the partition is held anew.
        Waits, as `confirm` does, while a standby is away. Raises LogUnavailableError.
        """
        ...

    async def claims(self, digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        """Those of the claims that are taken and not expired."""
        ...

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Up to `limit` events behind position `after`, in order."""
        ...

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        """As `read`, and only what a fail-over that loses nothing acknowledged keeps.

        Waits, as `confirm` does, until a standby that must have every commit has what was read.
        Raises LogUnavailableError, also where another server answered meanwhile that does not have it.
        """
        ...

    async def read_at(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at these positions (those that exist), in order of position."""
        ...

    async def data_keys(self, subjects: Sequence[str] | None = None) -> dict[str, bytes]:
        """Data keys by subject: all, or those of some subjects that have one."""
        ...


class StateRow(NamedTuple):
    """One subject's state, as of the checkpoint that it was saved with."""

    subject: str
    """Table and id, such as `wallets/org_...`."""
    data: bytes
    resident: bool = True
    """False: not loaded at start, but by id when it is asked for (a settled reservation). It stays so."""


class StateBlock(NamedTuple):
    """Many rows of one table: a start reads millions, and no time is to be lost with each."""

    table: str
    """What stands before the slash in their subjects."""
    row_count: int
    rows: bytes
    """The data of so many rows, one behind the other."""


class CheckpointMovedError(Exception):
    """Another process saved meanwhile: what changed since its checkpoint is not what we know."""


class StateRows(Protocol):
    """Where the owner keeps its state, so that a start need not replay the whole log.

    Never a source of truth: dropping all rows costs time at the next start, nothing else.
    """

    async def save(
        self, through: HistoryPoint, rows: Sequence[StateRow], removed: Sequence[str], *, behind: HistoryPoint
    ) -> None:
        """Write rows and checkpoint together; afterwards all rows are as of `through`.

        `behind` is the checkpoint since which these rows changed. Raises CheckpointMovedError
        when the checkpoint is another: an owner of old would mix its rows with its successor's.
        """
        ...

    async def through(self) -> HistoryPoint:
        """The checkpoint; the beginning when there is none."""
        ...

    def load(self) -> AsyncIterator[StateBlock]:
        """All resident rows, in blocks, as of one checkpoint: saves meanwhile do not show."""
        ...

    async def find(self, subjects: Sequence[str]) -> list[StateRow]:
        """These rows, resident or not."""
        ...

    async def clear(self) -> None:
        """Forget all rows and the checkpoint."""
        ...


class Wakeups(Protocol):
    """Tells that the log has grown."""

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, once it is beyond `position` or the time is over."""
        ...


class Clock(Protocol):
    """The time of day."""

    def now(self) -> Instant:
        """Now, in microseconds since the Unix epoch, UTC."""
        ...


class FenceClock(Clock, Protocol):
    """The two clocks of one machine that leases and fences need."""

    def boottime_ns(self) -> int:
        """Nanoseconds since some fixed point; never steps, goes on while the machine sleeps."""
        ...
