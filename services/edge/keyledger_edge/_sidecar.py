"""The sidecar: verify and forward-auth for any language, on loopback or a unix socket, from memory.

An ASGI application; `keyledger edge` runs it. It asks its callers for no key of their own, so it
must listen only where nobody else can reach it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qsl

import msgspec

from keyledger_edge._facts import NO_USE, Use
from keyledger_edge._forward_auth import (
    HttpAnswer,
    answer_error,
    answer_problem,
    answer_verdict,
    read_use,
)
from keyledger_edge._messages import KeyspaceView, VerifyBatchRequest, VerifyRequest
from keyledger_edge._verdicts import MISSING, UNREACHABLE, Verdict, VerifyAnswer
from keyledger_edge._verifier import Verifier
from keyledger_edge.errors import BadRequestError, RefusedByLedgerError, UnknownKeyspaceError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_FORWARD_AUTH: Final = "/v1/forward-auth"
_MAX_BODY: Final = 1024 * 1024
_MAX_BATCH: Final = 1_000
_MAX_REMEMBERED: Final = 1_024
# A secret of any keyspace, also of one that is not known here, has 22 letters and digits in a row.
_KEYSPACE_OR_LONG_RUN: Final = re.compile(r"(ks_[0-9A-Z]{26})(?![0-9A-Za-z])|[0-9A-Za-z]{22,}")
_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")


class Sidecar:
    """Answers proxies and programs beside it out of a verifier's memory."""

    def __init__(
        self,
        verifier: Verifier,
        *,
        keyspace_id: str | None = None,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._verifier = verifier
        self._keyspace_id = keyspace_id
        self._trusted_proxies = trusted_proxies
        self._encode = msgspec.json.Encoder().encode
        self._one = msgspec.json.Decoder(VerifyRequest).decode
        self._batch = msgspec.json.Decoder(VerifyBatchRequest).decode
        self._asked: dict[bytes, tuple[str | None, str | None]] = {}
        self.answers: dict[str, int] = {}
        """How often each code was answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if scope["type"] != "http":
            return
        answer = await self._answer(scope, receive)
        length = (b"content-length", b"%d" % len(answer.body))
        headers = [*answer.headers, length]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
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
            return await self._forward_auth(scope, path[len(_FORWARD_AUTH) + 1 :])
        if path in {"/v1/verify", "/v1/verify/batch"}:
            return await self._verify(scope, receive, batch=path.endswith("batch"))
        if path == "/healthz":
            return HttpAnswer(200, [_TEXT], b"alive\n")
        if path == "/readyz":
            return self._readiness()
        if path == "/metrics":
            return HttpAnswer(200, [_TEXT], self._metrics())
        return answer_problem(404, "not_found", "There is no such path here.")

    # -- forward-auth -----------------------------------------------------------------------

    async def _forward_auth(self, scope: Scope, path: str) -> HttpAnswer:
        query: bytes = scope.get("query_string", b"")
        # Envoy puts its client's query here, and what the client says must not choose the keyspace.
        keyspace_id, proxy = (None, None) if path else self._asked_by(query)
        try:
            verdict, keyspace = await self._forwarded(scope, path, query, keyspace_id or self._keyspace_id)
        except BadRequestError as error:
            return self._counted(error.code, answer_error(error, proxy=proxy))
        except UnknownKeyspaceError as error:
            return self._counted(error.code, answer_problem(404, "not_found", _shown(error), proxy=proxy))
        except RefusedByLedgerError as error:
            return self._counted(
                error.reason, answer_problem(error.status, error.reason, str(error), proxy=proxy)
            )
        return self._counted(verdict.code, answer_verdict(verdict, keyspace, proxy=proxy))

    def _asked_by(self, query: bytes) -> tuple[str | None, str | None]:
        """The proxy's own parameters; the same few queries come again and again."""
        asked = self._asked.get(query)
        if asked is None:
            said = dict(parse_qsl(query.decode("latin-1")))
            asked = said.get("keyspace_id"), said.get("proxy")
            if len(self._asked) < _MAX_REMEMBERED:
                self._asked[query] = asked
        return asked

    async def _forwarded(
        self, scope: Scope, path: str, query: bytes, keyspace_id: str | None
    ) -> tuple[Verdict, KeyspaceView | None]:
        keyspace = self._keyspace(keyspace_id)
        if keyspace is None:
            return UNREACHABLE, None
        client = scope.get("client")
        asked = read_use(
            scope["headers"],
            query,
            keyspace,
            path=path,
            peer=client[0] if client else None,
            trusted_proxies=self._trusted_proxies,
        )
        if asked.secret is None:
            return MISSING, keyspace
        verdict = await self._verifier.verify(
            asked.secret,
            asked.use,
            keyspace_id=keyspace.keyspace_id,
            cost_micros=asked.cost_micros,
            request_id=asked.request_id,
        )
        return verdict, keyspace

    def _keyspace(self, keyspace_id: str | None) -> KeyspaceView | None:
        """The keyspace; None while none is known at all, because the ledger was never reached."""
        return self._verifier.keyspace(keyspace_id) if self._verifier.keyspaces else None

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
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return answer_problem(400, "invalid_request", _shown(error))
        except UnknownKeyspaceError as error:
            return answer_problem(404, "not_found", _shown(error))
        except RefusedByLedgerError as error:
            return answer_problem(error.status, error.reason, str(error))

    async def _say(self, request: VerifyRequest) -> HttpAnswer:
        answer = await self._verdict(request)
        return self._counted(answer.code, HttpAnswer(200, [_JSON], self._encode(answer)))

    async def _say_all(self, requests: list[VerifyRequest]) -> HttpAnswer:
        if len(requests) > _MAX_BATCH:
            return answer_problem(400, "invalid_request", f"A batch may have {_MAX_BATCH} items.")
        results = [await self._verdict(one) for one in requests]
        return HttpAnswer(200, [_JSON], self._encode({"results": results}))

    async def _verdict(self, request: VerifyRequest) -> VerifyAnswer:
        if not self._verifier.keyspaces:
            return UNREACHABLE.as_answer()
        verdict = await self._verifier.verify(
            request.secret,
            _use(request),
            keyspace_id=request.keyspace_id or self._keyspace_id,
            cost_micros=request.cost_micros,
            reserve_micros=request.reserve_micros,
            request_id=request.request_id,
        )
        return verdict.as_answer()

    # -- how it is --------------------------------------------------------------------------

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
        return ("\n".join(lines) + "\n").encode()

    def _counted(self, code: str, answer: HttpAnswer) -> HttpAnswer:
        self.answers[code] = self.answers.get(code, 0) + 1
        return answer


def _shown(error: Exception) -> str:
    """What may be told of an error. It may repeat what was sent in the wrong field: a secret, say."""
    return _KEYSPACE_OR_LONG_RUN.sub(lambda found: found[1] or "[redacted]", str(error))


def _use(request: VerifyRequest) -> Use:
    use = Use(
        permissions=request.permissions,
        project_id=request.project_id,
        model=request.model,
        provider=request.provider,
        tenant=request.tenant,
        ip=request.ip,
    )
    return NO_USE if use == NO_USE else use


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
