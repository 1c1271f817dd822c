"""An edge's requests to the ledger over HTTP: to take part, to fill its memory, to charge."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, TypeVar
from uuid import uuid4

import msgspec

from keyledger_edge._http import HttpClient, HttpReply
from keyledger_edge.errors import LedgerUnreachableError, RefusedByLedgerError
from keyledger_language.messages import (
    ConnectAnswer,
    ConnectRequest,
    FillAnswer,
    FillRequest,
    KeyspacesAnswer,
    KeyspacesRequest,
    VerifyBatchRequest,
    VerifyRequest,
)
from keyledger_language.verdicts import VerifyAnswer

_Kind = TypeVar("_Kind")

_OK: Final = 200
_SERVER_ERRORS: Final = 500
_TOO_LARGE: Final = 413
_TOO_MANY: Final = 429
_FILL_SECONDS: Final = 2.0
_CONNECT_SECONDS: Final = 5.0
_TRY_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.05
_MAX_PAUSE_SECONDS: Final = 0.5
_BATCH: Final = 100
_POSTERS: Final = 4
# Edges that have lost their leases ask for every use. If a hundred of them kept the ledger busy for
# longer than a lease, its grants would come too late, and they would never stop asking.
_FILLS_AT_ONCE: Final = 8
_NO_ANSWER: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for bytes that are not an answer of the ledger."""


class _Problem(msgspec.Struct):
    code: str = "unknown"
    status: int = 0


class _BatchAnswer(msgspec.Struct):
    results: list[msgspec.Raw]


class _Waiting:
    """One use that waits for its answer."""

    __slots__ = ("answer", "request")

    def __init__(self, request: VerifyRequest, answer: asyncio.Future[VerifyAnswer]) -> None:
        self.request = request
        self.answer = answer


