"""Answers as they are sent: whole, later, or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from domain.ids import format_position
from services.api.answering.problems import PROBLEM_JSON

if TYPE_CHECKING:
    from services.api.asking.call import Call

Headers = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")
NO_STORE: Final = (b"cache-control", b"no-store")
_PROBLEM: Final = (b"content-type", PROBLEM_JSON.encode())

encode = msgspec.json.Encoder().encode


class Head(msgspec.Struct, frozen=True, gc=False):
    """Headers that many answers share: as ASGI has them, and as lines to be written."""

    pairs: tuple[tuple[bytes, bytes], ...]
    lines: bytes


def head_of(*pairs: tuple[bytes, bytes]) -> Head:
    """Headers for answers. Raises ValueError if one contains a line break."""
    return Head(pairs, lines_of(pairs))


def lines_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Headers as lines to be written. Raises ValueError if one contains a line break."""
    lines = b"".join([b"%b: %b\r\n" % pair for pair in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers):
        raise ValueError("An answer's header contains a line break.")
    return lines


class Answer(msgspec.Struct, gc=False):
    """A whole HTTP answer. Its head has the body's length."""

    status: int
    head: Head
    body: bytes
    code: str = "ok"
    """The code that metrics count it under."""
    position: int | None = None
    """The position of the state that it depends on, for `X-Keyledger-Position`; None: it depends on none."""
    place: bytes = b""
    """The header line with that position (`place_line`); the door writes it if the handler has not."""
    request_id: bytes = b""
    """Written by the door, too."""
    more: bytes = b""
    """Lines of headers that other answers with the same head do not have (`lines_of`)."""

    @property
    def headers(self) -> Headers:
        """All its headers, as ASGI has them."""
        return _headers(self)

    @property
    def lines(self) -> bytes:
        """All its headers, as lines to be written: the short path does not need the list."""
        return b"%b%b%bx-request-id: %b\r\n" % (self.head.lines, self.more, self.place, self.request_id)


class Stream(msgspec.Struct):
    """An answer whose body is a stream."""

    head: Head
    chunks: AsyncIterator[bytes]
    ended: Callable[[], None]
    """Called once it has ended, in whatever way."""
    status: int = 200
    code: str = "ok"
    position: int | None = None
    place: bytes = b""
    request_id: bytes = b""
    more: bytes = b""

    @property
    def headers(self) -> Headers:
        """All its headers, as ASGI has them."""
        return _headers(self)


def _headers(answer: Answer | Stream) -> Headers:
    lines = (answer.more + answer.place).split(b"\r\n")[:-1]
    return [
        *answer.head.pairs,
        *[(name, value) for name, _, value in (line.partition(b": ") for line in lines)],
        (b"x-request-id", answer.request_id),
    ]


def place_line(position: str) -> bytes:
    """The header line with the position of the state that an answer depends on."""
    return b"x-keyledger-position: " + position.encode() + b"\r\n"


class Later(msgspec.Struct):
    """An answer that waits for a future, without a coroutine."""

    future: asyncio.Future[Any]
    answer: Callable[[Any], Answer]
    """Makes the answer from the future's result. May raise what a handler may raise."""


Told = Answer | Later | Awaitable[Answer | Stream]
"""An answer that need not wait is returned at once, which saves a coroutine."""


async def awaited(told: Answer | Later) -> Answer:
    """The answer, awaited if necessary."""
    return told if isinstance(told, Answer) else told.answer(await told.future)


def _length_of(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)


_JSON_HEADS: Final[dict[int, Head]] = {}
_MOST_KEPT: Final = 4_096
"""Heads of longer bodies are not kept: these are rare, and seldom of the same length."""


def json_answer(status: int, body: bytes, position: int | None, code: str = "ok") -> Answer:
    """An answer of JSON that is encoded already."""
    return Answer(status, _JSON_HEADS.get(len(body)) or _json_head(body), body, code, position)


def _json_head(body: bytes) -> Head:
    head = head_of(_JSON, _length_of(body), NO_STORE)
    if len(body) < _MOST_KEPT:
        _JSON_HEADS[len(body)] = head
    return head


def results_answer(call: Call[Any, Any], results: Sequence[bytes]) -> Answer:
    """The answers to a batch's items, in their order."""
    head, prefix = call.ledger.head, call.ledger.position_prefix
    body = b'{"results":[%b],"position":%b}' % (
        b",".join(results),
        encode(format_position(prefix, head)),
    )
    return json_answer(200, body, head)


def problem_answer(body: bytes, status: int, code: str, headers: dict[str, str] | None = None) -> Answer:
    """An answer of problem details that are encoded already."""
    return Answer(status, head_of(_PROBLEM, _length_of(body), NO_STORE, *wire(headers or {})), body, code)


def wire(headers: dict[str, str]) -> Headers:
    """Headers as ASGI has them."""
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
