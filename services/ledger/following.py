"""The past: events that this process did not decide, folded into its state in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from domain.evolve import evolve
from domain.ports import Log, OtherHistoryError
from domain.state import Draft, State
from keyledger_language import events as e
from keyledger_language.history import HistoryPoint, RecordedEvent
from services.ledger.errors import LogGapError
from services.ledger.jobs import Mapper
from services.ledger.narrowings import Narrowings

_READ_BATCH = 2_000


class Follower:
    """Reads the log after the state's head, and folds it into the state."""

    def __init__(
        self,
        log: Log,
        state: State,
        mapper: Mapper,
        narrowings: Narrowings,
        *,
        note_changed: Callable[[Draft], None],
        find_reservation: Callable[[str], Awaitable[None]],
    ) -> None:
        self._log = log
        self._state = state
        self._mapper = mapper
        self._narrowings = narrowings
        self._note_changed = note_changed
        self._find_reservation = find_reservation

    async def catch_up(self) -> int:
        """Fold what other processes appended, once no fail-over can undo it; the number of events.

        Raises OtherHistoryError if the log is not the one that was folded, LogGapError,
        LogUnavailableError.
        """
        count = 0
        ahead: asyncio.Future[list[RecordedEvent]] | None = None
        try:
            while batch := await (ahead or self._read(self._state.head, self._state.mark)):
                # While these are folded, the next are read: a start may have many.
                ahead = self._read_ahead(batch[-1]) if len(batch) == _READ_BATCH else None
                await asyncio.sleep(0)
                await self._take(batch)
                count += len(batch)
        finally:
            if ahead is not None:
                ahead.cancel()
        return count

    async def is_in_log(self, point: HistoryPoint) -> bool:
        """Whether this point is in the log's history."""
        found = await self._log.read_at([point.position])
        return point.position == 0 or (bool(found) and found[0].mark == point.mark)

    async def _read(self, last: int, mark: int) -> list[RecordedEvent]:
        """The events after the last one that was folded, which is read with them and compared."""
        if last == 0:
            return await self._log.read_durable(0, _READ_BATCH)
        found = await self._log.read_durable(last - 1, _READ_BATCH + 1)
        if not found or found[0].position != last:
            raise OtherHistoryError(f"Event {last}, which was read from the log, is not in it any more")
        if found[0].mark != mark:
            raise OtherHistoryError(f"Event {last} of the log is not the one that was read from it")
        return found[1:]

    def _read_ahead(self, last: RecordedEvent) -> asyncio.Future[list[RecordedEvent]]:
        reading = asyncio.ensure_future(self._read(last.position, last.mark))
        # If these cannot be folded, nothing awaits the events after them.
        reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        return reading

    async def _take(self, batch: Sequence[RecordedEvent]) -> None:
        await self.learn_data_keys(batch)
        events = [(one, self._mapper.decode(one)) for one in batch]
        brought = await self._bring_back(events)
        self._fold(events, brought)

    async def learn_data_keys(self, batch: Sequence[RecordedEvent]) -> None:
        """Without its data key an event would be decoded without its personal fields, such as allowed_ips."""
        data_keys = self._mapper.data_keys
        subjects = {subject for one in batch if (subject := self._mapper.subject_of(one)) is not None}
        if unknown := [subject for subject in subjects if not data_keys.knows(subject)]:
            data_keys.learn(await self._log.data_keys(unknown))

    async def _bring_back(self, events: list[tuple[RecordedEvent, e.Event]]) -> list[str]:
        """Settled reservations are not kept in memory, yet one that expired may be captured late."""
        reservations, made, brought = self._state.reservations, set[str](), list[str]()
        for _, event in events:
            if isinstance(event, e.CreditsReserved):
                made.add(event.reservation_id)
            elif isinstance(event, e.ReservationCaptured | e.ReservationReleased):
                wanted = event.reservation_id
                if wanted not in reservations and wanted not in made:
                    await self._find_reservation(wanted)
                    brought.append(wanted)
        return brought

    def _fold(self, events: list[tuple[RecordedEvent, e.Event]], brought: Sequence[str]) -> None:
        state = self._state
        ahead = {name: row for name in brought if (row := state.reservations.get(name)) is not None}
        draft = Draft(state)
        for recorded, event in events:
            if recorded.position != draft.head + 1:
                raise LogGapError(f"The log continues at {recorded.position} after {draft.head}.")
            if recorded.version != (draft.versions.find(recorded.stream) or 0) + 1:
                raise OtherHistoryError(
                    f"Event {recorded.position} does not follow what was read of {recorded.stream}"
                )
            draft.versions[recorded.stream] = recorded.version
            evolve(draft, event, recorded.position)
            row = ahead.get(getattr(event, "reservation_id", ""))
            if row is not None and recorded.position <= row.position:
                # The owner saved it as it was after this event: folded again it would count twice.
                draft.reservations[row.id] = row
            self._narrowings.folded(event, draft, recorded.position)
        draft.mark = events[-1][0].mark
        draft.merge()
        self._note_changed(draft)
