"""Why the ledger cannot answer right now. Nothing acknowledged is ever lost by these."""

from __future__ import annotations


class CannotAnswerError(Exception):
    """The question was fine; ask again later."""

    code = "unavailable"
    retry_after_seconds = 1

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class OverloadedError(CannotAnswerError):
    """More commands wait than the ledger lets wait: memory stays bounded."""

    code = "overloaded"


class UnavailableError(CannotAnswerError):
    """Something that the ledger needs is down; nothing was written."""

    code = "dependency_unavailable"

    def __init__(self, dependency: str, detail: str) -> None:
        super().__init__(detail)
        self.dependency = dependency


class WaitsForStandbyError(UnavailableError):
    """PostgreSQL lets no commit pass until its standby is back; nothing was written."""

    def __init__(self) -> None:
        super().__init__(
            "postgresql",
            "PostgreSQL waits for its standby: nothing is decided or verified until one is back.",
        )


class NotOwnerHereError(CannotAnswerError):
    """Another process owns the partition (or none does, for a moment); nothing was written."""

    code = "not_owner"


class RefusedLatelyError(NotOwnerHereError):
    """Another try of this request was refused; nothing was written.

    Whoever passed this one on is to look whether its client still waits: then it is a try of its own.
    """

    def __init__(self, number: int) -> None:
        super().__init__("Another try of this request was refused just now; ask again.")
        self.number = number


class UnknownOutcomeError(CannotAnswerError):
    """The connection broke at the commit, and what became of it could not be told in time."""

    code = "outcome_unknown"


class OtherHistoryHereError(UnavailableError):
    """What this process knows is not in the log: it says so, and decides nothing."""

    def __init__(self, what: str) -> None:
        super().__init__("postgresql", other_history(what))


def other_history(what: str) -> str:
    """What to tell the operator when a log is not the one that was followed."""
    return (
        f"{what}: the log was restored, or a fail-over lost events that were acknowledged. Once it is sure"
        " that this is the log to go on with, run `keyledger new-epoch`."
    )


class Lost(Exception):  # noqa: N818  # not an error: the partition is another's now
    """This process does not own the partition any more, or cannot tell."""

    def __init__(self, answer: Exception) -> None:
        super().__init__(str(answer))
        self.answer = answer


class LogGapError(Exception):
    """The log has a hole, or does not go on where it was read to: it is not the log it was."""
