"""How the API queries the projections, and reads single events back from the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg import Connection

from domain.ports import Clock
from domain.projecting import FoundEvent, Row
from infra.postgres.arrays import UuidArray
from infra.postgres.data_keys import select_data_keys
from infra.postgres.mapper import EventMapper
from infra.postgres.projection_schema import LIVE
from infra.postgres.recorder import LedgerRecorder
from infra.postgres.sessions import Sessions
from keyledger_language.events import Event
from keyledger_language.history import RecordedEvent
from keyledger_language.instants import to_datetime
from keyledger_reading.datastore import SessionDatastore
from keyledger_reading.notifications import LoggedEvent


class PostgresQueries:
    """Queries the live projections on a few sessions."""

    def __init__(self, sessions: Sessions, schema: str = LIVE) -> None:
        self._sessions = sessions
        self._schema = schema

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """What a SELECT finds; planned for the given values, since filters vary widely."""
        text = statement.replace("{schema}", self._schema).encode()
        return await self._sessions.run(
            lambda connection: connection.execute(text, parameters, prepare=False).fetchall()
        )


class PostgresEventReader:
    """Reads single events of one partition."""

    def __init__(
        self, sessions: Sessions, mapper: EventMapper[Event], clock: Clock, *, partition: int = 0
    ) -> None:
        self._sessions = sessions
        self._mapper = mapper
        self._clock = clock
        self._partition = partition
        self._recorder = LedgerRecorder(SessionDatastore(sessions.session), partition=partition)

    async def at(self, positions: Sequence[int]) -> list[FoundEvent]:
        """The events at these positions, in order of position."""
        if not positions:
            return []
        return await self._placed(lambda: self._recorder.select_at(positions))

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[FoundEvent]:
        """The events of these types from position `first` to `last`; of one organization, if it is named."""
        if not types or last < first:
            return []
        # An id is in an event's bytes unchanged. Few other events contain it; the rest need not be decoded.
        containing = None if organization_id is None else organization_id.encode()
        found = await self._placed(
            lambda: self._recorder.select_notifications(
                first, last - first + 1, stop=last, topics=types, containing=containing
            )
        )
        if organization_id is None:
            return found
        return [one for one in found if one.event.organization_id == organization_id]

    async def stream(
        self, stream: str, types: Sequence[str] | None, *, after: int, limit: int, newest_first: bool
    ) -> list[FoundEvent]:
        """Events of one stream after the version `after`."""
        if types is not None and not types:
            return []
        bounds = {"lte": after - 1} if newest_first else {"gt": after}
        return await self._placed(
            lambda: self._recorder.select_events(
                stream, **bounds, desc=newest_first, limit=limit, topics=types or ()
            )
        )

    async def claimed(self, digests: Sequence[bytes]) -> list[int]:
        """The positions that these claims point to."""
        select = (
            f"SELECT position FROM ledger.claims_p{self._partition} WHERE digest = ANY(%s)"
            " AND (expires_at IS NULL OR expires_at > %s) ORDER BY position"
        ).encode()
        parameters = (UuidArray(digests), to_datetime(self._clock.now()))
        rows = await self._sessions.run(lambda connection: connection.execute(select, parameters).fetchall())
        return [position for (position,) in rows]

    async def _placed(self, select: Callable[[], list[LoggedEvent]]) -> list[FoundEvent]:
        def work(connection: Connection[Any]) -> list[FoundEvent]:
            found = select()
            self._learn(connection, found)
            return [FoundEvent(one.position, one.version, self._mapper.decode(one)) for one in found]

        return await self._sessions.run(work)

    def _learn(self, connection: Connection[Any], found: Sequence[RecordedEvent]) -> None:
        """Load the data keys that this process does not know yet; those that were deleted stay unknown."""
        subjects = {subject for one in found if (subject := self._mapper.subject_of(one)) is not None}
        keys = self._mapper.data_keys
        if unknown := [subject for subject in subjects if not keys.knows(subject)]:
            keys.learn(select_data_keys(connection, unknown))
