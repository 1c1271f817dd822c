"""Reading events out of a log, in processes that do not write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from domain.ports import Log, RecordedEvent
from infra.postgres.mapper import EventMapper

E = TypeVar("E", bound=msgspec.Struct)


class EventReader(Generic[E]):
    """Decodes recorded events, and looks up the data keys that were made since the last look."""

    def __init__(self, log: Log, mapper: EventMapper[E]) -> None:
        self._log = log
        self._mapper = mapper
        self._erased: set[str] = set()

    async def read(self, after: int, limit: int) -> list[tuple[RecordedEvent, E]]:
        """Up to `limit` events behind position `after`, in order."""
        batch = await self._log.read(after, limit)
        return list(zip(batch, await self.decode(batch), strict=True))

    async def decode(self, batch: Sequence[RecordedEvent]) -> list[E]:
        """The events of a batch; personal fields whose key was deleted are None."""
        await self._learn(batch)
        return [self._mapper.decode(recorded) for recorded in batch]

    async def _learn(self, batch: Sequence[RecordedEvent]) -> None:
        keys = self._mapper.data_keys
        subjects = {s for s in map(self._mapper.subject_of, batch) if s and not keys.knows(s)} - self._erased
        if not subjects:
            return
        found = await self._log.data_keys(sorted(subjects))
        keys.learn(found)
        # A key is written with the first event that needs it: one that is not there was deleted.
        self._erased |= subjects - found.keys()
