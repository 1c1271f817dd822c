"""The outer layer of the HTTP server: which process answers a request, and in which way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from services.api.answering.answers import Answer, Later
from services.api.asking.call import (
    Call,
    ClientGoneError,
    Message,
    Receive,
    Scope,
    Send,
    hung_up,
)
from services.api.door import Door, as_it_is, let_it_go
from services.api.operations import Api, Operation
from services.api.resources.forward_auth import PATH as FORWARD_AUTH
from services.api.serving.at_once import ReplyLater
from services.api.serving.forwarding import Forwarder
from services.api.serving.handing_back import not_owner_answer
from services.api.serving.seals import NotMeantForUsError
from services.ledger.errors import CannotAnswerError, NotOwnerHereError
from services.ledger.jobs import WAITED_PAST
from services.ledger.ledger import Ledger

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

CALL: Final = "keyledger.call"
"""In a scope: its call."""
_HERE: Final = ("/healthz", "/readyz", "/metrics", "/docs", "/schema", "/console")
"""Answered by every process itself, owner or not."""
_BEHIND_FORWARD_AUTH: Final = FORWARD_AUTH.encode() + b"/"
_PLAIN_PATH: Final = re.compile(rb"[!$&-~]*").fullmatch
"""Matches a path without percent-encoding."""


class Front:
    """The ASGI application: quick routes at once, the rest through the router, all through one door."""

    def __init__(
        self,
        door: Door,
        router: ASGIApp,
        operations: Iterable[Operation],
        forwarder: Forwarder | None = None,
    ) -> None:
        self.door = door
        self.api: Api = door.api
        self.router = router
        self._ledger: Ledger = door.api.ledger
        self._standing = self._ledger.standing
        self._forwarder = forwarder
        self._quick: dict[tuple[str, str], Operation] = {}
        self._limits: dict[str, int] = {}
        for one in operations:
            if one.quick:
                self._quick[one.method, one.path] = one
            if one.max_body_bytes is not None:
                self._limits[one.path] = one.max_body_bytes
        self._forward_auth = self._quick["GET", FORWARD_AUTH]
        self._behind_forward_auth = self._quick.pop(("GET", FORWARD_AUTH + "/{path}"))
        self._heard = {path.encode(): method.encode() for method, path in self._quick}
        self._by_path = {path: operation for (_, path), operation in self._quick.items()}
        door.lost = self._lost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection event, as ASGI has it."""
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        if scope["method"] == "HEAD" and not scope["path"].startswith(FORWARD_AUTH):
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        path: str = scope["path"]
        operation = self._quick_one(scope["method"], path)
        call: Call[Any, Any] = Call(self.api, scope, receive)
        call.limit = self._limits.get(path, call.limit)
        scope[CALL] = call
        if operation is None and (path == "/" or path.startswith(_HERE)):
            self._settle(call)
            await self.router(scope, receive, send)
            return
        if call.forwarded is None:
            await self._answer(call, operation, send)
            return
        try:
            passed = None if self._forwarder is None else await self._forwarder.admitted(call)
        except ClientGoneError:
            await let_it_go(call)
            return
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            if not isinstance(error, NotMeantForUsError):
                call.forwarded = None  # not by a process of this ledger, as far as can be known
            await self.door.send(call, self._not_carried_out(call, error), send)
            return
        if passed is None:
            call.forwarded = None
            await self._answer(call, operation, send)
            return
        call = call.as_it_came_in(passed.headers, passed.peer)
        scope = call.scope
        scope[CALL] = call
        mine = WAITED_PAST.set(passed.waited_past)
        try:
            await self._answer(call, operation, send)
        finally:
            WAITED_PAST.reset(mine)

    async def _answer(self, call: Call[Any, Any], operation: Operation | None, send: Send) -> None:
        self._settle(call)
        if operation is not None and self._standing.owner:
            # Whether ownership is confirmed is checked where something is decided.
            await self.door.serve(call, operation, send)
        elif operation is None and may_tell(self._ledger, call.method):
            await self.router(call.scope, call.receive, send)
        else:
            await self._elsewhere(call, send)

    def _settle(self, call: Call[Any, Any]) -> None:
        if call.has_long_id:
            call.settle_id(self.api.redactor.may_be_shown)

    def _quick_one(self, method: str, path: str) -> Operation | None:
        """The quick route of this request; None if the router has to find the route."""
        exact = self._quick.get((method, path))
        if exact is not None:
            return exact
        if path.startswith(FORWARD_AUTH):
            behind = path[len(FORWARD_AUTH) : len(FORWARD_AUTH) + 1]
            if behind == "/":
                return self._behind_forward_auth
            if not behind:
                return self._forward_auth
        return None

    # -- the short path of `AtOnceProtocol`

    def hears(self, method: bytes, path: bytes) -> bool:
        """Whether a request may be answered at once: for quick routes, as nearly all clients spell them."""
        return self._heard.get(path) == method or (
            path.startswith(_BEHIND_FORWARD_AUTH) and method == b"GET" and _PLAIN_PATH(path) is not None
        )

    def at_once(self, scope: Scope, body: bytes) -> Answer | ReplyLater | None:
        """The answer to a whole request that `hears` accepts; None: `__call__` has to answer it."""
        operation = self._by_path.get(scope["path"]) or self._behind_forward_auth
        call: Call[Any, Any] = Call(self.api, scope, hung_up)
        if not self._standing.owner or call.forwarded is not None or len(body) > call.limit:
            return None
        call.data = body
        if call.given_id is not None:
            self._settle(call)
        try:
            told = self.door.begin(call, operation)
        except NotOwnerHereError:
            return None
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            told = self.door.refuse(call, error)
        if isinstance(told, Answer):
            self.door.end(call, told)
            return told
        later = told if isinstance(told, Later) else Later(asyncio.ensure_future(told), as_it_is)
        return ReplyLater(later.future, partial(self._late, call, later.answer))

    def _late(
        self, call: Call[Any, Any], answer: Callable[[Any], Answer], future: asyncio.Future[Any]
    ) -> Answer | None:
        try:
            told = answer(future.result())
        except NotOwnerHereError:
            return None  # Nothing was written: on the second try another process answers.
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            told = self.door.refuse(call, error)
        self.door.end(call, told)
        return told

    # -- answering elsewhere

    async def _lost(self, call: Call[Any, Any], error: NotOwnerHereError, send: Send) -> None:
        """Ownership was lost while the call was here, and nothing was written."""
        if call.is_tried_again:
            call.lost = error  # for the loop that tries it, and continues
        elif self._forwarder is None or call.forwarded is not None:
            await self.door.send(call, self._not_carried_out(call, error), send)
        else:
            await self._elsewhere(call, send)

    async def _elsewhere(self, call: Call[Any, Any], send: Send) -> None:
        """Another process owns the partition, or none for a moment: the owner answers, once there is one."""
        if self._forwarder is None or call.forwarded is not None:
            try:
                self._ledger.must_own()
                error: CannotAnswerError = NotOwnerHereError("This process has only now become the owner.")
            except CannotAnswerError as why:
                error = why
            await self.door.send(call, self._not_carried_out(call, error), send)
            return
        try:
            await call.read()
            await self._forwarder.forward(call, send, self._here_after_all)
        except ClientGoneError:
            await let_it_go(call)
        except Exception as failure:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            await self.door.send(call, self.door.refuse(call, failure), send)

    async def _here_after_all(self, call: Call[Any, Any], send: Send) -> None:
        """This process has become the owner. Raises NotOwnerHereError if it has just lost ownership again."""
        # Only now are all keyspaces certainly known.
        call.settle_id(self.api.redactor.may_be_shown)
        call.is_tried_again, call.lost = True, None
        operation = self._quick_one(call.method, call.scope["path"])
        if operation is None:
            await self.router(call.scope, call.receive, send)
        else:
            await self.door.serve(call, operation, send)
        if call.lost is not None:
            raise call.lost

    def _not_carried_out(self, call: Call[Any, Any], error: Exception) -> Answer:
        """The error's answer; one for another ledger process says that it may try the next owner."""
        answer = self.door.refuse(call, error)
        return answer if call.forwarded is None else not_owner_answer(answer, error)


def may_tell(ledger: Ledger, method: str) -> bool:
    """Whether a management request may be answered from this process's state.

    Its ownership must be confirmed: a process that slept may wake up long after another has taken over.
    But without PostgreSQL no process writes, so the committed state is still true; its position tells how
    old it is, in case another process reached PostgreSQL meanwhile. (Verdicts are never given this way.)
    A process that has not read the log to its end knows less than was committed, and does not answer.
    """
    return ledger.confirmed or (method == "GET" and not ledger.reachable and ledger.caught_up)


def _without_body(send: Send) -> Send:
    """The `send` of a HEAD: the answer of a GET without its body."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    return sending
