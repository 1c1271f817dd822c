"""`/v1/forward-auth`: the verdict on a proxied request, for Traefik, Envoy and nginx."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl

import msgspec

from domain.errors import InvalidError
from domain.keyspaces import Keyspace
from keyledger_edge import (
    BadRequestError,
    HttpAnswer,
    answer_error,
    answer_problem,
    answer_verdict,
    read_use,
    refuse_fragment,
)
from keyledger_edge import ForwardedUse as Forwarded
from keyledger_language import VALID, KeyFacts, KeyspaceView, Tenant, Verdict
from keyledger_language.bounded_dicts import BoundedCache
from services.api.answering.answers import Answer, head_of, wire
from services.api.answering.problems import headers_of
from services.api.asking.call import CONFLICTING, Call
from services.api.asking.callers import Caller, Callers
from services.api.asking.secrets import Redactor
from services.api.operations import Query, operation
from services.api.resources.checking import Checker, view_of_keyspace
from services.api.resources.metering import MeteringCalls
from services.api.resources.verdicts import MONEY, VERDICTS
from services.api.resources.verify import Verify
from services.ledger.errors import NotOwnerHereError
from services.ledger.ledger import Ledger

PATH = "/v1/forward-auth"
_MOST_ASKS, _LONGEST_ASK = 1_000, 200
_MOST_WELCOMES = 50_000
_LONGEST_TEXT = 255
_OWN_PARAMETERS = ("keyspace_id", "proxy")


class ForwardAuthQuery(Query, frozen=True, kw_only=True):
    """Which keyspace, and which proxy; the client's own query belongs in the forwarded URI."""

    keyspace_id: str | None = None
    """The keyspace whose secrets are looked up; not needed if the proxy's root key is bound to one."""
    proxy: Annotated[str, msgspec.Meta(examples=["nginx"])] | None = None
    """`nginx`: denials that nginx cannot pass on become 403, with the real status in `X-Keyledger-Status`."""


class _Ask(msgspec.Struct, frozen=True):
    """The proxy's own parameters, apart from the request that it forwards."""

    keyspace_id: str | None
    proxy: str | None


_PROXY_KEY = "X-Keyledger-Proxy-Key"
_UNBOUND = (
    "must be bound to its keyspace if a path follows /v1/forward-auth: then the query is the client's, "
    "and would choose the keyspace"
)
_SAYS_NOTHING = _Ask(None, None)


