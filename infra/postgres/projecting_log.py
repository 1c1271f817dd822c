"""The log as the projector reads it: long runs of decoded events of one type."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import groupby
from typing import Any, Final, NamedTuple

import msgspec
from psycopg import Connection

from domain.personal import key_subject
from domain.ports import OtherHistoryError
from domain.projecting import Run
from infra.postgres.data_keys import DataKeys, select_data_keys
from infra.postgres.mapper import EventMapper, is_wrapped
from infra.postgres.recorder import LedgerRecorder
from keyledger_language import events as e
from keyledger_language.events import Event
from keyledger_language.history import RecordedEvent
from keyledger_reading.datastore import SessionDatastore

MOST_BYTES: Final = 16_000_000
"""About the most that one read may load: some events are a hundred times as large as a charge."""

_NOT_READ: Final[frozenset[type[Event]]] = frozenset(
    (
        e.UsageCharged,
        e.CreditsReserved,
        e.ReservationCaptured,
        e.ReservationReleased,
        e.ReservationExpired,
    )
)
"""Events whose personal fields no projection uses: they are not even decrypted."""
_TAGS_NOT_READ: Final = frozenset(str(one.__struct_config__.tag) for one in _NOT_READ)


class HoleError(Exception):
    """Positions are missing in the log: it was damaged by hand."""


class Batch(NamedTuple):
    """Events after a position, without a hole."""

    runs: list[Run]
    size: int
    asked: int
    last: int
    """The position of the last event; if there is none, the position after which was read."""
    mark: int = 0
    """Of that event's history."""

    @property
    def is_full(self) -> bool:
        """Whether there are as many events as were asked for, so that there may be more."""
        return self.size == self.asked > 0


class RunReader:
    """Reads and decodes the events after a position, and loads data keys as they appear."""

    def __init__(self, connection: Connection[Any], partition: int, mapper: EventMapper[Event]) -> None:
        self._connection = connection
        self._recorder = LedgerRecorder(SessionDatastore(lambda: connection), partition=partition)
        self._mapper = mapper
        self._public = copy(mapper)
        self._public.data_keys = DataKeys()
        self._erased: set[str] = set()
        self._bytes_each = 1

    def read(self, after: int, limit: int, *, mark: int | None = None) -> Batch:
        """Up to `limit` events after the position `after`; fewer if they are large.

        Raises OtherHistoryError if `after` has another mark than the one given, or does not exist.
        """
        asked = min(limit, max(1, MOST_BYTES // self._bytes_each))
        found = self._recorder.select_data(after, asked)
        if mark is not None and after > 0 and found.mark_before != mark:
            raise OtherHistoryError(
                f"Event {after}, up to which the projections were built, is not in the log"
            )
        data = found.data
        if not data:
            return Batch([], 0, asked, after, found.mark_before or 0)
        if found.last != after + len(data):
            raise HoleError(f"positions are missing between {after} and {found.last}")
        self._bytes_each = max(1, sum(map(len, data)) // len(data))
        return Batch(_runs(after + 1, self._events(after, data)), len(data), asked, found.last, found.mark)

    def _events(self, after: int, data: Sequence[bytes]) -> list[Event]:
        first = after + 1
        try:
            events = self._mapper.decode_public(data)
        except msgspec.ValidationError:
            # Of another version of the program: the mapper knows the older ones, and reports what is unknown.
            return self._whole(range(first, first + len(data)))
        private = [
            first + index
            for index, one in enumerate(data)
            if is_wrapped(one) and type(events[index]) not in _NOT_READ
        ]
        if private:
            for position, event in zip(private, self._whole(private), strict=True):
                events[position - first] = event
        return events

    def _whole(self, positions: Sequence[int]) -> list[Event]:
        """These events with their personal fields."""
        rows = self._recorder.select_at(positions)
        events = [self._decode_row(row) for row in rows]
        unread = [
            (index, subject)
            for index, row in enumerate(rows)
            if is_wrapped(row.data)
            and row.type not in _TAGS_NOT_READ
            and events[index].private is None
            and (subject := key_subject(events[index].organization_id)) not in self._erased
        ]
        if unread:
            self._learn({subject for _, subject in unread})
            for index, _ in unread:
                events[index] = self._decode_row(rows[index])
        return events

    def _decode_row(self, row: RecordedEvent) -> Event:
        return (self._public if row.type in _TAGS_NOT_READ else self._mapper).decode(row)

    def _learn(self, subjects: set[str]) -> None:
        """Load data keys that were not known yet; one that does not exist (any more) is queried only once."""
        found = select_data_keys(self._connection, subjects)
        self._mapper.data_keys.learn(found)
        self._erased |= subjects - {subject for subject, material in found.items() if material}


def _runs(position: int, events: Sequence[Event]) -> list[Run]:
    """The events as runs of one type each."""
    runs = []
    for _, alike in groupby(events, type):
        run = Run(position, list(alike))
        position += len(run.events)
        runs.append(run)
    return runs
