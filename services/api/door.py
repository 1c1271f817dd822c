"""The door: every request is admitted, handled, answered, counted and logged here, whatever its route.

In this order: its caller, its headers, its query, its body, its handler; an error becomes a problem; the
answer gets its headers, is counted, and gets a line in the log. `serving` brings requests to it in three
ways: at once, over ASGI, and through Litestar, which finds the route of all requests that are not quick.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from time import perf_counter
from typing import Any, Final

from domain.errors import LedgerError
from domain.ids import format_position
from services.api.answering.answers import Answer, Later, Stream, Told, encode, head_of, place_line, wire
from services.api.answering.counting import Counts
from services.api.answering.fencing import outlast_fences
from services.api.answering.lines import AccessLog
from services.api.answering.problems import FieldError, ProblemError, invalid
from services.api.asking.call import Call, ClientGoneError, Send
from services.api.asking.callers import Callers
from services.api.asking.positions import number_in, of_this_epoch
from services.api.asking.reading import read_query
from services.api.asking.traces import client_ip
from services.api.operations import POSITION_HEADER, Api, NoQuery, Operation, Reply
from services.ledger.errors import NotOwnerHereError

_WAIT_SECONDS: Final = 2.0
_REFUSED: Final = 400
_LET_GO_SECONDS: Final = 1.0
_OK: Final = 200

Lost = Callable[[Call[Any, Any], NotOwnerHereError, Send], Awaitable[None]]


class Door:
    """Every request passes through here, and so does its answer."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.counts = Counts()
        self._count = self.counts.count
        self.lines = AccessLog(api.redactor)
        self.lost: Lost = self._tell_of_the_loss
        """Called if this process turns out not to own the partition; nothing was written then."""
        self._callers: Callers = api.callers
        self._ledger = api.ledger
        self._holds_secret = api.redactor.holds_secret
        self._trusted = api.trusted_proxies
        self._log_granted = api.log_granted
        self._placed, self._place = -1, b""
        api.ledger.at_new_epoch(self._forget_place)

    # -- in

    def begin(self, call: Call[Any, Any], operation: Operation) -> Told:
        """Admit the call and let its handler answer it. Raises errors, to be answered as problems."""
        call.operation = operation
        # A request that a proxy forwards is its client's: its query, body and headers are not checked here.
        if not operation.proxied:
            if self._trusted:
                call.peer = client_ip(call.scope, self._trusted)
            if operation.permissions:
                call.caller = self._callers.admit(call.authorization, operation.permissions, call.peer)
            if call.says_more:
                _refuse_unsupported(call, operation)
            if call.scope["query_string"] or operation.query is not NoQuery:
                call.query = self._query(call, operation)
            if operation.has_body:
                call.body = operation.read(call.data, self._holds_secret)
        if operation.quick:
            told: Told = operation.handler(call)
            return told
        return self._handled(call, operation)

    def _query(self, call: Call[Any, Any], operation: Operation) -> Any:
        others = operation.others(self._ledger.books)
        return of_this_epoch(
            self._ledger, read_query(call.scope["query_string"], operation.query, others=others)
        )

    async def _handled(self, call: Call[Any, Any], operation: Operation) -> Answer | Stream:
        call.epoch, call.prefix = max(self._ledger.epoch, 1), self._ledger.position_prefix
        if call.seen_position is not None and operation.method == "GET" and operation.permissions:
            await self._wait_until_visible(operation, call.seen_position)
        try:
            told = await operation.handler(call)
        except LedgerError as refusal:
            if operation.fenced and call.query.fence:
                await outlast_fences(self._ledger, refusal)
            raise
        return _answer_of(call, operation, told) if isinstance(told, Reply) else told

    async def _wait_until_visible(self, operation: Operation, given: bytes) -> None:
        """Wait until what is read has reached the position that the caller saw elsewhere."""
        text = given.decode("latin-1").strip()
        number = number_in(self._ledger, text)
        if number is None:
            raise invalid(POSITION_HEADER, "not a position of this ledger")
        reached = number <= self._ledger.head
        if not reached or operation.projected:
            reached = await self._ledger.wait_for_projections(number, _WAIT_SECONDS)
        if not reached:
            raise ProblemError(
                "position_not_reached",
                f"Position {text} was not reached within {_WAIT_SECONDS:.0f} s.",
                headers={"Retry-After": "1"},
            )

    # -- out

    def refuse(self, call: Call[Any, Any], error: Exception) -> Answer:
        """The answer to an error."""
        return self.api.refusals.answer(error, call.request_id)

    def end(self, call: Call[Any, Any], answer: Answer | Stream) -> None:
        """Finish the answer: it gets the headers that all answers have, is counted, and is logged."""
        operation, status, position = call.operation, answer.status, answer.position
        seconds = perf_counter() - call.started
        route = "other" if operation is None else operation.path
        self._count(route, call.scope["method"], status, answer.code, seconds)
        if position is not None and not answer.place:
            if call.prefix:
                answer.place = place_line(call.place(position))
            else:
                answer.place = self._place if position == self._placed else self._line_of(position)
        if status >= _REFUSED or operation is None or not operation.quick or self._log_granted:
            self.lines.write(call, status, answer.code, seconds)
        answer.request_id = call.shown_id

    def _line_of(self, position: int) -> bytes:
        """The position's header line; the same for many answers, until something is written."""
        self._placed = position
        self._place = place_line(format_position(self._ledger.position_prefix, position))
        return self._place

    def _forget_place(self) -> None:
        self._placed = -1

    # -- over ASGI

    async def serve(self, call: Call[Any, Any], operation: Operation, send: Send) -> None:
        """Read the call's body, answer it, and send the answer; or let another process answer it."""
        call.operation = operation
        if operation.max_body_bytes is not None:
            call.limit = operation.max_body_bytes
        try:
            if operation.has_body:
                await call.read()
            answer = await self._waited_for(call, operation)
        except ClientGoneError:
            await let_it_go(call)
            return
        except NotOwnerHereError as error:
            await self.lost(call, error, send)
            return
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            answer = self.refuse(call, error)
        await self.send(call, answer, send)

    async def _tell_of_the_loss(self, call: Call[Any, Any], error: NotOwnerHereError, send: Send) -> None:
        await self.send(call, self.refuse(call, error), send)

    async def _waited_for(self, call: Call[Any, Any], operation: Operation) -> Answer | Stream:
        """The answer to a call whose body was read. Raises ClientGoneError if the client has hung up."""
        call.must_be_waited_for()
        told = self.begin(call, operation)
        if isinstance(told, Answer):
            return told
        later = told if isinstance(told, Later) else Later(asyncio.ensure_future(told), as_it_is)
        # If the client hangs up before it was begun, it is cancelled: the command queue skips it.
        if not await unless(call.gone(), later.future):
            raise ClientGoneError
        return later.answer(later.future.result())

    async def send(self, call: Call[Any, Any], answer: Answer | Stream, send: Send) -> None:
        """Send an answer, whole or as a stream."""
        self.end(call, answer)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        if isinstance(answer, Answer):
            await send({"type": "http.response.body", "body": answer.body})
            return
        try:
            await unless(call.gone(), asyncio.ensure_future(_pump(answer, send)))
        finally:
            answer.ended()


