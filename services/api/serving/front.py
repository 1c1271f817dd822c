"""The outer layer of the HTTP server: hot paths are answered here, the rest goes on to the router."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from time import perf_counter
from typing import Any, Final

import msgspec

from services.api.answering.answers import Answer, Later
from services.api.answering.counting import HotCounts
from services.api.answering.problems import ProblemError
from services.api.asking.callers import Callers
from services.api.asking.gate import may_tell
from services.api.asking.queries import refuse_unknown
from services.api.asking.reading import beginning
from services.api.asking.requests import (
    MAX_BODY_BYTES,
    ClientGoneError,
    HotRequest,
    Message,
    Receive,
    Scope,
    Send,
    hung_up,
    new_request_id,
)
from services.api.asking.secrets import SecretWatch
from services.api.asking.traces import client_ip
from services.api.resources.charges import Charges
from services.api.resources.checking import Checker
from services.api.resources.explain import Explain
from services.api.resources.forward_auth import PATH as FORWARD_AUTH
from services.api.resources.forward_auth import ForwardAuth
from services.api.resources.metering import Metering
from services.api.resources.reservations import Reservations
from services.api.resources.self_service import SelfService
from services.api.resources.verify import Verify
from services.api.serving.at_once import ReplyLater
from services.api.serving.forwarding import Forwarder, not_owner_answer
from services.ledger.errors import CannotAnswerError, NotOwnerHereError
from services.ledger.jobs import WAITED_PAST
from services.ledger.ledger import Ledger

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Told = Answer | Later | Awaitable[Answer]
Handler = Callable[[HotRequest], Told]
"""The body is read before. What need not wait is answered at once: that spares a coroutine."""
OneHandler = Callable[[HotRequest, str], Awaitable[Answer]]
Routed = tuple[str, Handler]

_HERE: Final = ("/healthz", "/readyz", "/metrics", "/docs", "/schema", "/console")
"""Answered by every process for itself, owner or not."""
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LET_GO_SECONDS: Final = 1.0
_BEHIND_FORWARD_AUTH: Final = FORWARD_AUTH.encode() + b"/"
_PLAIN_PATH: Final = re.compile(rb"[!$&-~]*").fullmatch
"""Nothing in it has to be unquoted."""


class HotSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set of the HTTP layer."""

    trusted_proxies: tuple[str, ...] = ()
    """Networks (or `unix`) whose X-Forwarded-For is believed."""
    max_body_bytes: int = MAX_BODY_BYTES


