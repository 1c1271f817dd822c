"""Filling memory from saved rows and the log after them, and saving it again."""

from __future__ import annotations

import structlog

from domain.ports import CheckpointMovedError
from services.ledger.errors import Lost, NotOwnerHereError
from services.ledger.following import Follower
from services.ledger.memory import LedgerMemory, Rows
from services.ledger.ports import Ports
from services.ledger.saving import StateKeeper, take_part

log = structlog.get_logger()

EDGE_KEYS_SUBJECT = "edges"
"""The data key that leases are sealed with: every owner derives the same keys from it."""


class SavedState:
    """Brings memory up to the log's head, and saves rows of it, so that a start need not read so far."""

    def __init__(self, ports: Ports, memory: LedgerMemory) -> None:
        self._ports = ports
        self._memory = memory
        data_keys = ports.mapper.data_keys
        self.keeper = StateKeeper(
            ports.rows, memory.state, memory.narrowings, data_keys, epoch=lambda: memory.epoch
        )
        self.find_reservation = self.keeper.find_reservation
        """Brings a settled reservation back into the state, if there is one of that id."""
        self.follower = Follower(
            ports.log,
            memory.state,
            ports.mapper,
            memory.narrowings,
            note_changed=memory.note_changed,
            find_reservation=self.find_reservation,
        )
        self._everything_unsaved = False
        self._older: Rows = {}
        """Rows changed up to `_older_head`, which the process that owns the partition may not have saved."""
        self._older_head = 0

    @property
    def behind(self) -> int:
        """How many events a start would have to replay now."""
        return self._memory.state.head - self.keeper.through

    # -- reading

    async def catch_up(self) -> bool:
        """Read what is not in memory yet: rows if memory is empty, then the log; whether that had events.

        Raises OtherHistoryError if the log is not the one that was read, LogUnavailableError.
        """
        memory = self._memory
        if not memory.loaded:
            await self._load()
        stored: dict[str, bytes] = {}
        if memory.shared_key is None:
            stored = await self._ports.log.data_keys([EDGE_KEYS_SUBJECT])
        came = bool(await self.follower.catch_up())
        if came:
            memory.folded()
        # It was written with events: it is durable when they are.
        memory.shared_key = memory.shared_key or stored.get(EDGE_KEYS_SUBJECT)
        memory.caught_up = True
        return came

    async def _load(self) -> None:
        memory = self._memory
        self.forget()
        await self.keeper.load(self._learn_data_keys)
        saved = self.keeper.checkpoint
        if saved.epoch < memory.epoch and not await self.follower.is_in_log(saved):
            # The rows are of events that were lost before the epoch was raised: the owner will delete them.
            log.warning("state.of_another_history", through=saved.position)
            self.forget()
        memory.facts.forget_all()
        memory.loaded = True

    async def _learn_data_keys(self) -> None:
        self._ports.learn_data_keys(await self._ports.log.data_keys())

    def forget(self) -> None:
        """What is in memory cannot be relied on: it is read again."""
        self._memory.forget()
        self._older = {}

    # -- saving

    async def leave_to_owner(self) -> None:
        """Another process saves: what it has saved, we need not save, nor keep in memory if it is settled."""
        memory = self._memory
        if (await self._ports.rows.through()).position >= self._older_head:
            self.keeper.forget_settled(
                self._older.get("reservations", ()), memory.unsaved.get("reservations", ())
            )
            self._older = memory.take_unsaved()
            self._older_head = memory.state.head

    async def take_over(self) -> None:
        """From now on this process saves the rows."""
        older, self._older = self._older, {}
        self._memory.note_unsaved(older)
        if not await self.keeper.take_over(self.follower.is_in_log):
            self._everything_unsaved = True

    async def save(self) -> None:
        """Save what changed since the last save. Raises LogUnavailableError, Lost."""
        memory = self._memory
        if self._everything_unsaved:
            self._everything_unsaved = False
            memory.note_unsaved(memory.all_rows())
        while self.keeper.begins and (part := take_part(memory.unsaved)) is not None:
            if not await self._save_rows(part, in_parts=True):
                return
        rows = memory.take_unsaved()
        if await self._save_rows(rows, in_parts=False):
            changed = memory.unsaved.get("reservations", ())
            self.keeper.forget_settled(rows.get("reservations", ()), changed)

    async def _save_rows(self, rows: Rows, *, in_parts: bool) -> bool:
        """False: the rows were not as they were left, and all of them will be written again."""
        try:
            await self.keeper.save(rows, in_parts=in_parts)
        except CheckpointMovedError as error:
            # A former owner saved once more before it noticed, or the rows were cleared.
            self._everything_unsaved = True
            if not await self._ports.log.confirm():
                raise Lost(NotOwnerHereError("Another process owns the partition.")) from error
            await self.keeper.take_over(self.follower.is_in_log)
            return False
        except BaseException:
            self._memory.note_unsaved(rows)
            raise
        return True