class ForwardAuth:
    """Answers proxies. The proxy sends a root key with `verify`; the client's request is the use."""

    def __init__(
        self,
        ledger: Ledger,
        callers: Callers,
        redactor: Redactor,
        *,
        checker: Checker,
        verify: Verify,
        metering: MeteringCalls,
        trusted_proxies: tuple[str, ...] = (),
    ) -> None:
        self._books = ledger.books
        self._callers = callers
        self._redactor = redactor
        self._checker = checker
        self._verify = verify
        self._metering = metering
        self._trusted = trusted_proxies
        self._asks: dict[bytes, _Ask] = {}
        self._welcomes = BoundedCache[int, tuple[KeyFacts, str | None, Answer]](_MOST_WELCOMES)
        self._welcome_of = self._welcomes.get

    def answer(self, request: Call[Any, Any]) -> Answer | Awaitable[Answer]:
        """The verdict, as the proxy and its client expect it; only a use with a cost has to wait."""
        query: bytes = request.scope["query_string"]
        path: str = request.scope["path"]
        # Envoy appends its client's path and query here: they are not the proxy's parameters.
        suffix = None if path == PATH else path[len(PATH) + 1 :]
        ask = self._ask(query) if suffix is None else _SAYS_NOTHING
        if request.proxy_key is CONFLICTING:
            two = BadRequestError("The request carries two different root keys.", field=_PROXY_KEY)
            return _refused(two, ask, request)
        caller = self._proxy(request)
        if caller is None:
            return _sent(_unauthenticated(ask.proxy, request.request_id))
        try:
            if suffix is not None:
                refuse_fragment(request.scope)
            keyspace = self._keyspace(caller, ask, suffix)
            view = view_of_keyspace(keyspace)
            asked = read_use(
                request.scope["headers"],
                query,
                view,
                path=suffix,
                peer=request.peer,
                trusted_proxies=self._trusted,
            )
            if asked.cost_micros is not None:
                return self._charged(request, ask, asked, keyspace, caller)
            verdict = self._checker.check(
                asked.secret,
                keyspace,
                asked.use,
                organization_id=caller.organization_id,
                request_id=asked.request_id,
            )
        except Exception as error:  # noqa: BLE001  # a proxy gets answers in its own format
            return _refused(error, ask, request)
        if verdict.code == VALID and verdict.facts is not None and not verdict.rate_limits:
            return self._welcome(verdict.facts, ask.proxy)
        return self._told(verdict, view, ask, request, self._books.head)

    def _welcome(self, facts: KeyFacts, proxy: str | None) -> Answer:
        """The answer to a granted use: it names the key, and is the same until the key changes."""
        known = self._welcome_of(id(facts))
        if known is None or known[0] is not facts or known[1] != proxy:
            verdict = Verdict(VALID, facts)
            answer = _sent(answer_verdict(verdict, None, proxy=proxy), VALID)
            known = (facts, proxy, answer)
            self._welcomes.put(id(facts), known)
        answer = known[2]
        return Answer(answer.status, answer.head, answer.body, answer.code, self._books.head)

    def _ask(self, query: bytes) -> _Ask:
        """The ledger's own parameters: the first of each name, so that a later one cannot replace it."""
        ask = self._asks.get(query)
        if ask is not None:
            return ask
        found: dict[str, str] = {}
        try:
            for name, value in parse_qsl(query.decode("latin-1"), max_num_fields=1000):
                if name in _OWN_PARAMETERS:
                    found.setdefault(name, value)
        except ValueError:
            pass  # Too many fields: reading the use reports that.
        ask = _Ask(found.get("keyspace_id"), found.get("proxy"))
        if len(self._asks) < _MOST_ASKS and len(query) < _LONGEST_ASK:
            self._asks[query] = ask
        return ask

    def _proxy(self, request: Call[Any, Any]) -> Caller | None:
        if request.proxy_key is None:
            return None
        caller = self._callers.find(request.proxy_key.strip(), request.peer)
        return caller if isinstance(caller, Caller) and "verify" in caller.permissions else None

    def _keyspace(self, caller: Caller, ask: _Ask, suffix: str | None) -> Keyspace:
        """The proxy's keyspace; with a path only its root key names it, since the query is the client's."""
        if suffix is not None and caller.keyspace_id is None:
            raise InvalidError(_PROXY_KEY, _UNBOUND)
        return self._metering.keyspace_of(caller, ask.keyspace_id)

    async def _charged(
        self, request: Call[Any, Any], ask: _Ask, asked: Forwarded, keyspace: Keyspace, caller: Caller
    ) -> Answer:
        try:
            _check_text("X-Keyledger-Request-Id", asked.request_id)
            self._refuse_secrets(asked)
            outcome, position = await self._verify.meter(
                asked.secret,
                asked.use,
                keyspace,
                caller,
                cost_micros=asked.cost_micros,
                reserve_micros=None,
                request_id=asked.request_id,
                field="X-Keyledger-Request-Id",
            )
        except Exception as error:  # noqa: BLE001  # a proxy gets answers in its own format
            return _refused(error, ask, request)
        verdict = Verdict(outcome.code, outcome.facts, outcome.rates)
        return self._told(verdict, view_of_keyspace(keyspace), ask, request, position)

    def _told(
        self, verdict: Verdict, view: KeyspaceView, ask: _Ask, request: Call[Any, Any], position: int
    ) -> Answer:
        answer = answer_verdict(verdict, view, proxy=ask.proxy, request_id=request.request_id)
        return _sent(answer, verdict.code, position)

    def _refuse_secrets(self, asked: Forwarded) -> None:
        """Refuse a secret in the parts of a client's headers that a charge keeps."""
        use, tenant = asked.use, asked.use.tenant or Tenant()
        kept = {
            "X-Keyledger-Request-Id": asked.request_id,
            "model": use.model,
            "provider": use.provider,
            "project_id": use.project_id,
            "tenant.org_id": tenant.org_id,
            "tenant.user_id": tenant.user_id,
        }
        for field, text in kept.items():
            if text is not None and self._redactor.holds_secret(text):
                raise InvalidError(field, "contains what looks like a secret, which may not be here")


