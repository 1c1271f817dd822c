"""Errors that end the following of a log."""

from __future__ import annotations


class DifferentPastError(Exception):
    """The log is not the one that was followed: it is another ledger's, was restored, or lost events.

    Nothing was skipped or counted twice: the view is unchanged. The message says what to do.
    """


class UnknownEventError(Exception):
    """The log contains an event of a type that this program does not know."""

    def __init__(self, tag: str) -> None:
        super().__init__(
            f"The log contains an event of type {tag}, which this program does not know: the program is older"
            " than the log."
        )
