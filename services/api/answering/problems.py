"""The table of each code's HTTP status and title, and RFC 9457 problem details."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec

from domain.errors import CallerRefusedError, EmptyScopeError, InvalidError, LedgerError
from domain.ports import LogUnavailableError
from keyledger_language import STATUS_OF_CODE, TITLE_OF_CODE
from services.api.answering.quotas import RefusalView
from services.ledger.errors import CannotAnswerError, RefusedLatelyError, UnavailableError

PROBLEM_JSON: Final = "application/problem+json"
REFUSED_LATELY: Final = "X-Keyledger-Refused-Lately"
"""Between processes of one ledger only: the number of a refusal; a try may be older than it."""
TYPE_PREFIX: Final = "urn:keyledger:problem:"


class Meaning(NamedTuple):
    """What a code means: a status for machines and a title for people."""

    status: int
    title: str


_REQUESTS: Final = {
    "invalid_request": Meaning(400, TITLE_OF_CODE["invalid_request"]),
    "malformed_body": Meaning(400, TITLE_OF_CODE["malformed_body"]),
    "malformed_request": Meaning(400, "The request is not valid HTTP"),
    "unsupported_header": Meaning(400, "A header is not supported for this request"),
    "ambiguous_credentials": Meaning(400, TITLE_OF_CODE["ambiguous_credentials"]),
    "amount_out_of_range": Meaning(400, "An amount would leave the 64-bit range"),
    "unauthenticated": Meaning(401, "A working root key is required"),
    "proxy_unauthenticated": Meaning(401, TITLE_OF_CODE["proxy_unauthenticated"]),
    "permission_denied": Meaning(403, TITLE_OF_CODE["permission_denied"]),
    "platform_only": Meaning(403, "Only a root key of the whole platform may do this"),
    "not_found": Meaning(404, TITLE_OF_CODE["not_found"]),
    "method_not_allowed": Meaning(405, TITLE_OF_CODE["method_not_allowed"]),
    "not_acceptable": Meaning(406, "None of the accepted formats is available"),
    "request_timeout": Meaning(408, "The request did not arrive in time"),
    "already_exists": Meaning(409, "It exists already"),
    "edge_taken": Meaning(409, "This incarnation of an edge is connected already"),
    "builtin_keyspace": Meaning(409, "The built-in keyspace cannot be changed"),
    "idempotency_conflict": Meaning(409, "The same id was used for something else"),
    "keyspace_archived": Meaning(409, "The keyspace is archived"),
    "keyspace_in_use": Meaning(409, "The keyspace has had keys"),
    "key_expired": Meaning(409, "The key is expired"),
    "key_revoked": Meaning(409, "The key is revoked, for good"),
    "position_unknown": Meaning(410, "The log has no such position"),
    "prefix_overlap": Meaning(409, "Another keyspace has an overlapping prefix"),
    "refund_exceeds_charge": Meaning(409, "The refunds would exceed the charge"),
    "reservation_closed": Meaning(409, "The reservation is closed"),
    "version_conflict": Meaning(412, "It has changed since it was read"),
    "body_too_large": Meaning(413, TITLE_OF_CODE["body_too_large"]),
    "url_too_long": Meaning(414, "The URL is too long"),
    "empty_scope": Meaning(422, "An empty list allows nothing"),
    "too_many_edges": Meaning(429, "Too many edges are connected"),
    "too_many_streams": Meaning(429, "Too many streams of events are open"),
    "headers_too_large": Meaning(431, "The headers are too large"),
    "internal_error": Meaning(500, "The ledger had an internal error"),
    "unavailable": Meaning(503, "The ledger cannot answer now"),
    "dependency_unavailable": Meaning(503, "Something that the ledger needs is down"),
    "not_owner": Meaning(503, "No ledger process owns the partition at the moment"),
    "outcome_unknown": Meaning(503, "Whether it was written is not known yet"),
    "overloaded": Meaning(503, "Too many requests are waiting"),
    "too_many_connections": Meaning(503, "Too many connections are open"),
    "position_not_reached": Meaning(503, "The position is not visible yet"),
}
"""Refusals of a request. Domain errors carry these codes; only this table knows their HTTP statuses."""

_VERDICTS: Final = {
    code: Meaning(status, TITLE_OF_CODE[code])
    for code, status in STATUS_OF_CODE.items()
    if code in TITLE_OF_CODE and code not in _REQUESTS
}
"""Denials of a use that are answered as a problem, with forward-auth's statuses."""

