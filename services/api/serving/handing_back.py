"""What the owner answers to another process of its ledger, and what the client gets of it."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any, Final

import aiohttp

from services.api.answering.answers import Answer, lines_of
from services.api.answering.problems import REFUSED_LATELY
from services.api.asking.call import Call, Send
from services.api.serving.seals import OF_THE_CONNECTION, NotMeantForUsError

_NOT_OWNER: Final = b"x-keyledger-not-owner"
_CLOCK: Final = b"x-keyledger-clock"
"""The owner's monotonic clock, for a process whose mark it found too old."""
HOP_BY_HOP: Final = OF_THE_CONNECTION | {
    b"expect", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"te", b"trailer", b"upgrade",
    b"x-request-id",
}  # fmt: skip
"""Headers of one connection, which are not forwarded, and the trace id, which is set again."""
_NOT_HANDED_BACK: Final = HOP_BY_HOP | {b"date", b"server", _NOT_OWNER, _CLOCK}
_SMALL: Final = 1_048_576
_UNAVAILABLE: Final = 503


class Sent(Enum):
    """The outcome of a request that was forwarded."""

    ANSWERED = "answered"
    NOT_CARRIED_OUT = "not carried out"
    TOO_OLD = "not carried out, and the owner sent its clock"
    UNKNOWN = "unknown"


def not_owner_answer(answer: Answer, error: Exception) -> Answer:
    """The answer for another process of this ledger: nothing was carried out, try elsewhere."""
    marks = [(_NOT_OWNER, b"1")]
    if isinstance(error, NotMeantForUsError) and error.clock is not None:
        marks.append((_CLOCK, b"%d" % error.clock))
    answer.more += lines_of(marks)
    return answer


def clock_told(response: aiohttp.ClientResponse) -> int | None:
    """The owner's clock, if it found a mark too old."""
    told = response.headers.get(_CLOCK.decode(), "")
    return int(told) if _NOT_OWNER.decode() in response.headers and told.isdecimal() else None


async def hand_back(
    response: aiohttp.ClientResponse, request: Call[Any, Any], tenure: str, send: Send
) -> Sent:
    """Pass the owner's answer to the client as it arrives, or return why it is not an answer."""
    if (number := response.headers.get(REFUSED_LATELY)) is not None and number.isdecimal():
        # Another try of it was refused. If its client still waits, this try is not older than that refusal.
        request.waited_past, request.refused_in = int(number), tenure
        return Sent.NOT_CARRIED_OUT
    if _NOT_OWNER.decode() in response.headers:
        return Sent.NOT_CARRIED_OUT
    headers = [
        (name.lower(), value) for name, value in response.raw_headers if name.lower() not in _NOT_HANDED_BACK
    ]
    told = response.headers.get("X-Request-Id", request.request_id)
    headers.append((b"x-request-id", told.encode("utf-8", "surrogateescape")))
    start = {"type": "http.response.start", "status": response.status, "headers": headers}
    length = response.content_length
    bodiless = request.scope["method"] == "HEAD" or length is None or length > _SMALL
    if bodiless:
        if length is not None:
            headers.append((b"content-length", b"%d" % length))
        await send(start)
        await _stream(response, request, send)
        return Sent.ANSWERED
    try:
        body = await response.read()
    except (aiohttp.ClientError, OSError):
        return Sent.UNKNOWN
    if response.status == _UNAVAILABLE and b'"code":"not_owner"' in body:
        return Sent.NOT_CARRIED_OUT
    headers.append((b"content-length", b"%d" % len(body)))
    await send(start)
    await send({"type": "http.response.body", "body": body})
    return Sent.ANSWERED


async def _stream(response: aiohttp.ClientResponse, request: Call[Any, Any], send: Send) -> None:
    """Pass on what arrives, until it ends or the client hangs up. A broken stream is broken off here, too."""
    pumping = asyncio.create_task(_pump(response, send))
    gone = asyncio.create_task(request.gone())
    tasks: set[asyncio.Task[Any]] = {pumping, gone}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if pumping.done() and not pumping.cancelled():
        pumping.result()


async def _pump(response: aiohttp.ClientResponse, send: Send) -> None:
    async for chunk in response.content.iter_any():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
