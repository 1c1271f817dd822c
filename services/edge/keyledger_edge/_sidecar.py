"""The sidecar: verify and forward-auth for any language, on loopback or a unix socket, from memory.

An ASGI application; `keyledger edge` runs it. Its callers need no key of their own, so it
must listen only where no other program can reach it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from keyledger_edge._forward_auth import (
    ForwardedUse,
    HttpAnswer,
    answer_error,
    answer_problem,
    answer_verdict,
    read_use,
    refuse_fragment,
)
from keyledger_edge._verifier import Verifier
from keyledger_edge.errors import BadRequestError, RefusedByLedgerError, UnknownKeyspaceError
from keyledger_language import codes
from keyledger_language.bounded_dicts import BoundedCache
from keyledger_language.facts import KeyFacts
from keyledger_language.messages import KeyspaceView, VerifyBatchRequest, VerifyRequest
from keyledger_language.uses import NO_USE, Use
from keyledger_language.verdicts import MISSING, UNREACHABLE, Verdict, VerifyAnswer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_FORWARD_AUTH: Final = "/v1/forward-auth"
_COST: Final = b"x-keyledger-cost-micros"
_MAX_BODY: Final = 1024 * 1024
_MAX_BATCH: Final = 1_000
_MAX_REMEMBERED: Final = 1_024
_MAX_ANSWERS: Final = 8_192
_HEARD: Final = {b"/v1/verify": b"POST", _FORWARD_AUTH.encode(): b"GET"}
# A secret of any keyspace, even of one that is not known here, has 22 letters and digits in a row.
_KEYSPACE_OR_LONG_RUN: Final = re.compile(r"(ks_[0-9A-Z]{26})(?![0-9A-Za-z])|[0-9A-Za-z]{22,}")
_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")


class Sidecar:
    """Answers proxies and programs on the same machine from a verifier's memory.

    `server_metrics` returns the metrics of the HTTP server that it runs in, as Prometheus text.
    """

    def __init__(
        self,
        verifier: Verifier,
        *,
        keyspace_id: str | None = None,
        trusted_proxies: tuple[str, ...] = (),
        server_metrics: Callable[[], bytes] = bytes,
    ) -> None:
        self._verifier = verifier
        self._server_metrics = server_metrics
        self._keyspace_id = keyspace_id
        self._trusted_proxies = trusted_proxies
        self._encode = msgspec.json.Encoder().encode
        self._one = msgspec.json.Decoder(VerifyRequest).decode
        self._batch = msgspec.json.Decoder(VerifyBatchRequest).decode
        self._asked: dict[bytes, tuple[str | None, str | None]] = {}
        self._good = BoundedCache[int, tuple[KeyFacts, HttpAnswer]](_MAX_ANSWERS)
        self._good_of = self._good.get
        self._bad: dict[str, HttpAnswer] = {}
        self._welcome = BoundedCache[int, tuple[KeyFacts, str | None, HttpAnswer]](_MAX_ANSWERS)
        self._welcome_of = self._welcome.get
        self.answers: dict[str, int] = {}
        """How often each code was answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        answer = _whole(await self._answer(scope, receive))
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._verifier.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self._verifier.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _answer(self, scope: Scope, receive: Receive) -> HttpAnswer:
        path: str = scope["path"]
        if path == _FORWARD_AUTH or path.startswith(_FORWARD_AUTH + "/"):
            behind = None if path == _FORWARD_AUTH else path[len(_FORWARD_AUTH) + 1 :]
            return await self._forward_auth(scope, behind)
        if path in {"/v1/verify", "/v1/verify/batch"}:
            return await self._verify(scope, receive, batch=path.endswith("batch"))
        if path == "/healthz":
            return HttpAnswer(200, [_TEXT], b"alive\n")
        if path == "/readyz":
            return self._readiness()
        if path == "/metrics":
            return HttpAnswer(200, [_TEXT], self._metrics())
        return answer_problem(404, "not_found", "There is no such path.")

    # -- at once ----------------------------------------------------------------------------

    def hears(self, method: bytes, path: bytes) -> bool:
        """Whether a request may be passed to `at_once`; for a server that can use an answer at once."""
        return _HEARD.get(path) == method

    def at_once(self, scope: Scope, body: bytes) -> HttpAnswer | asyncio.Future[HttpAnswer] | None:
        """The whole answer from memory, or a future of the ledger's; None: use ASGI. Never raises."""
        if scope["path"] == _FORWARD_AUTH:
            return self._forward_auth_at_once(scope)
        try:
            request = self._one(body)
            costs = request.cost_micros is not None or request.reserve_micros is not None
            if costs or not self._verifier.keyspaces:
                return None
            use, keyspace_id = _use(request), request.keyspace_id or self._keyspace_id
            verdict = self._verifier.verify_cached(request.secret, use, keyspace_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UnknownKeyspaceError):
            return None
        if verdict is None:
            return asyncio.ensure_future(self._said_later(request.secret, use, keyspace_id))
        return self._said(verdict)

    async def _said_later(self, secret: str, use: Use, keyspace_id: str | None) -> HttpAnswer:
        try:
            return self._said(await self._verifier.ask(secret, use, keyspace_id))
        except _REFUSALS as error:
            return _whole(_refused(error))

    def _forward_auth_at_once(self, scope: Scope) -> HttpAnswer | asyncio.Future[HttpAnswer] | None:
        keyspace_id, proxy = self._named(scope, None)
        try:
            known = self._verifier.current_keyspace_cached(keyspace_id)
        except UnknownKeyspaceError:
            known = None
        if known is None:
            return None
        asked = self._forwarded(scope, None, known, proxy)
        if isinstance(asked, HttpAnswer):
            return _whole(asked)
        use, keyspace, proxy = asked
        if use.cost_micros is not None:
            return None
        secret = use.secret or ""
        verdict = self._verifier.verify_cached(secret, use.use, keyspace.keyspace_id)
        if verdict is None:
            asking = self._verifier.ask(secret, use.use, keyspace.keyspace_id, view=keyspace)
            return asyncio.ensure_future(self._told_later(asking, keyspace, proxy))
        facts = verdict.facts
        if facts is None or verdict.code != codes.VALID or verdict.rate_limits:
            return _whole(self._counted(verdict.code, answer_verdict(verdict, keyspace, proxy=proxy)))
        return self._counted(verdict.code, self._let_in(verdict, facts, proxy))

    def _let_in(self, verdict: Verdict, facts: KeyFacts, proxy: str | None) -> HttpAnswer:
        """The answer to a granted use: it identifies the key, and stays the same until its facts change."""
        known = self._welcome_of(id(facts))
        if known is not None and known[0] is facts and known[1] == proxy:
            return known[2]
        answer = _whole(answer_verdict(verdict, None, proxy=proxy))
        self._welcome.put(id(facts), (facts, proxy, answer))
        return answer

    async def _told_later(
        self, asking: Awaitable[Verdict], keyspace: KeyspaceView, proxy: str | None
    ) -> HttpAnswer:
        return _whole(await self._tell(asking, keyspace, proxy))

    def _said(self, verdict: Verdict) -> HttpAnswer:
        """A verdict as JSON, counted. It stays the same until the key's facts change, so it is cached."""
        code, facts = verdict.code, verdict.facts
        self.answers[code] = self.answers.get(code, 0) + 1
        if facts is not None and code == codes.VALID and not verdict.rate_limits:
            known = self._good_of(id(facts))
            if known is not None and known[0] is facts:
                return known[1]
            answer = self._written(verdict)
            self._good.put(id(facts), (facts, answer))
            return answer
        if facts is not None or verdict.answer is not None:
            return self._written(verdict)
        told = self._bad.get(code)
        if told is None:
            told = self._bad[code] = self._written(verdict)
        return told

    def _written(self, verdict: Verdict) -> HttpAnswer:
        return _whole(HttpAnswer(200, [_JSON], self._encode(verdict.as_answer())))

    # -- forward-auth -----------------------------------------------------------------------

    async def _forward_auth(self, scope: Scope, path: str | None) -> HttpAnswer:
        keyspace_id, proxy = self._named(scope, path)
        costs = any(name == _COST for name, _ in scope["headers"])
        try:
            if path is not None:
                refuse_fragment(scope)
            known = await self._keyspace(keyspace_id, patient=costs)
        except BadRequestError as error:
            return self._counted(error.code, answer_error(error, proxy=proxy))
        except UnknownKeyspaceError as error:
            return self._counted(error.code, answer_problem(404, "not_found", _shown(error), proxy=proxy))
        if known is None:
            return self._counted(UNREACHABLE.code, answer_verdict(UNREACHABLE, None, proxy=proxy))
        asked = self._forwarded(scope, path, known, proxy)
        if isinstance(asked, HttpAnswer):
            return asked
        use, keyspace, proxy = asked
        verdict = self._verifier.verify(
            use.secret or "",
            use.use,
            keyspace_id=keyspace.keyspace_id,
            cost_micros=use.cost_micros,
            request_id=use.request_id,
            view=keyspace,
        )
        return await self._tell(verdict, keyspace, proxy)

    async def _tell(
        self, asking: Awaitable[Verdict], keyspace: KeyspaceView, proxy: str | None
    ) -> HttpAnswer:
        try:
            verdict = await asking
        except RefusedByLedgerError as error:
            refused = answer_problem(error.status, error.reason, str(error), proxy=proxy)
            return self._counted(error.reason, refused)
        return self._counted(verdict.code, answer_verdict(verdict, keyspace, proxy=proxy))

    def _asked_by(self, query: bytes) -> tuple[str | None, str | None]:
        """The proxy's own parameters, cached: the same few queries are repeated all the time."""
        asked = self._asked.get(query)
        if asked is None:
            said: dict[str, str] = {}
            for name, value in parse_qsl(query.decode("latin-1")):
                said.setdefault(name, value)  # as the ledger reads them: a later one cannot replace it
            asked = said.get("keyspace_id"), said.get("proxy")
            if len(self._asked) < _MAX_REMEMBERED:
                self._asked[query] = asked
        return asked

    def _named(self, scope: Scope, path: str | None) -> tuple[str | None, str | None]:
        """The keyspace and the kind of proxy."""
        # Envoy puts its client's query here, and the client must not choose the keyspace.
        if path is not None:
            return self._keyspace_id, None
        keyspace_id, proxy = self._asked_by(scope.get("query_string", b""))
        return keyspace_id or self._keyspace_id, proxy

    def _forwarded(
        self, scope: Scope, path: str | None, keyspace: KeyspaceView, proxy: str | None
    ) -> tuple[ForwardedUse, KeyspaceView, str | None] | HttpAnswer:
        """What a proxy asks: the use, the keyspace and the kind of proxy; or the refusal of its request."""
        client = scope.get("client")
        try:
            asked = read_use(
                scope["headers"],
                scope.get("query_string", b""),
                keyspace,
                path=path,
                peer=client[0] if client else None,
                trusted_proxies=self._trusted_proxies,
            )
            if asked.cost_micros is not None and asked.request_id is None:
                raise _no_request_id("X-Keyledger-Request-Id")
        except BadRequestError as error:
            return self._counted(error.code, answer_error(error, proxy=proxy))
        if asked.secret is None:
            return self._counted(MISSING.code, answer_verdict(MISSING, keyspace, proxy=proxy))
        return asked, keyspace, proxy

    async def _keyspace(self, keyspace_id: str | None, *, patient: bool) -> KeyspaceView | None:
        """The keyspace as it is now; None if that is unknown."""
        if not self._verifier.keyspaces:
            return None  # The ledger was never reached.
        return await self._verifier.current_keyspace(keyspace_id, patient=patient)

    # -- verify -----------------------------------------------------------------------------

    async def _verify(  # noqa: PLR0911 - one line per answer
        self, scope: Scope, receive: Receive, *, batch: bool
    ) -> HttpAnswer:
        if scope["method"] != "POST":
            return answer_problem(405, "method_not_allowed", "Use POST.")
        body = await _body(receive)
        if body is None:
            return answer_problem(413, "body_too_large", "The body is too large.")
        try:
            if not batch:
                return await self._say(self._one(body))
            return await self._say_all(self._batch(body).items)
        except RecursionError:
            return answer_problem(400, "malformed_body", "The body is nested too deeply.")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return answer_problem(400, "invalid_request", _shown(error))
        except _REFUSALS as error:
            return _refused(error)

    async def _say(self, request: VerifyRequest) -> HttpAnswer:
        answer = await self._verdict(request)
        return self._counted(answer.code, HttpAnswer(200, [_JSON], self._encode(answer)))

    async def _say_all(self, requests: list[VerifyRequest]) -> HttpAnswer:
        if len(requests) > _MAX_BATCH:
            return answer_problem(400, "invalid_request", f"A batch may have at most {_MAX_BATCH} items.")
        results = [await self._result(one) for one in requests]
        return HttpAnswer(200, [_JSON], self._encode({"results": results}))

    async def _result(self, request: VerifyRequest) -> VerifyAnswer | msgspec.Raw:
        """One item's result: the refusal of one item must not hide that others were charged."""
        try:
            return await self._verdict(request)
        except _REFUSALS as error:
            return msgspec.Raw(_refused(error).body)

    async def _verdict(self, request: VerifyRequest) -> VerifyAnswer:
        if not self._verifier.keyspaces:
            return UNREACHABLE.as_answer()
        if request.request_id is None and (request.cost_micros, request.reserve_micros) != (None, None):
            raise _no_request_id("request_id")
        verdict = await self._verifier.verify(
            request.secret,
            _use(request),
            keyspace_id=request.keyspace_id or self._keyspace_id,
            cost_micros=request.cost_micros,
            reserve_micros=request.reserve_micros,
            request_id=request.request_id,
            metadata=request.metadata,
        )
        return verdict.as_answer()

    # -- readiness and metrics --------------------------------------------------------------

    def _readiness(self) -> HttpAnswer:
        if self._verifier.ready:
            return HttpAnswer(200, [_TEXT], b"ready\n")
        waits_for = self._verifier.problem or "a lease from the ledger"
        return HttpAnswer(503, [_TEXT], f"waits for {waits_for}\n".encode())

    def _metrics(self) -> bytes:
        lines = []
        for name, value in self._verifier.metrics().items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE keyledger_edge_{name} {kind}", f"keyledger_edge_{name} {value}"]
        lines.append("# TYPE keyledger_edge_verdicts_total counter")
        lines += [
            f'keyledger_edge_verdicts_total{{code="{code}"}} {count}' for code, count in self.answers.items()
        ]
        return ("\n".join(lines) + "\n").encode() + self._server_metrics()

    def _counted(self, code: str, answer: HttpAnswer) -> HttpAnswer:
        self.answers[code] = self.answers.get(code, 0) + 1
        return answer


