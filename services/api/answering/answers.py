"""Answers as they go out: whole, later, or in a stream that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from domain.ids import format_position

if TYPE_CHECKING:
    from services.api.asking.call import Call

Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
NO_STORE: Final = (b"cache-control", b"no-store")
_PROBLEM: Final = (b"content-type", b"application/problem+json")
_LENGTHS: Final = [(b"content-length", b"%d" % length) for length in range(2_048)]

encode = msgspec.json.Encoder().encode


class Answer(msgspec.Struct, gc=False):
    """A whole HTTP answer."""

    status: int
    headers: Headers
    body: bytes
    code: str = "ok"
    """What metrics count it as."""
    position: int | None = None
    """On which state it rests, for `X-Keyledger-Position`; None: on none."""


class Stream(msgspec.Struct):
    """An answer whose body goes on."""

    headers: Headers
    chunks: AsyncIterator[bytes]
    ended: Callable[[], None]
    """Called once it is over, however it ends."""
    status: int = 200
    code: str = "ok"
    position: int | None = None


class Later(msgspec.Struct):
    """An answer that waits for something, without a coroutine that waits."""

    future: asyncio.Future[Any]
    answer: Callable[[Any], Answer]
    """Of what the future brings. May raise what a handler may raise."""


Told = Answer | Later | Awaitable[Answer | Stream]
"""What need not wait is answered at once: that spares a coroutine."""


async def awaited(told: Answer | Later) -> Answer:
    """The answer, waited for where it must be."""
    return told if isinstance(told, Answer) else told.answer(await told.future)


def length_of(body: bytes) -> tuple[bytes, bytes]:
    """The header that says how long a body is."""
    length = len(body)
    return _LENGTHS[length] if length < len(_LENGTHS) else (b"content-length", b"%d" % length)


def json_answer(status: int, body: bytes, position: int | None, code: str = "ok") -> Answer:
    """JSON, encoded already."""
    return Answer(status, [JSON, length_of(body), NO_STORE], body, code, position)


def results_answer(call: Call[Any, Any], results: Sequence[bytes]) -> Answer:
    """The answers to a batch's items, in their order."""
    head, prefix = call.ledger.state.head, call.ledger.position_prefix
    body = b'{"results":[%b],"position":%b}' % (
        b",".join(results),
        encode(format_position(prefix, head)),
    )
    return json_answer(200, body, head)


def problem_answer(body: bytes, status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    """Problem details, encoded already."""
    return Answer(status, [_PROBLEM, length_of(body), NO_STORE, *wire(headers or {})], body, code)


def wire(headers: dict[str, str]) -> Headers:
    """Headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
