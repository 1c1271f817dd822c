"""The log as the projector reads it: long runs of decoded events, on one thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Final

from psycopg import Connection, Cursor
from psycopg.types.numeric import Int8

from domain import events as e
from domain.events import Event
from domain.ports import RecordedEvent
from infra.postgres.arrays import TextArray
from infra.postgres.data_keys import DataKeys
from infra.postgres.mapper import PLATFORM, EventMapper

Numbered = tuple[int, Event]
_WRAPPED: Final = 0x93


_NOT_READ: Final = frozenset(
    str(event_type.__struct_config__.tag)
    for event_type in (
        e.UsageCharged,
        e.CreditsReserved,
        e.ReservationCaptured,
        e.ReservationReleased,
        e.ReservationExpired,
    )
)
"""Events whose personal fields no projection looks at: they are not even decrypted."""


class HoleError(Exception):
    """Positions are missing in the log: it was damaged by hand."""


class RunReader:
    """Reads and decodes the events behind a position, learning data keys as they appear."""

    def __init__(self, connection: Connection[Any], partition: int, mapper: EventMapper[Event]) -> None:
        self._mapper = mapper
        self._public = copy(mapper)
        self._public.data_keys = DataKeys()
        self._connection = connection
        self._cursor = Cursor(connection, row_factory=_recorded_event)
        self._erased: set[str] = set()
        self._select = (
            "SELECT notification_id, originator_id, originator_version, topic, state"
            f" FROM ledger.events_p{partition} WHERE notification_id > %s ORDER BY notification_id LIMIT %s"
        ).encode()

    def read(self, after: int, limit: int) -> list[Numbered]:
        """Up to `limit` events behind position `after`, without a hole."""
        recorded = self._cursor.execute(
            self._select, (Int8(after), Int8(limit)), prepare=True, binary=True
        ).fetchall()
        if recorded and recorded[-1].position != after + len(recorded):
            raise HoleError(f"positions are missing between {after} and {recorded[-1].position}")
        decode, decode_public = self._mapper.decode, self._public.decode
        events = [
            (one.position, decode_public(one) if one.type in _NOT_READ else decode(one)) for one in recorded
        ]
        self._decode_again(recorded, events)
        return events

    def _decode_again(self, recorded: Sequence[RecordedEvent], events: list[Numbered]) -> None:
        """Those whose data key was not known yet; a key that does not exist (any more) is asked for once."""
        unread = [
            (index, subject)
            for index, one in enumerate(recorded)
            if one.data[0] == _WRAPPED
            and one.type not in _NOT_READ
            and events[index][1].private is None
            and (subject := events[index][1].organization_id or PLATFORM) not in self._erased
        ]
        if not unread:
            return
        subjects = {subject for _, subject in unread}
        found = self._connection.execute(
            "SELECT subject, material FROM ledger.data_keys WHERE subject = ANY(%s)",
            (TextArray(list(subjects)),),
            binary=True,
        ).fetchall()
        self._mapper.data_keys.learn(dict(found))
        self._erased |= subjects - {subject for subject, _ in found}
        for index, _ in unread:
            events[index] = (events[index][0], self._mapper.decode(recorded[index]))


def _recorded_event(_: Any) -> Callable[[Sequence[Any]], RecordedEvent]:
    return RecordedEvent._make