async def _pump(answer: Stream, send: Send) -> None:
    async for chunk in answer.chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def unless(gone: Coroutine[Any, Any, None], what: asyncio.Future[Any]) -> bool:
    """Wait for it. False if the client hung up first, and it was cancelled."""
    leaving = asyncio.create_task(gone)
    try:
        await asyncio.wait({what, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not what.done():
            return False
        await what
        return True
    finally:
        leaving.cancel()
        if not what.done():
            what.cancel()
            await asyncio.wait({what})


async def let_it_go(call: Call[Any, Any]) -> None:
    """Send no answer: the server learns in a moment that the client has gone, and then expects none."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LET_GO_SECONDS):
            await call.gone()


def as_it_is(answer: Any) -> Any:
    """The result itself, if it is an answer already."""
    return answer


def _refuse_unsupported(call: Call[Any, Any], operation: Operation) -> None:
    if call.idempotency_key is not None and not operation.idempotent:
        raise _unsupported("Idempotency-Key", operation.instead_of_a_key)
    if call.if_match is not None and not operation.conditional:
        raise _unsupported("If-Match", "there is no version to compare")


def _unsupported(header: str, why: str) -> ProblemError:
    return ProblemError(
        "unsupported_header",
        f"{header}: this request takes no such header: {why}.",
        errors=(FieldError(field=header, message=f"this request takes no such header: {why}"),),
    )


def _answer_of(call: Call[Any, Any], operation: Operation, reply: Reply) -> Answer:
    headers = {"Content-Type": operation.media_types[0], **reply.headers}
    headers.setdefault("Cache-Control", "no-store")
    if operation.shown_at and reply.status != _OK:
        headers["Location"] = operation.location(call.path, reply.body)
    if reply.version is not None:
        headers["ETag"] = f'"{reply.version}"'
    body = reply.body if isinstance(reply.body, bytes) else encode(reply.body)
    headers["Content-Length"] = str(len(body))
    position = reply.position
    if position is None and operation.permissions:
        position = call.ledger.head
    return Answer(reply.status, head_of(*wire(headers)), body, position=position)
