"""Positions and cursors as callers send them: they name the epoch of the log that told them."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from domain.ids import format_position, parse_position
from services.api.answering.problems import ProblemError, invalid
from services.ledger.ledger import Ledger

_EPOCH_ENDS: Final = "."
"""In a cursor, behind its epoch; what lists make of rows has no dot."""
_MOST_EPOCH_DIGITS: Final = 10


def number_in(ledger: Ledger, text: str) -> int | None:
    """The number of a position; None where it is none of this log, 410 where it is of another epoch."""
    try:
        partition, epoch, number = parse_position(text)
    except ValueError:
        return None
    if partition != ledger.partition:
        return None
    _refuse_another_epoch(ledger, epoch)
    return number


def number_of(ledger: Ledger, text: str, prefix: str) -> int | None:
    """The same, and 410 where the log has not reached it."""
    number, head = number_in(ledger, text), ledger.head
    if number is not None and number > head:
        raise ProblemError(
            "position_unknown",
            f"The log ends at {format_position(prefix, head)}: if this position was ever told, the log has"
            " lost events since. Read what you keep of it anew.",
        )
    return number


def with_epoch(cursor: str | None, epoch: int) -> str | None:
    """A list's cursor as the outside sees it."""
    return cursor if cursor is None or epoch == 1 else f"{epoch}{_EPOCH_ENDS}{cursor}"


def of_this_epoch(ledger: Ledger, query: Any) -> Any:
    """The query, with the cursor as the list has given it; 410 where that was in another epoch."""
    cursor: str | None = getattr(query, "cursor", None)
    if cursor is None:
        return query
    named, dot, rest = cursor.partition(_EPOCH_ENDS)
    if not dot:
        named, rest = "1", cursor
    if not (named.isascii() and named.isdigit() and len(named) <= _MOST_EPOCH_DIGITS):
        raise invalid("cursor", "the cursor is not one that a list of ours has given")
    _refuse_another_epoch(ledger, int(named))
    return msgspec.structs.replace(query, cursor=rest)


def _refuse_another_epoch(ledger: Ledger, epoch: int) -> None:
    now = max(ledger.epoch, 1)
    if epoch != now:
        raise ProblemError(
            "position_unknown",
            f"This was told in epoch {epoch} of the log, which is in epoch {now}: it was restored, or has"
            " lost events, in between. Start from the beginning, and read what you keep of it anew.",
        )
