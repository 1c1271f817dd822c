"""Why following a log ends."""

from __future__ import annotations


class DifferentPastError(Exception):
    """The log is not the one that was followed: another ledger's, restored, or one that lost events.

    Nothing was skipped and nothing counted twice: the view is as it was. The message says what to do.
    """


class UnknownEventError(Exception):
    """The log holds an event of a type that this program does not know."""

    def __init__(self, tag: str) -> None:
        super().__init__(
            f"The log holds a {tag}, which this program does not know: it is older than its log."
        )
