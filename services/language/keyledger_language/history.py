"""What a log is to whoever reads it: numbered events, and points that tell one history from another."""

from __future__ import annotations

from typing import Final, NamedTuple


class RecordedEvent(NamedTuple):
    """One event as the log holds it."""

    position: int
    """The event's number in its partition: 1, 2, 3 ... without holes."""
    stream: str
    version: int
    type: str
    data: bytes
    mark: int = 0
    """The mark of the group that wrote it; 0: written before there were marks."""


def mark_of(group_id: bytes) -> int:
    """The mark of a group: 8 of its random bytes, as a signed number."""
    return int.from_bytes(group_id[:8], "big", signed=True)


class HistoryPoint(NamedTuple):
    """A place in one history of a log.

    Where two logs have the same mark at a position, all before it is the same, too: a group is
    appended only behind the mark that it names. A number alone does not tell a log from what
    became of its backup.
    """

    position: int
    """Of the last event that counts; 0: none does."""
    mark: int
    """The mark of that event; 0 where there is none."""
    epoch: int
    """The log's epoch: raised by hand when the log lost events that others have seen."""


BEGINNING: Final = HistoryPoint(0, 0, 0)
"""Before everything, in any history."""