def _refused(error: Exception, ask: _Ask, request: Call[Any, Any]) -> Answer:
    """An error in the proxy's format. Raises it again if the layer above answers it."""
    if isinstance(error, BadRequestError):
        return _sent(answer_error(error, proxy=ask.proxy, request_id=request.request_id), error.code)
    problem = request.api.refusals.problem(error, request.request_id)
    if problem is None or isinstance(error, NotOwnerHereError):
        raise error
    told = answer_problem(
        problem.status,
        problem.code,
        problem.detail,
        proxy=ask.proxy,
        request_id=request.request_id,
        errors=[{"field": one.field, "message": one.message} for one in problem.errors],
        title=problem.title,
    )
    headers = [*told.headers, *wire(headers_of(error))]
    return _sent(HttpAnswer(told.status, headers, told.body), problem.code)


def _check_text(field: str, text: str | None) -> None:
    if text is not None and not (0 < len(text) <= _LONGEST_TEXT and text.isprintable()):
        raise InvalidError(field, "1 to 255 printable characters")


def _unauthenticated(proxy: str | None, request_id: str) -> HttpAnswer:
    return answer_problem(
        401,
        "proxy_unauthenticated",
        "The proxy must send a root key with verify in X-Keyledger-Proxy-Key.",
        proxy=proxy,
        request_id=request_id,
    )


def _sent(answer: HttpAnswer, code: str = "proxy_unauthenticated", position: int | None = None) -> Answer:
    headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
    if not any(name == b"x-keyledger-code" for name, _ in headers):
        # nginx drops the body of a denial, so the code is in a header, too.
        headers.append((b"x-keyledger-code", code.encode()))
    return Answer(answer.status, head_of(*headers), answer.body, code, position)


_ABOUT: Final[dict[str, Any]] = {
    "tag": "Verify",
    "quick": True,
    "proxied": True,
    "query": ForwardAuthQuery,
    "codes": ("proxy_unauthenticated", "missing", "ambiguous_credentials", "rate_limited", *VERDICTS, *MONEY),
}


@operation(
    "GET",
    PATH,
    operation_id="checkForwardedRequest",
    summary="Check a proxy's forwarded request",
    description=(
        "Any method. For Traefik ForwardAuth and Envoy ext_authz over HTTP; with `proxy=nginx` for nginx "
        "`auth_request`. The proxy sends a root key with `verify` in `X-Keyledger-Proxy-Key`."
    ),
    **_ABOUT,
)
def forward_auth(call: Call[Any, Any]) -> Answer | Awaitable[Answer]:
    """The verdict on a proxied request."""
    return call.api.forward_auth.answer(call)


@operation(
    "GET",
    PATH + "/{path}",
    operation_id="checkForwardedPath",
    summary="The same, for proxies that append the original path",
    whole=True,
    **_ABOUT,
)
def forward_auth_behind(call: Call[Any, Any]) -> Answer | Awaitable[Answer]:
    """The verdict on a proxied request whose path is appended to this one's."""
    return call.api.forward_auth.answer(call)


ROUTES = [forward_auth, forward_auth_behind]
