"""Events as stored in the log, in the form that the eventsourcing library calls notifications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from psycopg import Connection, Cursor

from keyledger_language.history import RecordedEvent

COLUMNS: Final = "notification_id, originator_id, originator_version, topic, state, mark"


class LoggedEvent(RecordedEvent):
    """One event of the log under two sets of names: ours, and those of the library's `Notification`.

    A tuple instead of the library's frozen dataclass, which takes five times as long to create; it also
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


class EventData(NamedTuple):
    """Only the data of consecutive events."""

    last: int
    """The position of the last of them; 0 if there are none."""
    data: list[bytes]
    mark: int
    """Of the last event."""
    mark_before: int | None
    """Of the event before the first; None if the log has no such event."""


def select(connection: Connection[Any], statement: str, parameters: Sequence[Any]) -> list[LoggedEvent]:
    """Run a SELECT of `COLUMNS`."""
    cursor = Cursor(connection, row_factory=_logged_event)
    return cursor.execute(statement.encode(), parameters, prepare=True, binary=True).fetchall()


def _logged_event(_: Any) -> Callable[[Sequence[Any]], LoggedEvent]:
    return LoggedEvent._make
