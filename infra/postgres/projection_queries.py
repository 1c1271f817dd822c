"""How the API asks the projections, and reads single events back from the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg import Connection, Cursor

from domain.events import Event
from domain.instants import to_datetime
from domain.ports import Clock, RecordedEvent
from domain.projecting import Placed, Row
from infra.postgres.arrays import BigintArray, TextArray, UuidArray
from infra.postgres.mapper import EventMapper
from infra.postgres.projection_schema import LIVE
from infra.postgres.sessions import Sessions


class PostgresQueries:
    """Asks the live projections on a few sessions."""

    def __init__(self, sessions: Sessions, schema: str = LIVE) -> None:
        self._sessions = sessions
        self._schema = schema

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """What a SELECT finds; planned for these very values, since filters differ much."""
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
        self._select = (
            "SELECT notification_id, originator_id, originator_version, topic, state"
            f" FROM ledger.events_p{partition} WHERE"
        )

    async def at(self, positions: Sequence[int]) -> list[Placed]:
        """The events at these positions, in order of position."""
        if not positions:
            return []
        where = "notification_id = ANY(%s) ORDER BY notification_id"
        return await self._events(where, (BigintArray(positions),))

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[Placed]:
        """The events of these types from position `first` to `last`; of one organization, if it is named."""
        where = "notification_id BETWEEN %s AND %s AND topic = ANY(%s)"
        parameters: list[Any] = [first, last, TextArray(types)]
        if organization_id is not None:
            # An id is in an event's bytes as it is. Few others hold it, and these need not be decoded.
            where += " AND position(%s IN state) > 0"
            parameters.append(organization_id.encode())
        found = await self._events(f"{where} ORDER BY notification_id", parameters)
        if organization_id is None:
            return found
        return [one for one in found if one.event.organization_id == organization_id]

    async def stream(
        self, stream: str, types: Sequence[str] | None, *, after: int, limit: int, newest_first: bool
    ) -> list[Placed]:
        """Events of one stream behind the version `after`."""
        only, parameters = ("", ()) if types is None else ("AND topic = ANY(%s)", (TextArray(types),))
        comparison, direction = ("<", "DESC") if newest_first else (">", "ASC")
        where = (
            f"originator_id = %s AND originator_version {comparison} %s {only}"
            f" ORDER BY originator_version {direction} LIMIT %s"
        )
        return await self._events(where, (stream, after, *parameters, limit))

    async def claimed(self, digests: Sequence[bytes]) -> list[int]:
        """The positions that these claims point to."""
        select = (
            f"SELECT position FROM ledger.claims_p{self._partition} WHERE digest = ANY(%s)"
            " AND (expires_at IS NULL OR expires_at > %s) ORDER BY position"
        ).encode()
        parameters = (UuidArray(digests), to_datetime(self._clock.now()))
        rows = await self._sessions.run(lambda connection: connection.execute(select, parameters).fetchall())
        return [position for (position,) in rows]

    async def _events(self, where: str, parameters: Sequence[Any]) -> list[Placed]:
        statement = f"{self._select} {where}".encode()

        def work(connection: Connection[Any]) -> list[Placed]:
            cursor = Cursor(connection, row_factory=_recorded_event)
            recorded = cursor.execute(statement, parameters, binary=True).fetchall()
            self._learn(connection, recorded)
            return [Placed(one.position, one.version, self._mapper.decode(one)) for one in recorded]

        return await self._sessions.run(work)

    def _learn(self, connection: Connection[Any], recorded: Sequence[RecordedEvent]) -> None:
        """Get the data keys that this process does not know yet; those that are gone stay unknown."""
        subjects = {subject for one in recorded if (subject := self._mapper.subject_of(one)) is not None}
        keys = self._mapper.data_keys
        if unknown := [subject for subject in subjects if not keys.knows(subject)]:
            select = b"SELECT subject, material FROM ledger.data_keys WHERE subject = ANY(%s)"
            keys.learn(dict(connection.execute(select, (TextArray(unknown),), binary=True).fetchall()))


def _recorded_event(_: Any) -> Callable[[Sequence[Any]], RecordedEvent]:
    return lambda row: RecordedEvent(*row)  # without its mark: nobody resumes from what is read so
