"""The log in memory: a fake that passes the same contract tests as PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Literal
from uuid import uuid4

from domain.ports import (
    ClaimTakenError,
    Clock,
    Group,
    HeadMovedError,
    LogUnavailableError,
    NewClaim,
    NotOwnerError,
    OtherHistoryError,
    OutcomeUnknownError,
    TakenClaim,
)
from infra.clock import SystemClock
from infra.owners import LogIdentity, Owner
from keyledger_language.history import HistoryPoint, RecordedEvent, mark_of
from keyledger_language.instants import Instant

MOST_EVENTS = 10_000
"""The most events of one group; a command queue makes far smaller ones."""


class MemoryStorage:
    """The storage that several logs share, as several processes share a database."""

    def __init__(self) -> None:
        self.events: list[RecordedEvent] = []
        self.versions: set[tuple[str, int]] = set()
        self.claims: dict[bytes, tuple[TakenClaim, Instant | None]] = {}
        self.groups: set[bytes] = set()
        self.data_keys: dict[str, bytes] = {}
        self.owner: MemoryLog | None = None
        self.announced: Owner | None = None
        self.identity = LogIdentity(str(uuid4()), epoch=1)
        self.up = True
        self._standby_there = asyncio.Event()
        self._standby_there.set()

    def lose_standby(self) -> None:
        """Disconnect the standby that must have all commits: from here on commits wait."""
        self._standby_there.clear()

    def return_standby(self) -> None:
        """Connect the standby again: it has all that was committed, and commits continue."""
        self._standby_there.set()

    @property
    def standby_away(self) -> bool:
        """Whether commits wait."""
        return not self._standby_there.is_set()

    async def reach_standby(self) -> None:
        """Wait until the standby has everything that is stored here."""
        await self._standby_there.wait()

    @property
    def end(self) -> HistoryPoint:
        """The end of the log."""
        mark = self.events[-1].mark if self.events else 0
        return HistoryPoint(len(self.events), mark, self.identity.epoch)

    def raise_epoch(self) -> None:
        """What `keyledger new-epoch` does."""
        self.identity = self.identity._replace(epoch=self.identity.epoch + 1)

    def copy(self) -> MemoryStorage:
        """A backup, as of now."""
        made = MemoryStorage()
        made.restore(self)
        return made

    def restore(self, backup: MemoryStorage) -> None:
        """Return to the state of the backup; the holder of the lock is cut off."""
        self.events, self.versions = list(backup.events), set(backup.versions)
        self.claims, self.groups = dict(backup.claims), set(backup.groups)
        self.data_keys, self.identity = dict(backup.data_keys), backup.identity
        self.owner = None


class MemoryLog:
    """One session on a storage. Tests may cut it off, and drop its acknowledgements."""

    def __init__(
        self, storage: MemoryStorage | None = None, *, partition: int = 0, clock: Clock | None = None
    ) -> None:
        self.partition = partition
        self.storage = MemoryStorage() if storage is None else storage
        self._clock = SystemClock() if clock is None else clock
        self._next_acknowledgement: Literal["arrives", "lost_after_commit", "lost_before_commit"] = "arrives"
        self._waiting: asyncio.Future[Literal["terminated", "cancelled"]] | None = None
        """An append that waits for the standby; its result is the way in which the wait is broken off."""
        self._confirmations_waiting = 0
        self._proven: RecordedEvent | None = None

    def lose_next_acknowledgement(self, *, committed: bool) -> None:
        """Break the connection while the next group is being committed."""
        self._next_acknowledgement = "lost_after_commit" if committed else "lost_before_commit"

    def cut_off(self) -> None:
        """End the session and its lock without notice."""
        if self.storage.owner is self:
            self.storage.owner = None

    def break_off(self, how: Literal["terminated", "cancelled"]) -> None:
        """End the append's wait for the standby, which does not have the append."""
        assert self._waiting is not None, "no append waits"
        self._waiting.set_result(how)

    async def acquire(self) -> bool:
        """Become the owner, if no other session is."""
        self._reach()
        if self.storage.owner is None:
            self.storage.owner = self
        return self.storage.owner is self

    async def confirm(self) -> bool:
        """Whether this session was the owner at the time of the call."""
        if self.storage.owner is not self:
            return False
        self._reach()
        await self._reach_standby()
        return True

    async def waits_for_standby(self) -> bool:
        """Whether a commit waits for the standby."""
        self._reach()
        return self._waiting is not None or self._confirmations_waiting > 0

    async def _reach_standby(self) -> None:
        self._confirmations_waiting += 1
        try:
            await self.storage.reach_standby()
        finally:
            self._confirmations_waiting -= 1

    async def release(self) -> None:
        """Stop being the owner."""
        self.cut_off()

    async def announce(self, address: str, incarnation: str) -> None:
        """Announce the owner's address; only the owner can."""
        if self.storage.owner is not self:
            raise NotOwnerError
        self.storage.announced = Owner(address, incarnation, os.getpid())

    async def owner(self) -> Owner | None:
        """The owner that announced itself last; it may have ended since."""
        return self.storage.announced

    async def identity(self) -> LogIdentity:
        """The log's id and its epoch."""
        return self.storage.identity

    async def close(self) -> None:
        """End the session."""
        self.cut_off()

    async def head(self) -> int:
        """The last position."""
        self._reach()
        return len(self.storage.events)

    async def end(self) -> HistoryPoint:
        """The end of the log."""
        self._reach()
        return self.storage.end

    async def append(self, group: Group) -> int:
        """Write all of the group, or nothing."""
        if len(group.events) > MOST_EVENTS:
            raise ValueError(f"a group has at most {MOST_EVENTS} events, not {len(group.events)}")
        if self.storage.owner is not self:
            raise NotOwnerError
        self._reach()
        self._refuse(group)
        outcome, self._next_acknowledgement = self._next_acknowledgement, "arrives"
        if outcome == "lost_before_commit":
            self.cut_off()
            raise OutcomeUnknownError
        await self._commit(group)
        if outcome == "lost_after_commit":
            self.cut_off()
            raise OutcomeUnknownError
        return len(self.storage.events)

    async def _commit(self, group: Group) -> None:
        """Write the group. While it waits for the standby it is not visible, until the wait ends."""
        if not self.storage.standby_away:
            self._write(group)
            return
        self._waiting = asyncio.get_running_loop().create_future()
        returned = asyncio.ensure_future(self.storage.reach_standby())
        try:
            either: set[asyncio.Future[Any]] = {self._waiting, returned}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            broken_off = self._waiting.result() if self._waiting.done() else None
        finally:
            returned.cancel()
            self._waiting = None
        self._write(group)
        if broken_off == "terminated":
            self.cut_off()
            raise OutcomeUnknownError
        if broken_off == "cancelled":
            await self._reach_standby()

    async def committed(self, group: Group) -> bool | None:
        """Whether this group was written durably."""
        self._reach()
        written = group.group_id in self.storage.groups
        never = self.storage.owner is self or len(self.storage.events) > group.behind.position
        await self._reach_standby()
        return written or (False if never else None)

    async def claims(self, digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        """The claims that are taken and not expired."""
        self._reach()
        return {digest: self.storage.claims[digest][0] for digest in digests if self._is_taken(digest)}

    async def read(self, after: int, limit: int) -> list[RecordedEvent]:
        """Events after a position."""
        self._reach()
        return self.storage.events[after : after + limit]

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        """Events after a position, once the standby has them."""
        found = await self.read(after, limit)
        if found and found[-1] != self._proven and self.storage.standby_away:
            await self._reach_standby()
            if await self.read_at([found[-1].position]) != [found[-1]]:
                raise LogUnavailableError("the events read are no longer in the log")
        self._proven = found[-1] if found else None
        return found

    async def read_at(self, positions: Sequence[int]) -> list[RecordedEvent]:
        """Events at positions, in order."""
        self._reach()
        there = range(1, len(self.storage.events) + 1)
        return [self.storage.events[position - 1] for position in sorted(set(positions)) if position in there]

    async def data_keys(self, subjects: Sequence[str] | None = None) -> dict[str, bytes]:
        """All data keys, or those of some subjects."""
        self._reach()
        stored = self.storage.data_keys
        return {subject: stored[subject] for subject in stored if subjects is None or subject in subjects}

    def _reach(self) -> None:
        if not self.storage.up:
            self.cut_off()
            raise LogUnavailableError

    def _is_taken(self, digest: bytes) -> bool:
        if digest not in self.storage.claims:
            return False
        expires_at = self.storage.claims[digest][1]
        return expires_at is None or expires_at > self._clock.now()

    def _refuse(self, group: Group) -> None:
        end = self.storage.end
        if group.behind.epoch != end.epoch:
            raise OtherHistoryError
        if group.behind.position != end.position:
            raise HeadMovedError
        if group.behind.mark != end.mark:
            raise OtherHistoryError
        streams = [(event.stream, event.version) for event in group.events]
        if len(set(streams)) < len(streams) or not self.storage.versions.isdisjoint(streams):
            raise ValueError("a stream has this version already")
        digests = [claim.digest for claim in group.claims]
        if group.group_id in self.storage.groups or len(set(digests)) < len(digests):
            raise ClaimTakenError
        if any(self._is_taken(digest) for digest in digests):
            raise ClaimTakenError

    def _write(self, group: Group) -> None:
        head, mark = group.behind.position, mark_of(group.group_id)
        storage = self.storage
        storage.events += [
            RecordedEvent(head + n, *event, mark) for n, event in enumerate(group.events, start=1)
        ]
        storage.versions.update((event.stream, event.version) for event in group.events)
        storage.claims.update({claim.digest: _taken(head, claim) for claim in group.claims})
        storage.groups.add(group.group_id)
        storage.data_keys.update({key.subject: key.material for key in group.data_keys})


def _taken(head: int, claim: NewClaim) -> tuple[TakenClaim, Instant | None]:
    return TakenClaim(head + 1 + claim.index, claim.answer), claim.expires_at
