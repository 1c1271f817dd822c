"""The log as its readers see it: numbered events, and points that distinguish one history from another."""

from __future__ import annotations

from typing import Final, NamedTuple


class RecordedEvent(NamedTuple):
    """One event as the log holds it."""

    position: int
    """The event's number in its partition: 1, 2, 3 ... without gaps."""
    stream: str
    version: int
    type: str
    data: bytes
    mark: int = 0
    """The mark of the group that wrote it; 0: written before marks were introduced."""


def mark_of(group_id: bytes) -> int:
    """The mark of a group: 8 of its random bytes, as a signed number."""
    return int.from_bytes(group_id[:8], "big", signed=True)


class HistoryPoint(NamedTuple):
    """A place in one history of a log.

    If two logs have the same mark at a position, everything before it is the same, too: a group is
    appended only after the mark that it names. A number alone does not distinguish a log from one that
    was restored from its backup and then written to.
    """

    position: int
    """The position of the last event of this history; 0: it has none."""
    mark: int
    """The mark of that event; 0 if it has none."""
    epoch: int
    """The log's epoch: raised by the operator when the log lost events that others have seen."""


BEGINNING: Final = HistoryPoint(0, 0, 0)
"""Before everything, in any history."""
