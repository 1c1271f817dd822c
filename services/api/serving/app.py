"""The API as an application: its routes, what their handlers use, door, router and front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final, cast

from litestar import Litestar, Request, Response
from litestar.enums import HttpMethod
from litestar.exceptions import HTTPException, InternalServerException, MethodNotAllowedException
from litestar.handlers import HTTPRouteHandler
from litestar.types import ASGIApp, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from services.api.answering.problems import ProblemError
from services.api.answering.refusals import Refusals
from services.api.answering.stream_count import Streams
from services.api.asking.call import MAX_BODY_BYTES, Call
from services.api.asking.call import Send as OurSend
from services.api.asking.callers import Callers
from services.api.asking.secrets import Redactor
from services.api.description import schema
from services.api.description.schema import Description
from services.api.door import Door
from services.api.operations import Api, Operation, Reader
from services.api.resources import (
    audit,
    charges,
    edges,
    events,
    explain,
    fences,
    forward_auth,
    health,
    key_creation,
    key_imports,
    key_life,
    key_revocations,
    keys,
    keyspaces,
    leaks,
    metrics,
    organizations,
    plans,
    projects,
    requests,
    reservations,
    self_service,
    show_charge,
    usage,
    verify,
    wallets,
)
from services.api.resources.checking import Checker
from services.api.resources.metering import MeteringCalls
from services.api.serving.forwarding import Forwarder
from services.api.serving.front import CALL, Front
from services.ledger.feed import Feed
from services.ledger.ledger import Ledger

_RESOURCES: Final = (
    keyspaces,
    organizations,
    projects,
    wallets,
    plans,
    key_creation,
    keys,
    key_life,
    key_revocations,
    key_imports,
    usage,
    requests,
    audit,
    events,
    edges,
    fences,
    leaks,
    health,
    metrics,
    schema,
    verify,
    forward_auth,
    charges,
    show_charge,
    reservations,
    self_service,
    explain,
)
ROUTES: Final[tuple[Operation, ...]] = tuple(route for resource in _RESOURCES for route in resource.ROUTES)

_PROBLEM_OF_STATUS: Final = {
    400: ("invalid_request", "The request cannot be read."),
    404: ("not_found", "This path does not exist."),
    405: ("method_not_allowed", "This path does not support this method."),
}


def build_app(
    ledger: Ledger,
    reader: Reader,
    *,
    forwarder: Forwarder | None = None,
    source: str = "urn:keyledger",
    published: Callable[[], int | None] = lambda: None,
    nats_reachable: Callable[[], bool] = lambda: True,
    trusted_proxies: tuple[str, ...] = (),
    max_body_bytes: int = MAX_BODY_BYTES,
    log_granted: bool = False,
    metrics_need_a_key: bool = False,
    streams: Streams | None = None,
    more_routes: tuple[Operation, ...] = (),
) -> Front:
    """The API beside a ledger.

    `forwarder` forwards requests that another process has to answer; `source` is the CloudEvents source of
    its events, and `streams` bounds streams of them; `published` is the last position that NATS is known to
    have, `nats_reachable` whether NATS answers; `trusted_proxies` are networks (or `unix`) whose
    X-Forwarded-For is trusted; `log_granted`: the log has a line for each quick request that was granted,
    too; `metrics_need_a_key`: `/metrics` is not open; `more_routes` are those of other parts, which may
    register their metrics in `api.registry`.
    """
    routes = (*ROUTES, *more_routes)
    if metrics_need_a_key:
        routes = tuple(map(metrics.with_a_key, routes))
    redactor = Redactor(ledger.books, lambda: ledger.confirmed)
    callers, checker, metering = Callers(ledger), Checker(ledger, redactor), MeteringCalls(ledger)
    verifying = verify.Verify(ledger, checker, metering)
    streams = streams or Streams()
    registry = CollectorRegistry()
    registry.register(metrics.LedgerFigures(ledger, reader, published, nats_reachable))
    registry.register(streams)
    registry.register(callers)
    api = Api(
        ledger=ledger,
        reader=reader,
        redactor=redactor,
        registry=registry,
        description=Description(routes),
        feed=Feed(
            reader.events,
            lambda: ledger.head,
            ledger.head_watch,
            partition=ledger.partition,
            epoch=lambda: ledger.epoch,
            source=source,
        ),
        streams=streams,
        nats_reachable=nats_reachable,
        refusals=Refusals(redactor),
        callers=callers,
        checker=checker,
        metering=metering,
        verify=verifying,
        forward_auth=forward_auth.ForwardAuth(
            ledger,
            callers,
            redactor,
            checker=checker,
            verify=verifying,
            metering=metering,
            trusted_proxies=trusted_proxies,
        ),
        trusted_proxies=trusted_proxies,
        max_body_bytes=max_body_bytes,
        log_granted=log_granted,
    )
    door = Door(api)
    registry.register(door.counts)
    return Front(door, _router(door, routes), routes, forwarder)


def _router(door: Door, routes: Iterable[Operation]) -> Any:
    """Litestar finds the routes of requests that are not quick, and reports if there is none."""

    def refuse(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        call = _call_in(request.scope)
        answer = door.refuse(call, _told_of(error))
        door.end(call, answer)
        headers = {name.decode(): value.decode("latin-1") for name, value in answer.headers}
        media_type = headers.pop("content-type")
        del headers["content-length"]
        return Response(answer.body, status_code=answer.status, headers=headers, media_type=media_type)

    return Litestar(
        [*_options(routes), *(_route(door, one) for one in routes)],
        exception_handlers={Exception: refuse, HTTPException: refuse},
        openapi_config=None,  # services/api/description writes it
        logging_config=None,
        debug=False,
        include_in_schema=False,
    )


def _route(door: Door, operation: Operation) -> HTTPRouteHandler:
    async def answer(scope: Scope, _receive: Receive, send: Send) -> None:
        await door.serve(_call_in(scope), operation, cast(OurSend, send))

    async def handle(request: Request[Any, Any, Any]) -> ASGIApp:
        _call_in(request.scope).path = request.path_params
        return answer

    handle.__name__ = handle.__qualname__ = operation.name
    return HTTPRouteHandler(
        operation.route_path,
        http_method=[operation.method],  # type: ignore[list-item]  # a method's name
        status_code=operation.status,
        include_in_schema=False,
        name=operation.name,
    )(handle)


def _options(routes: Iterable[Operation]) -> Iterator[HTTPRouteHandler]:
    """Routes that refuse OPTIONS like any unsupported method; the router would answer it by itself."""
    methods: dict[str, list[str]] = {}
    for one in routes:
        methods.setdefault(one.route_path, []).append(one.method)
    for path, taken in methods.items():
        refuse = _refusing(", ".join(taken))
        yield HTTPRouteHandler(path, http_method=HttpMethod.OPTIONS, status_code=204)(refuse)


def _refusing(allow: str) -> Callable[[], Awaitable[None]]:
    async def refuse() -> None:
        raise MethodNotAllowedException(headers={"Allow": allow})

    return refuse


def _allow(methods: str) -> str:
    """The methods that a path takes: HEAD, too, if it takes GET."""
    taken = set(methods.split(", ")) - {"OPTIONS"}
    return ", ".join(sorted(taken | ({"HEAD"} if "GET" in taken else set())))


def _call_in(scope: Scope) -> Call[Any, Any]:
    """The call that the front has made of a request."""
    return cast(Call[Any, Any], cast(dict[str, Any], scope)[CALL])


def _told_of(error: Exception) -> Exception:
    """The router's errors as the ledger's own; any other error is returned unchanged."""
    if isinstance(error, InternalServerException):
        # The client hung up while it was sending, so it does not receive this.
        return ProblemError("invalid_request", "The request was not sent completely.")
    if isinstance(error, HTTPException) and error.status_code in _PROBLEM_OF_STATUS:
        code, detail = _PROBLEM_OF_STATUS[error.status_code]
        given = {name.lower(): value for name, value in (error.headers or {}).items()}
        allow = {"Allow": _allow(given["allow"])} if "allow" in given else {}
        return ProblemError(code, detail, headers=allow)
    return error
