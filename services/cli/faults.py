"""Errors that end a command, and their exit codes."""

from __future__ import annotations

from typing import Any, Final

PROBLEM_TYPE: Final = "urn:keyledger:problem:"

DONE: Final = 0
REFUSED: Final = 1
WRONG_USAGE: Final = 2
NOT_ALLOWED: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
UNREACHABLE: Final = 6
INTERRUPTED: Final = 130

MEANINGS: Final = {
    DONE: "done; for `verify`: the secret is good",
    REFUSED: "refused: a verdict that is not valid, a check that found something, a bad request",
    WRONG_USAGE: "wrong usage, or an invalid setting",
    NOT_ALLOWED: "no root key, or one that may not do this (401, 403)",
    NOT_FOUND: "not found (404)",
    CONFLICT: "it has changed, exists already, or was ended for good (409, 412)",
    UNREACHABLE: "the ledger, or something that it needs, cannot be reached (503): try again later",
    INTERRUPTED: "interrupted with Ctrl-C",
}
"""Every exit code and its meaning."""

_BY_STATUS: Final = {
    401: NOT_ALLOWED,
    403: NOT_ALLOWED,
    404: NOT_FOUND,
    409: CONFLICT,
    412: CONFLICT,
    502: UNREACHABLE,
    503: UNREACHABLE,
    504: UNREACHABLE,
}


class CommandError(Exception):
    """A command cannot continue: a sentence for people, a problem for programs, an exit code for scripts."""

    def __init__(self, detail: str, *, code: str = "refused", exit_code: int = REFUSED) -> None:
        super().__init__(detail)
        self.exit_code = exit_code
        self.problem: dict[str, Any] = {
            "type": PROBLEM_TYPE + code,
            "title": "The command was not carried out",
            "status": None,
            "detail": detail,
            "code": code,
        }


class LedgerProblemError(CommandError):
    """The ledger refused, with a problem as defined by RFC 9457."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        detail = str(problem.get("detail") or problem.get("title") or f"The ledger answered {status}.")
        super().__init__(
            detail, code=str(problem.get("code", "refused")), exit_code=_BY_STATUS.get(status, REFUSED)
        )
        self.status = status
        self.problem = problem

    @property
    def code(self) -> str:
        """The stable code of the refusal."""
        return str(self.problem.get("code", "refused"))

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The fields that are wrong, each with a message."""
        return [(str(one.get("field")), str(one.get("message"))) for one in self.problem.get("errors", [])]
