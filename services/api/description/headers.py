"""Headers of requests and answers, each described once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from services.api.operations import Operation

_TEXT: Final = {"type": "string"}
_NUMBER: Final = {"type": "integer", "minimum": 1}

_SENT: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "X-Request-Id": ("A trace id of your own; it is in the answer, the logs and the audit.", _TEXT),
    "X-Keyledger-Position": ("Wait (up to 2 s) until what is read has reached this position.", _TEXT),
    "Idempotency-Key": ("A repeated request with the same key gets the first answer, for 24 hours.", _TEXT),
    "If-Match": ('The version that you decided on, such as `"3"`; 412 when it has changed since.', _TEXT),
    "Last-Event-ID": ("In a stream: the position of the last event seen; in place of `after`.", _TEXT),
    "X-Keyledger-Model": ("The model that the client's request calls.", _TEXT),
    "X-Keyledger-Project": ("The project that it is for.", _TEXT),
    "X-Keyledger-Permission": ("The permissions that it needs, separated by commas.", _TEXT),
    "X-Keyledger-Provider": ("The provider that it goes to.", _TEXT),
    "X-Keyledger-Cost-Micros": ("Charge this base price, in micros, in the same decision.", _TEXT),
    "X-Keyledger-Request-Id": ("Your own id of the use: it counts once. Required with a cost.", _TEXT),
    "X-Original-URI": ("The client's URI, as nginx names it.", _TEXT),
    "X-Forwarded-Uri": ("The client's URI, as Traefik names it.", _TEXT),
}
"""Headers that a request may have, in addition to those that authenticate its caller."""

_TOLD: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "X-Request-Id": ("The trace id: yours if you sent a valid one, otherwise a new one.", _TEXT),
    "X-Keyledger-Position": ("The position up to which the answer is true.", _TEXT),
    "ETag": ("The version in quotes, for `If-Match`.", _TEXT),
    "Location": ("The path of what was created.", _TEXT),
    "Idempotent-Replayed": (
        "Only in a replay: this is the first answer to the same `Idempotency-Key`.",
        {"type": "string", "enum": ["true"]},
    ),
    "Retry-After": ("After how many seconds to try again.", _NUMBER),
    "WWW-Authenticate": ("How to authenticate (RFC 6750).", _TEXT),
    "RateLimit": (
        "What is left of the key's rate limits (IETF draft); absent if it has none.",
        _TEXT,
    ),
    "RateLimit-Policy": ("The key's rate limits (IETF draft); absent if it has none.", _TEXT),
    "X-Next-Cursor": ("The same as `next_cursor` in JSON; absent on the last page.", _TEXT),
    "X-Keyledger-Code": (
        "The verdict's code; if the request could not be judged, the problem's code.",
        {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("VerdictCode", "ProblemCode")]},
    ),
    "X-Keyledger-Key-Id": ("The key, if the secret is known.", _TEXT),
    "X-Keyledger-Organization-Id": ("The key's customer, if it has one.", _TEXT),
    "X-Keyledger-Plan-Id": ("The key's plan, if it has one.", _TEXT),
    "X-Keyledger-Status": (
        "With `proxy=nginx`: the real status, if nginx gets 403 instead.",
        _TEXT,
    ),
}
"""Headers that an answer may have."""

_ALWAYS: Final = ("X-Request-Id",)
_OF_A_PROXY: Final = tuple(
    name for name in _SENT if name.startswith("X-") and name not in {"X-Request-Id", "X-Keyledger-Position"}
)
_OF_A_VERDICT: Final = (
    "X-Keyledger-Code", "X-Keyledger-Key-Id", "X-Keyledger-Organization-Id", "X-Keyledger-Plan-Id",
    "X-Keyledger-Status", "RateLimit", "RateLimit-Policy",
)  # fmt: skip
_UNAUTHORIZED: Final = 401
_REFUSED: Final = 400
_MADE: Final = (201, 202)
_WORTH_ANOTHER_TRY: Final = frozenset({429, 503})


def headers() -> dict[str, Any]:
    """Every header of an answer, as a component."""
    return {name: {"description": about, "schema": schema} for name, (about, schema) in _TOLD.items()}


def asked_of(one: Operation) -> list[dict[str, Any]]:
    """The headers that this operation reads, as parameters."""
    asked = ((name, *_SENT[name]) for name in _names_asked(one))
    return [
        {"name": name, "in": "header", "required": False, "description": about, "schema": schema}
        for name, about, schema in asked
    ]


def _names_asked(one: Operation) -> Iterator[str]:
    yield from _ALWAYS
    if one.method == "GET" and one.permissions:
        yield "X-Keyledger-Position"
    if one.idempotent:
        yield "Idempotency-Key"
    if one.conditional:
        yield "If-Match"
    if one.proxied:
        yield from _OF_A_PROXY
    if "text/event-stream" in one.media_types:
        yield "Last-Event-ID"


def told_by(one: Operation, status: int, answer: Any) -> dict[str, dict[str, str]]:
    """The headers of an answer with this status."""
    names = dict.fromkeys(_names_told(one, status, answer))
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _names_told(one: Operation, status: int, answer: Any) -> Iterable[str]:
    yield from _ALWAYS
    if one.proxied:
        yield from _OF_A_VERDICT
    if status == _UNAUTHORIZED:
        yield "WWW-Authenticate"
    if status in _WORTH_ANOTHER_TRY:
        yield "Retry-After"
    if one.permissions or one.proxied or one.other_parameters or answer is not None:
        yield "X-Keyledger-Position"
    if status >= _REFUSED:
        return
    yield from one.headers
    if one.versioned:
        yield "ETag"
    if one.shown_at and status in _MADE:
        yield "Location"
    if one.idempotent:
        yield "Idempotent-Replayed"