class LedgerClient:
    """Sends requests to the ledger. Uses with a cost carry a request id, so a retry never charges twice."""

    def __init__(self, http: HttpClient, *, patience_seconds: float = 5.0) -> None:
        self._http = http
        self._patience = patience_seconds
        self._waiting: deque[_Waiting] = deque()
        self._posters: set[asyncio.Task[None]] = set()
        self._fills: asyncio.Semaphore | None = None
        self._encode = msgspec.json.Encoder().encode

    async def connect(self, request: ConnectRequest) -> ConnectAnswer:
        """Take part; RefusedByLedgerError if the key does not allow it."""
        reply = await self._http.post("/v1/edges/connect", self._encode(request), seconds=_CONNECT_SECONDS)
        return _answer(reply, ConnectAnswer)

    async def keyspaces(self, keyspace_ids: tuple[str, ...]) -> KeyspacesAnswer:
        """The current request format of keyspaces; RefusedByLedgerError if the key does not allow it."""
        body = self._encode(KeyspacesRequest(keyspace_ids=keyspace_ids))
        reply = await self._http.post("/v1/edges/keyspaces", body, seconds=_FILL_SECONDS)
        return _answer(reply, KeyspacesAnswer)

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        """The owner's committed state of one secret."""
        body = self._encode(FillRequest(fingerprint=digest.hex(), keyspace_id=keyspace_id))
        if self._fills is None:
            self._fills = asyncio.Semaphore(_FILLS_AT_ONCE)
        try:
            async with asyncio.timeout(_FILL_SECONDS), self._fills:
                reply = await self._http.post("/v1/edges/fill", body, seconds=_FILL_SECONDS)
        except TimeoutError:
            raise LedgerUnreachableError("The ledger did not answer in time.") from None
        try:
            return _answer(reply, FillAnswer)
        except RefusedByLedgerError as refusal:
            # For a key, a ledger that refuses to answer is the same as an unreachable one.
            raise LedgerUnreachableError(str(refusal)) from None

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        """The ledger's verdict, charged once per request id.

        Tries again for a few seconds until the verdict is known; LedgerUnreachableError means that
        the use may have been charged: ask again with the same request id.
        """
        if request.request_id is None and (request.cost_micros or request.reserve_micros) is not None:
            request.request_id = f"edge-{uuid4().hex}"
        deadline = asyncio.get_running_loop().time() + self._patience
        pause = _PAUSE_SECONDS
        while True:
            try:
                return await self._once(request)
            except LedgerUnreachableError:
                if asyncio.get_running_loop().time() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)
            pause = min(_MAX_PAUSE_SECONDS, pause * 2)

    async def _once(self, request: VerifyRequest) -> VerifyAnswer:
        """Send the request alone while a poster is free; otherwise in a batch with others that wait."""
        waiting = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if len(self._posters) < _POSTERS:
            poster = asyncio.create_task(self._post_all())
            self._posters.add(poster)
            poster.add_done_callback(self._posters.discard)
        return await waiting.answer

    async def _post_all(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            batch = [one for one in batch if not one.answer.done()]
            try:
                await self._post(batch)
            except BaseException as failure:
                error = failure if isinstance(failure, Exception) else LedgerUnreachableError()
                for one in batch:
                    _fail(one, error)
                if not isinstance(failure, Exception):
                    raise

    async def _post(self, batch: list[_Waiting]) -> None:
        if len(batch) == 1:
            body = self._encode(batch[0].request)
            reply = await self._http.post("/v1/verify", body, seconds=_TRY_SECONDS)
            _settle(batch[0], reply.status, reply.body)
        elif batch:
            body = self._encode(VerifyBatchRequest(items=[one.request for one in batch]))
            reply = await self._http.post("/v1/verify/batch", body, seconds=_TRY_SECONDS)
            if reply.status == _TOO_LARGE:
                # No request is refused because of the size of others.
                half = len(batch) // 2
                await self._post(batch[:half])
                await self._post(batch[half:])
                return
            results = _answer(reply, _BatchAnswer).results
            if len(results) != len(batch):
                raise LedgerUnreachableError("The ledger's answer cannot be read.")
            for one, result in zip(batch, results, strict=True):
                _settle(one, _OK, result)

    async def close(self) -> None:
        """Fail the requests that wait, and close all connections."""
        for poster in list(self._posters):
            poster.cancel()
        await asyncio.gather(*self._posters, return_exceptions=True)
        while self._waiting:
            _fail(self._waiting.popleft(), LedgerUnreachableError("The verifier was closed."))
        self._http.close()

    def forget(self) -> None:
        """After a fork: every request under way is the parent's."""
        self._waiting.clear()
        self._posters.clear()
        self._fills = None
        self._http.forget()


def _fail(waiting: _Waiting, error: Exception) -> None:
    if not waiting.answer.done():
        waiting.answer.set_exception(error)


def _settle(waiting: _Waiting, status: int, body: bytes | msgspec.Raw) -> None:
    if waiting.answer.done():
        return
    try:
        waiting.answer.set_result(_answer(HttpReply(status, bytes(body)), VerifyAnswer))
    except (LedgerUnreachableError, RefusedByLedgerError) as error:
        waiting.answer.set_exception(error)


def _answer(reply: HttpReply, kind: type[_Kind]) -> _Kind:
    """Decode an answer; a problem is raised as an error."""
    try:
        if reply.status == _OK:
            return msgspec.json.decode(reply.body, type=kind)
    except msgspec.ValidationError:
        pass  # In a batch, an item's problem is in the place of its answer.
    except _NO_ANSWER:
        raise LedgerUnreachableError("The ledger's answer cannot be read.") from None
    problem = _problem(reply)
    status = problem.status or reply.status
    if status >= _SERVER_ERRORS or status in {_OK, _TOO_MANY}:
        raise LedgerUnreachableError(f"The ledger answered {status} ({problem.code}).")
    raise RefusedByLedgerError(status, problem.code)


def _problem(reply: HttpReply) -> _Problem:
    try:
        return msgspec.json.decode(reply.body, type=_Problem)
    except _NO_ANSWER:
        return _Problem()
