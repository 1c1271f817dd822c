"""Positions that carry the history to which they belong."""

from __future__ import annotations

from typing import Any, Self


class LogPosition(int):
    """An event's number in the log, with what distinguishes that log from any other.

    To the eventsourcing library it is the notification's id. A view stores all of it, and following the
    log from here is refused if the log has another past.
    """

    log_id: str
    """Which ledger's log."""
    epoch: int
    """The log's epoch when the event was read: raised by hand when a log lost events."""
    mark: int
    """The event's mark: if two logs have the same one at a position, all before it is the same, too."""

    topics: str
    """The event types that were followed, joined by commas; "" if all were."""

    def __new__(cls, position: int, *, log_id: str, epoch: int, mark: int, topics: str = "") -> Self:
        """The position with its history."""
        self = super().__new__(cls, position)
        self.log_id = log_id
        self.epoch = epoch
        self.mark = mark
        self.topics = topics
        return self

    def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, Any]]:
        """For copies and pickles."""
        return (int(self),), {
            "log_id": self.log_id, "epoch": self.epoch, "mark": self.mark, "topics": self.topics
        }  # fmt: skip