class HotPath:
    """An ASGI application in front of another: the hot paths, and forwarding to the partition's owner."""

    def __init__(
        self,
        ledger: Ledger,
        management: ASGIApp,
        forwarder: Forwarder | None = None,
        settings: HotSettings | None = None,
    ) -> None:
        settings = settings or HotSettings()
        self._ledger = ledger
        self._management = management
        self._forwarder = forwarder
        self._trusted, self._most_body = settings.trusted_proxies, settings.max_body_bytes
        self._watch = SecretWatch(ledger.state, lambda: ledger.confirmed)
        self.counts = HotCounts()
        self.callers = Callers(ledger)
        checker = Checker(ledger, self._watch)
        metering = Metering(ledger, self._watch)
        verify = Verify(ledger, self.callers, checker, metering)
        charges = Charges(ledger, self.callers, metering)
        reservations = Reservations(ledger, self.callers, metering)
        own = SelfService(ledger, checker, self._watch)
        self._forward_auth = ForwardAuth(
            ledger,
            self.callers,
            checker=checker,
            verify=verify,
            metering=metering,
            trusted_proxies=settings.trusted_proxies,
        )
        self._routes: dict[str, tuple[str, Handler]] = {
            "/v1/verify": ("POST", verify.one),
            "/v1/verify/batch": ("POST", verify.batch),
            "/v1/charges": ("POST", charges.one),
            "/v1/charges/batch": ("POST", charges.batch),
            "/v1/reservations": ("POST", reservations.make),
            "/v1/self": ("GET", own.show),
            "/v1/self/revoke": ("POST", own.revoke),
            "/v1/explain": ("POST", Explain(ledger, self.callers, checker, metering).answer),
        }
        self._exact: dict[tuple[str, str], Routed] = {
            (method, path): (path, handle) for path, (method, handle) in self._routes.items()
        }
        self._exact["GET", FORWARD_AUTH] = FORWARD_AUTH, self._forward_auth.answer
        self._heard = {path.encode(): method.encode() for method, path in self._exact}
        self._of_one: dict[tuple[str, str], tuple[str, OneHandler]] = {
            ("charges", "refund"): ("POST", charges.refund),
            ("reservations", ""): ("GET", reservations.show),
            ("reservations", "capture"): ("POST", reservations.capture),
            ("reservations", "release"): ("POST", reservations.release),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection event, as ASGI has it."""
        if scope["type"] != "http":
            await self._management(scope, receive, send)
            return
        path: str = scope["path"]
        routed = self._route(scope["method"], path)
        if routed is None and path.startswith(_HERE):
            await self._management(scope, receive, send)
            return
        started = perf_counter()
        request = HotRequest(scope, receive, self._most_body)
        if request.forwarded is None:
            await self._answer(request, routed, send, started)
            return
        try:
            passed = None if self._forwarder is None else self._forwarder.admitted(request)
        except NotOwnerHereError as error:
            await _send(not_owner_answer(error, request.request_id), request.request_id, send)
            return
        if passed is None:
            request.forwarded = None
            await self._answer(request, routed, send, started)
            return
        scope["client"] = (passed.peer, 0) if passed.peer else None
        request.peer = passed.peer or None
        mine = WAITED_PAST.set(passed.waited_past)
        try:
            await self._answer(request, routed, send, started)
        finally:
            WAITED_PAST.reset(mine)

    async def _answer(self, request: HotRequest, routed: Routed | None, send: Send, started: float) -> None:
        if request.has_long_id:
            self._settle_request_id(request)
        scope = request.scope
        if routed is not None and self._ledger.owner:
            # Whether it is sure of that is looked at where something is decided.
            await self._serve(request, routed, send, started)
        elif routed is None and may_tell(self._ledger, scope["method"]):
            await self._manage(scope, request.receive, send)
        else:
            await self._elsewhere(request, send)

    async def _manage(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand it to the router; a write that nobody waits for any more is given up where it is."""
        if scope["method"] in _READS:
            await self._management(scope, receive, send)
            return
        whole = asyncio.Event()

        async def reading() -> Message:
            message = await receive()
            if not message.get("more_body"):
                whole.set()
            return message

        async def gone() -> None:
            await whole.wait()
            while (await receive())["type"] != "http.disconnect":
                pass

        await _unless(gone(), asyncio.ensure_future(self._management(scope, reading, send)))

    async def _serve(self, request: HotRequest, routed: Routed, send: Send, started: float) -> None:
        route = routed[0]
        try:
            if request.scope["method"] == "POST" and route != FORWARD_AUTH:
                message = await request.receive()
                if not request.takes_all(message):
                    await request.take(message)
            answer = await self._told(request, routed)
        except ClientGoneError:
            await _let_it_go(request)
            return
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            failed = await self._failed(error, request, send)
            if failed is None:
                return
            answer = failed
        self.counts.count(route, answer.status, answer.code, perf_counter() - started)
        await _send(answer, request.request_id, send)

    async def _told(self, request: HotRequest, routed: Routed) -> Answer:
        """What a hot path says to a request whose body was read."""
        route, handle = routed
        if route != FORWARD_AUTH:
            if self._trusted:
                request.peer = client_ip(request.scope, self._trusted)
            if query := request.scope["query_string"]:
                refuse_unknown(route, query, self._ledger.state)
        request.must_be_waited_for()
        told = handle(request)
        if isinstance(told, Answer):
            return told
        later = told if isinstance(told, Later) else Later(asyncio.ensure_future(told), _as_it_is)
        # What was not begun when the client hangs up need not be: the bus passes it over.
        if not await _unless(request.gone(), later.future):
            raise ClientGoneError
        return later.answer(later.future.result())

    async def _failed(self, error: Exception, request: HotRequest, send: Send) -> Answer | None:
        """An error as an answer; None when another process gives the answer."""
        if not isinstance(error, NotOwnerHereError):
            return self._watch.error_answer(error, request.request_id)
        # Ownership was lost meanwhile, and nothing was written.
        if self._forwarder is not None and request.forwarded is None:
            await self._elsewhere(request, send)
            return None
        return not_owner_answer(error, request.request_id)

    def _route(self, method: str, path: str) -> Routed | None:
        """Which hot path this is; None for the router's."""
        exact = self._exact.get((method, path))
        if exact is not None:
            return exact
        found = self._routes.get(path)
        if found is not None:
            return path, _only(found[0])
        if path.startswith(FORWARD_AUTH) and path[len(FORWARD_AUTH) : len(FORWARD_AUTH) + 1] in ("", "/"):
            return FORWARD_AUTH, self._forward_auth.answer
        parts = path.split("/")
        if len(parts) not in (4, 5) or parts[1] != "v1":
            return None
        action = parts[4] if len(parts) == 5 else ""  # noqa: PLR2004  # "", v1, things, id, action
        one = self._of_one.get((parts[2], action))
        if one is None or not parts[3]:
            return None
        route = f"/v1/{parts[2]}/{{id}}{'/' + action if action else ''}"
        return (route, _bound(one[1], parts[3])) if one[0] == method else (route, _only(one[0]))

    def _settle_request_id(self, request: HotRequest) -> None:
        given = request.given_id
        request.request_id = given if given and self._watch.may_be_shown(given) else new_request_id()

    # -- the short cut of `AtOnceProtocol`

    def hears(self, method: bytes, path: bytes) -> bool:
        """May a request be answered at once? The hot paths, as nearly everybody writes them."""
        return self._heard.get(path) == method or (
            path.startswith(_BEHIND_FORWARD_AUTH) and method == b"GET" and _PLAIN_PATH(path) is not None
        )

    def at_once(self, scope: Scope, body: bytes) -> Answer | ReplyLater | None:
        """The answer of a hot path to a request that came whole; None: it is `__call__`'s."""
        started = perf_counter()
        method, path = scope["method"], scope["path"]
        routed = self._exact.get((method, path)) or self._route(method, path)
        request = HotRequest(scope, hung_up)
        if (
            routed is None
            or not self._ledger.owner
            or request.forwarded is not None
            or len(body) > self._most_body
            or (scope["query_string"] and routed[0] != FORWARD_AUTH)
        ):
            return None
        request.body = body
        if request.has_long_id:
            self._settle_request_id(request)
        route, handle = routed
        if self._trusted and route != FORWARD_AUTH:
            request.peer = client_ip(scope, self._trusted)
        try:
            told = handle(request)
        except NotOwnerHereError:
            return None
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            told = self._watch.error_answer(error, request.request_id)
        if isinstance(told, Answer):
            return self._done(told, request, route, started)
        if not isinstance(told, Later):
            told = Later(asyncio.ensure_future(told), _as_it_is)
        return ReplyLater(told.future, partial(self._late, request, route, started, told.answer))

    def _late(
        self,
        request: HotRequest,
        route: str,
        started: float,
        answer: Callable[[Any], Answer],
        future: asyncio.Future[Any],
    ) -> Answer | None:
        try:
            told = answer(future.result())
        except NotOwnerHereError:
            return None  # Nothing was written: asked once more, it is another process that answers.
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            told = self._watch.error_answer(error, request.request_id)
        return self._done(told, request, route, started)

    def _done(self, answer: Answer, request: HotRequest, route: str, started: float) -> Answer:
        self.counts.count(route, answer.status, answer.code, perf_counter() - started)
        answer.headers.append((b"x-request-id", request.shown_id))
        return answer

    # -- answering elsewhere

    async def _elsewhere(self, request: HotRequest, send: Send) -> None:
        """Another process owns the partition, or for a moment none: it answers, or we do once we own it."""
        if self._forwarder is None or request.forwarded is not None:
            try:
                self._ledger.must_own()
                error: CannotAnswerError = NotOwnerHereError("This process owns the partition only now.")
            except CannotAnswerError as why:
                error = why
            await _send(not_owner_answer(error, request.request_id), request.request_id, send)
            return
        try:
            await request.read()
            await self._forwarder.forward(request, send, self._here_after_all)
        except ClientGoneError:
            await _let_it_go(request)
            return
        except Exception as failure:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            await _send(self._watch.error_answer(failure, request.request_id), request.request_id, send)

    async def _here_after_all(self, request: HotRequest, send: Send) -> None:
        """This process has become the owner. Raises NotOwnerHereError when it has just lost that again."""
        # Only now is it certain which keyspaces there are.
        self._settle_request_id(request)
        routed = self._route(request.scope["method"], request.scope["path"])
        if routed is None:
            await self._manage(request.scope, request.replay, send)
            return
        try:
            answer = await self._told(request, routed)
        except (NotOwnerHereError, ClientGoneError):
            raise
        except Exception as error:  # noqa: BLE001  # the outermost layer: every error becomes an answer
            answer = self._watch.error_answer(error, request.request_id)
        await _send(answer, request.request_id, send)


async def _unless(gone: Coroutine[Any, Any, None], what: asyncio.Future[Any]) -> bool:
    """Wait for it. False: the client hung up first, and it was cancelled."""
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


async def _let_it_go(request: HotRequest) -> None:
    """Nobody is answered. The server hears in a moment that the client is gone, and then asks for none."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LET_GO_SECONDS):
            await request.gone()


async def _send(answer: Answer, request_id: str, send: Send) -> None:
    headers = answer.headers
    headers.append((b"x-request-id", request_id.encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _as_it_is(answer: Answer) -> Answer:
    return answer


def _bound(handle: OneHandler, thing: str) -> Handler:
    async def handler(request: HotRequest) -> Answer:
        return await handle(request, thing)

    return handler


def _only(method: str) -> Handler:
    async def refuse(request: HotRequest) -> Answer:
        raise ProblemError(
            "method_not_allowed",
            f"{beginning(request.scope['path'])} takes {method}.",
            headers={"Allow": method},
        )

    return refuse
