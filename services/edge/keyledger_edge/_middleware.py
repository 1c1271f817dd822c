"""ASGI middleware: a request is passed on with its verdict, or is refused here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from keyledger_edge._forward_auth import (
    ForwardedUse,
    Headers,
    HttpAnswer,
    answer_error,
    answer_verdict,
    read_direct_use,
)
from keyledger_edge._verifier import Verifier
from keyledger_edge.errors import BadRequestError, UnknownKeyspaceError
from keyledger_language.messages import KeyspaceView
from keyledger_language.uses import Use
from keyledger_language.verdicts import MISSING, UNREACHABLE, Verdict

# Every framework declares ASGI's types in its own way; only this fits all of them.
Scope = Any
Receive = Any
Send = Any
App = Callable[..., Awaitable[None]]

_POLICY_VIOLATION = 1008


class KeyledgerMiddleware:
    """Lets requests with a valid key through, with the verdict in `scope["state"]["keyledger"]`.

    Works with FastAPI, Starlette, Litestar and any other ASGI application. It connects the
    verifier when the application starts, and closes it at the end.

    `use`: returns what a request wants to do (a model, a project ...), given its ASGI scope.
    `cost_micros`: returns what it costs, given its scope; charged once per `X-Keyledger-Request-Id`.
    `exempt`: paths that need no key, such as `/healthz`; with a final `*`, all paths that begin like this.
    """

    def __init__(
        self,
        app: App,
        verifier: Verifier,
        *,
        keyspace_id: str | None = None,
        use: Callable[[Scope], Use] | None = None,
        cost_micros: Callable[[Scope], int | None] | None = None,
        exempt: tuple[str, ...] = (),
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._app = app
        self._verifier = verifier
        self._keyspace_id = keyspace_id
        self._use = use
        self._cost_micros = cost_micros
        self._exact = frozenset(one for one in exempt if not one.endswith("*"))
        self._prefixes = tuple(one[:-1] for one in exempt if one.endswith("*"))
        self._trusted_proxies = trusted_proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] not in {"http", "websocket"} or self._is_exempt(scope["path"]):
            await self._app(scope, receive, send)
        else:
            await self._guard(scope, receive, send)

    def _is_exempt(self, path: str) -> bool:
        return path in self._exact or (bool(self._prefixes) and path.startswith(self._prefixes))

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._verifier.start()
        try:
            await self._app(scope, receive, send)
        finally:
            await self._verifier.close()

    async def _guard(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            verdict, keyspace = await self._verdict(scope)
        except BadRequestError as error:
            await _refuse(scope, send, answer_error(error))
            return
        if not verdict.valid:
            await _refuse(scope, send, answer_verdict(verdict, keyspace))
            return
        scope.setdefault("state", {})["keyledger"] = verdict
        await self._app(scope, receive, send)

    async def _verdict(self, scope: Scope) -> tuple[Verdict, KeyspaceView | None]:
        try:
            keyspace = await self._verifier.current_keyspace(self._keyspace_id)
        except UnknownKeyspaceError:
            if self._verifier.keyspaces:
                raise
            keyspace = None
        if keyspace is None:
            return UNREACHABLE, None  # The current shape of a key, and its place in a request, are unknown.
        asked = self._read(scope, keyspace)
        if asked.secret is None:
            return MISSING, keyspace
        verdict = await self._verifier.verify(
            asked.secret,
            self._use(scope) if self._use is not None else asked.use,
            keyspace_id=keyspace.keyspace_id,
            cost_micros=self._cost_micros(scope) if self._cost_micros is not None else None,
            request_id=asked.request_id,
            view=keyspace,
        )
        return verdict, keyspace

    def _read(self, scope: Scope, keyspace: KeyspaceView) -> ForwardedUse:
        client, headers = scope.get("client"), scope["headers"]
        return read_direct_use(
            _as_headers(headers),
            scope.get("query_string", b""),
            keyspace,
            peer=client[0] if client else None,
            trusted_proxies=self._trusted_proxies,
        )


def _as_headers(headers: Any) -> Headers:
    return [(bytes(name), bytes(value)) for name, value in headers]


async def _refuse(scope: Scope, send: Send, answer: HttpAnswer) -> None:
    if scope["type"] == "websocket":
        # Before the connection is accepted, servers turn this into HTTP 403.
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "key refused"})
        return
    length = (b"content-length", b"%d" % len(answer.body))
    await send({"type": "http.response.start", "status": answer.status, "headers": [*answer.headers, length]})
    await send({"type": "http.response.body", "body": answer.body})
