"""The log as the projector reads it: long runs of decoded events of one type."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import groupby
from typing import Any, Final, NamedTuple, Union

import msgspec
from psycopg import Connection
from psycopg.types.numeric import Int8

from domain import events as e
from domain.events import Event
from domain.personal import key_subject
from domain.ports import OtherHistoryError, RecordedEvent
from domain.projecting import Run
from infra.postgres.arrays import BigintArray, TextArray
from infra.postgres.data_keys import DataKeys
from infra.postgres.mapper import EventMapper

MOST_BYTES: Final = 16_000_000
"""About what a read takes at most: some events are a hundred times as large as a charge."""
_WRAPPED: Final = 0x93

_NOT_READ: Final[frozenset[type[Event]]] = frozenset(
    (
        e.UsageCharged,
        e.CreditsReserved,
        e.ReservationCaptured,
        e.ReservationReleased,
        e.ReservationExpired,
    )
)
"""Events whose personal fields no projection looks at: they are not even decrypted."""
_TAGS_NOT_READ: Final = frozenset(str(one.__struct_config__.tag) for one in _NOT_READ)


class HoleError(Exception):
    """Positions are missing in the log: it was damaged by hand."""


class Batch(NamedTuple):
    """Events behind a position, without a hole."""

    runs: list[Run]
    size: int
    asked: int
    last: int
    """The position of the last event; where there is none, the one that was asked behind."""
    mark: int = 0
    """Of that event's history."""

    @property
    def is_full(self) -> bool:
        """Are there as many events as were asked for, so that there may be more?"""
        return self.size == self.asked > 0


class RunReader:
    """Reads and decodes the events behind a position, learning data keys as they appear."""

    def __init__(self, connection: Connection[Any], partition: int, mapper: EventMapper[Event]) -> None:
        self._connection = connection
        self._mapper = mapper
        self._public = copy(mapper)
        self._public.data_keys = DataKeys()
        as_written: Any = Union[mapper.types_as_written()]  # noqa: UP007 - of a tuple
        self._decode = msgspec.msgpack.Decoder(as_written).decode
        self._decode_wrapped = msgspec.msgpack.Decoder(tuple[as_written, bytes | None, int]).decode
        self._erased: set[str] = set()
        self._bytes_each = 1
        # One array in place of a row per event: PostgreSQL works a little more, this process a lot less.
        events = f"ledger.events_p{partition}"
        self._select = (
            f"SELECT last, states, (SELECT mark FROM {events} WHERE notification_id = last),"
            f" (SELECT mark FROM {events} WHERE notification_id = %s)"
            " FROM (SELECT coalesce(max(notification_id), 0) AS last,"
            " coalesce(array_agg(state), '{}') AS states"
            f" FROM (SELECT notification_id, state FROM {events}"
            " WHERE notification_id > %s ORDER BY notification_id LIMIT %s) AS e) AS r"
        ).encode()
        self._select_whole = (
            "SELECT notification_id, originator_id, originator_version, topic, state"
            f" FROM ledger.events_p{partition} WHERE notification_id = ANY(%s) ORDER BY notification_id"
        ).encode()

    def read(self, after: int, limit: int, *, mark: int | None = None) -> Batch:
        """Up to `limit` events behind position `after`; fewer where they are large.

        Raises OtherHistoryError where `after` has another mark than the one given, or is not there.
        """
        asked = min(limit, max(1, MOST_BYTES // self._bytes_each))
        row = self._connection.execute(
            self._select, (Int8(after), Int8(after), Int8(asked)), prepare=True, binary=True
        ).fetchone()
        assert row is not None, "an aggregate is a row"
        last, states, last_mark, mark_there = row
        if mark is not None and after > 0 and mark_there != mark:
            raise OtherHistoryError(
                f"Event {after}, up to which the projections were made, is not in the log"
            )
        if not states:
            return Batch([], 0, asked, after, mark_there or 0)
        if last != after + len(states):
            raise HoleError(f"positions are missing between {after} and {last}")
        self._bytes_each = max(1, sum(map(len, states)) // len(states))
        return Batch(_runs(after + 1, self._events(after, states)), len(states), asked, last, last_mark)

    def _events(self, after: int, states: Sequence[bytes]) -> list[Event]:
        try:
            events = [
                self._decode(state) if state[0] != _WRAPPED else self._decode_wrapped(state)[0]
                for state in states
            ]
        except msgspec.ValidationError:
            # Of another time than this program: the mapper knows the older ones, and says what is unknown.
            return self._whole(range(after + 1, after + len(states) + 1))
        first = after + 1
        private = [
            first + index
            for index, state in enumerate(states)
            if state[0] == _WRAPPED and type(events[index]) not in _NOT_READ
        ]
        if private:
            for position, event in zip(private, self._whole(private), strict=True):
                events[position - first] = event
        return events

    def _whole(self, positions: Sequence[int]) -> list[Event]:
        """These events with their personal fields."""
        found = self._connection.execute(
            self._select_whole, (BigintArray(positions),), binary=True
        ).fetchall()
        rows = [RecordedEvent(*row) for row in found]
        events = [self._decode_row(row) for row in rows]
        unread = [
            (index, subject)
            for index, row in enumerate(rows)
            if row.data[0] == _WRAPPED
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
        """Data keys that were not known yet; one that does not exist (any more) is asked for once."""
        found = self._connection.execute(
            "SELECT subject, material FROM ledger.data_keys WHERE subject = ANY(%s)",
            (TextArray(list(subjects)),),
            binary=True,
        ).fetchall()
        self._mapper.data_keys.learn(dict(found))
        self._erased |= subjects - {subject for subject, material in found if material}


def _runs(position: int, events: Sequence[Event]) -> list[Run]:
    """Events by type, where they follow each other."""
    runs = []
    for _, alike in groupby(events, type):
        run = Run(position, list(alike))
        position += len(run.events)
        runs.append(run)
    return runs