TABLE: Final[dict[str, Meaning]] = _REQUESTS | _VERDICTS
"""Every code that a problem may have."""


ProblemCode = Annotated[str, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/ProblemCode"})]
"""One of the table's codes."""


class FieldError(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with one field: of the body, the query, or a header by its name."""

    field: str
    """Which field: a path in the body such as `quotas[0].limit`, a query parameter, or a header."""
    message: str
    """What is wrong with it."""


class Problem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details."""

    type: str
    """`urn:keyledger:problem:` and the code."""
    title: str
    """What the code means, for people; always the same for a code."""
    status: int
    """The HTTP status."""
    detail: str
    """What happened this time, for people."""
    code: ProblemCode
    """What happened, for machines; stable. One that you do not know means no."""
    request_id: str
    """The trace id: also in `X-Request-Id`, in the log and in the audit."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with which field; absent if the error is not about a field."""
    dependency: str | None = None
    """What is down (`dependency_unavailable`)."""
    permission: str | None = None
    """The permission that the root key lacks (`permission_denied`)."""
    refusal: RefusalView | None = None
    """Of a refused use: which limit refused it, and what is left of it; absent otherwise."""


class ProblemError(Exception):
    """A request is refused outside of the domain."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        errors: Iterable[FieldError] = (),
        permission: str | None = None,
        refusal: RefusalView | None = None,
        position: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        """A status that a keyspace or a caller wants in place of the code's own."""
        self.errors = tuple(errors)
        self.permission = permission
        self.refusal = refusal
        self.position = position
        """The position of the state on which it was decided."""
        self.headers = headers or {}


def invalid(field: str, message: str) -> ProblemError:
    """A field is invalid."""
    return ProblemError(
        "invalid_request", f"{field}: {message}", errors=(FieldError(field=field, message=message),)
    )


def problem(
    code: str,
    detail: str,
    request_id: str,
    *,
    status: int | None = None,
    errors: Sequence[FieldError] = (),
    dependency: str | None = None,
    permission: str | None = None,
    refusal: RefusalView | None = None,
) -> Problem:
    """The details of a problem; a status of its own only if a keyspace or a caller wants it."""
    meaning = TABLE[code]
    return Problem(
        type=TYPE_PREFIX + code,
        title=meaning.title,
        status=meaning.status if status is None else status,
        detail=detail,
        code=code,
        request_id=request_id,
        errors=tuple(errors),
        dependency=dependency,
        permission=permission,
        refusal=refusal,
    )


def problem_of(error: Exception, request_id: str) -> Problem | None:
    """The problem of one of the ledger's own errors; None for any other exception."""
    if isinstance(error, ProblemError):
        return problem(
            error.code,
            error.detail,
            request_id,
            status=error.status,
            errors=error.errors,
            permission=error.permission,
            refusal=error.refusal,
        )
    if isinstance(error, LedgerError):
        return problem(error.code, error.detail, request_id, errors=_errors_of(error))
    if isinstance(error, UnavailableError):
        return problem(error.code, error.detail, request_id, dependency=error.dependency)
    if isinstance(error, CannotAnswerError):
        return problem(error.code, error.detail, request_id)
    if isinstance(error, LogUnavailableError):
        detail = "PostgreSQL cannot be reached."
        return problem("dependency_unavailable", detail, request_id, dependency="postgresql")
    return None


def headers_of(error: Exception) -> dict[str, str]:
    """The headers of an error's answer."""
    if isinstance(error, ProblemError):
        return error.headers
    if isinstance(error, CallerRefusedError):
        return challenge("invalid_token")
    if isinstance(error, LogUnavailableError):
        return {"Retry-After": "1"}
    if isinstance(error, RefusedLatelyError):
        return {"Retry-After": str(error.retry_after_seconds), REFUSED_LATELY: str(error.number)}
    if isinstance(error, CannotAnswerError):
        return {"Retry-After": str(error.retry_after_seconds)}
    return {}


def challenge(error: str | None = None) -> dict[str, str]:
    """`WWW-Authenticate` of a 401 (RFC 6750)."""
    reason = "" if error is None else f', error="{error}"'
    return {"WWW-Authenticate": f'Bearer realm="keyledger"{reason}'}


def _errors_of(error: LedgerError) -> tuple[FieldError, ...]:
    if isinstance(error, EmptyScopeError | InvalidError):
        return (FieldError(field=error.field or "", message=error.message),)
    if error.field is not None:
        return (FieldError(field=error.field, message=error.detail),)
    return ()
