"""What the ledger needs from outside: a log, storage for its state rows, a clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NamedTuple, Protocol

from keyledger_language.history import HistoryPoint, RecordedEvent, mark_of
from keyledger_language.instants import Instant


class NewEvent(NamedTuple):
    """One encoded event, to be appended to the log."""

    stream: str
    version: int
    type: str
    """The name on disk, such as `key.revoked`; never a Python path."""
    data: bytes


class NewClaim(NamedTuple):
    """A name that may be taken only once: a request id, a reference, a fingerprint, a command id."""

    digest: bytes
    """16 bytes, see `domain.claims`."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which no code calls on a claim
    """Which event of the group the claim points to (0-based)."""
    expires_at: Instant | None = None
    """None: for ever. Otherwise the log may delete the claim after this instant."""
    answer: bytes | None = None
    """The answer to a replay, if it cannot be derived from the event alone."""


class TakenClaim(NamedTuple):
    """A claim that is in the log."""

    position: int
    answer: bytes | None


class NewDataKey(NamedTuple):
    """A key that encrypts the personal fields of one subject, made with its first event."""

    subject: str
    """An organization's id, or `platform`."""
    material: bytes


class DataKeyError(Exception):
    """Encrypted data does not match its data key: either the key is another one, or the data was changed."""


class Group(NamedTuple):
    """Everything that one commit writes: all of it is in the log, or none."""

    group_id: bytes
    """16 random bytes, claimed with the group: an unknown outcome is looked up by them."""
    behind: HistoryPoint
    """The end of the log on which the group was decided; it can be written only right after it."""
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
    """Another writer appended first: catch up, then decide again. Nothing was written."""


class OtherHistoryError(HeadMovedError):
    """The log is not the one that was read: another mark at a position, or another epoch."""


class ClaimTakenError(Exception):
    """A claim of the group is already taken. Nothing was written."""


class NotOwnerError(Exception):
    """This process does not (or no longer) hold the partition. Nothing was written."""


class OutcomeUnknownError(Exception):
    """The connection was lost while committing: the group may or may not be in the log."""


class LogUnavailableError(Exception):
    """The log cannot be reached, and nothing was written."""


class Log(Protocol):
    """One partition's ordered, append-only log. Only its owner appends; any process may read."""

    partition: int

    async def acquire(self) -> bool:
        """Become the partition's owner, if no other process is. True if held (also if it was before)."""
        ...

    async def confirm(self) -> bool:
        """Whether the partition was held at the time of the call, in the one log that may be written.

        Waits while a standby that must have every commit is disconnected, and returns by itself once it
        is back. Appends may be under way in the meantime. Raises LogUnavailableError.
        """
        ...

    async def waits_for_standby(self) -> bool:
        """Whether a commit waits for a disconnected standby. Raises LogUnavailableError."""
        ...

    async def release(self) -> None:
        """Stop being the owner."""
        ...

    async def head(self) -> int:
        """The position of the last event; 0 for an empty log."""
        ...

    async def end(self) -> HistoryPoint:
        """The end of the log: the last event's position and mark, and the log's epoch."""
        ...

    def append(self, group: Group) -> Awaitable[int]:
        """Write the group right after the point that it names; returns the new head, once durable.

        Raises HeadMovedError (OtherHistoryError if mark or epoch differ),
        ClaimTakenError, NotOwnerError, LogUnavailableError (with each of these nothing was written),
        or OutcomeUnknownError.
        """
        ...

    async def committed(self, group: Group) -> bool | None:
        """Whether this group was written durably. False: it never will be. None: it may still be under way.

        It is false only if another group is in its place, or the partition has been acquired again.
        Waits, as `confirm` does, while a standby is disconnected. Raises LogUnavailableError.
        """
        ...

    async def claims(self, digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        """Those of the claims that are taken and not expired."""
        ...

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Up to `limit` events after position `after`, in order."""
        ...

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        """As `read`, but only events that survive every fail-over that loses no acknowledged commit.

        Waits, as `confirm` does, until a standby that must have every commit has the events read.
        Raises LogUnavailableError, also if another server, which lacks them, has answered in the meantime.
        """
        ...

    async def read_at(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """The events at these positions (those that exist), in order of position."""
        ...

    async def data_keys(self, subjects: Sequence[str] | None = None) -> dict[str, bytes]:
        """Data keys by subject: of all subjects, or of those given that have one."""
        ...


class StateRow(NamedTuple):
    """One subject's state, as of the checkpoint that it was saved with."""

    subject: str
    """Table and id, such as `wallets/org_...`."""
    data: bytes
    resident: bool = True
    """False: not loaded at start, but by id when needed (a settled reservation). This never changes."""


class StateBlock(NamedTuple):
    """Many rows of one table: a start reads millions, so the cost of each row matters."""

    table: str
    """The part of their subjects before the slash."""
    row_count: int
    rows: bytes
    """The data of these rows, one after the other."""


class CheckpointMovedError(Exception):
    """Another process has saved in the meantime: what changed since its checkpoint is not known here."""


class StateRows(Protocol):
    """Where the owner saves its state, so that a start need not replay the whole log.

    Never a source of truth: dropping all rows only makes the next start slower.
    """

    async def save(
        self, through: HistoryPoint, rows: Sequence[StateRow], removed: Sequence[str], *, behind: HistoryPoint
    ) -> None:
        """Write rows and checkpoint together; afterwards all rows are as of `through`.

        `behind` is the checkpoint since which these rows changed. Raises CheckpointMovedError
        if the stored checkpoint differs: a former owner would mix its rows with its successor's.
        """
        ...

    async def through(self) -> HistoryPoint:
        """The checkpoint; the beginning if there is none."""
        ...

    def load(self) -> AsyncIterator[StateBlock]:
        """All resident rows, in blocks, as of one checkpoint: saves during the load are not visible."""
        ...

    async def find(self, subjects: Sequence[str]) -> list[StateRow]:
        """These rows, resident or not."""
        ...

    async def clear(self) -> None:
        """Delete all rows and the checkpoint."""
        ...


class Wakeups(Protocol):
    """Notifies when the log has grown."""

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, once it is past `position` or the timeout is over."""
        ...


class Clock(Protocol):
    """The time of day."""

    def now(self) -> Instant:
        """Now, in microseconds since the Unix epoch, UTC."""
        ...


class FenceClock(Clock, Protocol):
    """The two clocks of one machine that leases and fences need."""

    def boottime_ns(self) -> int:
        """Nanoseconds since a fixed point; never steps, and continues while the machine sleeps."""
        ...
