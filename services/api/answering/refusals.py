"""The only way from an exception to an answer."""

from __future__ import annotations

import traceback
from typing import Final

import msgspec
import structlog

from domain.keyspaces import Keyspace
from domain.quotas import Refusal
from keyledger_language import STATUS_OF_CODE, RateState
from services.api.answering.answers import Answer, encode, problem_answer
from services.api.answering.problems import (
    TABLE,
    FieldError,
    Problem,
    ProblemError,
    headers_of,
    problem,
    problem_of,
)
from services.api.answering.quotas import refusal_view
from services.api.asking.secrets import Redactor

log: Final = structlog.get_logger()

_OURS: Final = "The ledger had an internal error; its log has details under the request id."
_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Refusals:
    """Answers errors as problems (RFC 9457), without secrets that were sent in the wrong field."""

    def __init__(self, redactor: Redactor) -> None:
        self._redact = redactor.redact

    def answer(self, error: Exception, request_id: str) -> Answer:
        """The answer to a request that failed with this error; an unexpected error's has no details."""
        found, headers = self.problem(error, request_id), headers_of(error)
        if found is None:
            failure = self._redact("".join(traceback.format_exception(error)))
            log.error("request.failed", request_id=request_id, error=failure)
            found, headers = problem("internal_error", _OURS, request_id), {}
        answer = problem_answer(encode(found), found.status, found.code, headers)
        answer.position = getattr(error, "position", None)
        return answer

    def problem(self, error: Exception, request_id: str) -> Problem | None:
        """The problem of one of the ledger's own errors, redacted; None for any other exception."""
        found = problem_of(error, request_id)
        if found is None:
            return None
        redact = self._redact
        errors = tuple(
            FieldError(field=redact(one.field), message=redact(one.message)) for one in found.errors
        )
        return msgspec.structs.replace(found, detail=redact(found.detail), errors=errors)


def use_refused(
    code: str,
    keyspace: Keyspace | None,
    refusal: Refusal | None = None,
    rates: tuple[RateState, ...] = (),
    *,
    position: int,
) -> ProblemError:
    """A verdict as a problem, with forward-auth's status, but 403 for 401, which is the caller's own."""
    mapped = keyspace.denial_status.get(code) if keyspace is not None else None
    status = mapped or STATUS_OF_CODE[code]
    return ProblemError(
        code,
        _detail(code, refusal),
        status=_FORBIDDEN if status == _UNAUTHORIZED else status,
        refusal=None if refusal is None else refusal_view(refusal),
        headers={"Retry-After": str(max(1, *(one.reset_seconds for one in rates)))} if rates else {},
        position=position,
    )


def _detail(code: str, refusal: Refusal | None) -> str:
    title = TABLE[code].title if code != "not_found" else "There is no such secret"
    if refusal is None:
        return f"{title}."
    window = f" per {refusal.window}" if refusal.window not in (None, "total") else ""
    # A wallet's limit is its credit limit: what is left is not a part of it.
    limit = "" if refusal.level == "wallet" else f" of {refusal.limit}"
    return f"{title}: {refusal.remaining}{limit} {refusal.unit}{window} are left."
