"""Events as the log holds them, in the form that the eventsourcing library calls notifications."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast, overload

from psycopg import Connection, Cursor

from domain.ports import RecordedEvent

COLUMNS: Final = "notification_id, originator_id, originator_version, topic, state, mark"
_POSITION, _STREAM, _VERSION, _TYPE, _DATA, _MARK = range(6)


class LoggedEvent(RecordedEvent):
    """One event of the log under both vocabularies: ours, and the names of the library's `Notification`.

    A tuple in place of the library's frozen dataclass, which takes five times as long to make, and it
    carries the event's mark.
    """

    __slots__ = ()

    @property
    def id(self) -> int:
        """Its position."""
        return self.position

    @property
    def originator_id(self) -> str:
        """Its stream."""
        return self.stream

    @property
    def originator_version(self) -> int:
        """Its number in its stream."""
        return self.version

    @property
    def topic(self) -> str:
        """Its type: a name on disk, never a Python path."""
        return self.type

    @property
    def state(self) -> bytes:
        """Its data."""
        return self.data


class Notifications(Sequence[LoggedEvent]):
    """What one statement found. A row is made when it is looked at.

    The projector looks at no more than the states of nearly all events: with rows of six columns
    it would spend more on reading them than on decoding (docs/decisions/frame.md).
    """

    __slots__ = ("_cursor", "_result", "_rows")

    def __init__(self, cursor: Cursor[LoggedEvent]) -> None:
        result = cursor.pgresult
        assert result is not None, "the statement is a SELECT"
        self._cursor = cursor
        self._result = result
        self._rows: list[LoggedEvent] | None = None

    def __len__(self) -> int:
        return self._result.ntuples

    def __iter__(self) -> Iterator[LoggedEvent]:
        return iter(self._all())

    @overload
    def __getitem__(self, index: int) -> LoggedEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[LoggedEvent]: ...
    def __getitem__(self, index: int | slice) -> LoggedEvent | list[LoggedEvent]:
        if self._rows is not None or isinstance(index, slice):
            return self._all()[index]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(index)
        return self._row(index % size)

    def rows(self) -> list[RecordedEvent]:
        """All of them, as the ports name them."""
        return cast(list[RecordedEvent], self._all())

    def _all(self) -> list[LoggedEvent]:
        if self._rows is None:
            self._rows = self._cursor.fetchall()
        return self._rows

    def states(self) -> list[bytes]:
        """Of each event its data, and nothing else."""
        value: Any = self._result.get_value  # no column is ever null
        return [value(row, _DATA) for row in range(self._result.ntuples)]

    def _row(self, row: int) -> LoggedEvent:
        value: Any = self._result.get_value
        return LoggedEvent(
            int.from_bytes(value(row, _POSITION)),
            value(row, _STREAM).decode(),
            int.from_bytes(value(row, _VERSION)),
            value(row, _TYPE).decode(),
            value(row, _DATA),
            int.from_bytes(value(row, _MARK), signed=True),
        )


def select(connection: Connection[Any], statement: str, parameters: Sequence[Any]) -> Notifications:
    """Carry out a SELECT of `COLUMNS`."""
    cursor = Cursor(connection, row_factory=_logged_event)
    return Notifications(cursor.execute(statement.encode(), parameters, prepare=True, binary=True))


def _logged_event(_: Any) -> Callable[[Sequence[Any]], LoggedEvent]:
    return LoggedEvent._make