_REFUSALS: Final = (BadRequestError, UnknownKeyspaceError, RefusedByLedgerError)


def _refused(error: BadRequestError | UnknownKeyspaceError | RefusedByLedgerError) -> HttpAnswer:
    if isinstance(error, BadRequestError):
        return answer_error(error)
    if isinstance(error, UnknownKeyspaceError):
        return answer_problem(404, "not_found", _shown(error))
    return answer_problem(error.status, error.reason, str(error))


def _no_request_id(field: str) -> BadRequestError:
    """Without a request id, a second try would be charged again."""
    return BadRequestError(f"{field} is required for a use that costs money.", field=field)


def _whole(answer: HttpAnswer) -> HttpAnswer:
    """The answer with its length."""
    length = (b"content-length", b"%d" % len(answer.body))
    return HttpAnswer(answer.status, [*answer.headers, length], answer.body)


def _shown(error: Exception) -> str:
    """An error's text, redacted: it may repeat what was sent in the wrong field, such as a secret."""
    return _KEYSPACE_OR_LONG_RUN.sub(lambda found: found[1] or "[redacted]", str(error))


def _use(request: VerifyRequest) -> Use:
    if (
        request.model is None
        and request.ip is None
        and not request.permissions
        and request.tenant is None
        and request.project_id is None
        and request.provider is None
    ):
        return NO_USE
    return Use(
        permissions=request.permissions,
        project_id=request.project_id,
        model=request.model,
        provider=request.provider,
        tenant=request.tenant,
        ip=request.ip,
    )


async def _body(receive: Receive) -> bytes | None:
    parts, length = [], 0
    while True:
        message = await receive()
        part: bytes = message.get("body", b"")
        length += len(part)
        if length > _MAX_BODY:
            return None
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)
