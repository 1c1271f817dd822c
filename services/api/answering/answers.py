"""Answers as bytes, with ready header tuples."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import structlog

from services.api.answering.problems import challenge, headers_of, problem_body, problem_of

log = structlog.get_logger()

Headers = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
_UNAUTHORIZED: Final = 401
_NO_STORE: Final = (b"cache-control", b"no-store")

encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, gc=False):
    """A whole HTTP answer."""

    status: int
    headers: Headers
    body: bytes
    code: str = "ok"
    """What metrics count it as."""


class Later(msgspec.Struct):
    """An answer that waits for something, without a coroutine that waits."""

    future: asyncio.Future[Any]
    answer: Callable[[Any], Answer]
    """Of what the future brings. May raise what a handler may raise."""


async def awaited(told: Answer | Later | Awaitable[Answer]) -> Answer:
    """The answer, waited for where it must be."""
    if isinstance(told, Answer):
        return told
    return told.answer(await told.future) if isinstance(told, Later) else await told


_LENGTHS: Final = [(b"content-length", b"%d" % length) for length in range(2_048)]


def _length_of(body: bytes) -> tuple[bytes, bytes]:
    length = len(body)
    return _LENGTHS[length] if length < len(_LENGTHS) else (b"content-length", b"%d" % length)


def json_answer(status: int, value: Any, code: str = "ok") -> Answer:
    """Any value as JSON."""
    body = encode(value)
    return Answer(status, [_JSON, _length_of(body), _NO_STORE], body, code)


def raw_answer(status: int, body: bytes, code: str = "ok") -> Answer:
    """JSON that is encoded already, to a POST (which no cache keeps, so no header need say so)."""
    return Answer(status, [_JSON, _length_of(body)], body, code)


def problem_answer(body: bytes, status: int, code: str, headers: Headers | None = None) -> Answer:
    """Problem details as an answer."""
    own = [_PROBLEM, _length_of(body), _NO_STORE, *(headers or ())]
    return Answer(status, own, body, code)


def error_answer(error: Exception, request_id: str) -> Answer:
    """What an error tells the caller. Anything unforeseen is our fault, told without a detail."""
    problem = problem_of(error, request_id)
    if problem is None:
        log.error("request.failed", request_id=request_id, error=type(error).__name__, exc_info=error)
        body = problem_body("internal_error", "The ledger made a mistake; it is in its log.", request_id)
        return problem_answer(body, 500, "internal_error")
    headers = wire(headers_of(error))
    if problem.status == _UNAUTHORIZED and not headers:
        headers = wire(challenge())
    return problem_answer(encode(problem), problem.status, problem.code, headers)


def wire(headers: dict[str, str]) -> Headers:
    """Headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
