"""Why the ledger cannot answer right now. None of these errors loses anything that was acknowledged."""

from __future__ import annotations


class CannotAnswerError(Exception):
    """Nothing is wrong with the request; try again later."""

    code = "unavailable"
    retry_after_seconds = 1

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class OverloadedError(CannotAnswerError):
    """As many commands wait as the ledger allows: memory stays bounded."""

    code = "overloaded"


class UnavailableError(CannotAnswerError):
    """Something that the ledger needs is down; nothing was written."""

    code = "dependency_unavailable"

    def __init__(self, dependency: str, detail: str) -> None:
        super().__init__(detail)
        self.dependency = dependency


class WaitsForStandbyError(UnavailableError):
    """PostgreSQL completes no commit until its standby is back; nothing was written."""

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

    The process that forwarded this one must check whether its client still waits; if so, it is a new try.
    """

    def __init__(self, number: int) -> None:
        super().__init__("Another try of this request was refused just now; send it again.")
        self.number = number


class UnknownOutcomeError(CannotAnswerError):
    """The connection broke at the commit, and its outcome could not be determined in time."""

    code = "outcome_unknown"


class OtherHistoryHereError(UnavailableError):
    """What this process knows is not in the log: it reports that, and decides nothing."""

    def __init__(self, what: str) -> None:
        super().__init__("postgresql", other_history(what))


def other_history(what: str) -> str:
    """The message for the operator when the log is not the one that was followed."""
    return (
        f"{what}: the log was restored, or a fail-over lost events that were acknowledged. Once you are"
        " sure that this is the log to continue with, run `keyledger new-epoch`."
    )


class Lost(Exception):  # noqa: N818  # not an error: the partition is another's now
    """This process no longer owns the partition, or cannot tell whether it does."""

    def __init__(self, answer: Exception) -> None:
        super().__init__(str(answer))
        self.answer = answer


class LogGapError(Exception):
    """The log has a gap, or does not continue where it was read to: it is not the same log as before."""
