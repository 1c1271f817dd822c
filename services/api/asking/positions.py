"""Positions and cursors from callers: they name the epoch of the log that gave them out."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from domain.ids import format_position, parse_position
from services.api.answering.problems import ProblemError, invalid
from services.ledger.ledger import Ledger

_EPOCH_ENDS: Final = "."
"""Ends the epoch in a cursor; the cursors that lists make have no dot."""
_MOST_EPOCH_DIGITS: Final = 10


def number_in(ledger: Ledger, text: str) -> int | None:
    """The number of a position; None if it is not one of this log, 410 if it is of another epoch."""
    try:
        partition, epoch, number = parse_position(text)
    except ValueError:
        return None
    if partition != ledger.partition:
        return None
    _refuse_another_epoch(ledger, epoch)
    return number


def number_of(ledger: Ledger, text: str, prefix: str) -> int | None:
    """The same, and 410 if the log has not reached it."""
    number, head = number_in(ledger, text), ledger.head
    if number is not None and number > head:
        raise ProblemError(
            "position_unknown",
            f"The log ends at {format_position(prefix, head)}: if the log ever gave out this position, it has"
            " lost events since. Read your copies of it again.",
        )
    return number


def with_epoch(cursor: str | None, epoch: int) -> str | None:
    """A list's cursor as clients get it."""
    return cursor if cursor is None or epoch == 1 else f"{epoch}{_EPOCH_ENDS}{cursor}"


def of_this_epoch(ledger: Ledger, query: Any) -> Any:
    """The query, with the cursor as the list made it; 410 if that was in another epoch."""
    cursor: str | None = getattr(query, "cursor", None)
    if cursor is None:
        return query
    named, dot, rest = cursor.partition(_EPOCH_ENDS)
    if not dot:
        named, rest = "1", cursor
    if not (named.isascii() and named.isdigit() and len(named) <= _MOST_EPOCH_DIGITS):
        raise invalid("cursor", "is not a cursor of this ledger")
    _refuse_another_epoch(ledger, int(named))
    return msgspec.structs.replace(query, cursor=rest)


def _refuse_another_epoch(ledger: Ledger, epoch: int) -> None:
    now = max(ledger.epoch, 1)
    if epoch != now:
        raise ProblemError(
            "position_unknown",
            f"This is of epoch {epoch} of the log, which is in epoch {now} now: it was restored, or has lost"
            " events, in between. Start from the beginning, and read your copies again.",
        )
