"""The management API as an application: routes, the guard in front of them, problems, logs."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
import structlog
from litestar import Litestar, Request, Response
from litestar.datastructures import State as AppState
from litestar.exceptions import HTTPException, InternalServerException
from litestar.handlers import HTTPRouteHandler
from litestar.types import Message, Scope
from prometheus_client import CollectorRegistry

from services.api.answering.problems import PROBLEM_JSON, FieldError, Problem, headers_of, problem, problem_of
from services.api.asking.callers import Callers
from services.api.asking.gate import Gate
from services.api.asking.traces import Redactor, shown_path, trace_of
from services.api.description import schema
from services.api.description.hot_operations import OPERATIONS
from services.api.description.schema import Description
from services.api.operations import Api, Operation, Reader, elapsed_ms
from services.api.resources import (
    audit,
    edges,
    events,
    fences,
    health,
    key_imports,
    keys,
    keyspaces,
    leaks,
    metrics,
    organizations,
    plans,
    projects,
    requests,
    usage,
    wallets,
)
from services.api.resources.streams import Streams
from services.ledger.feed import Feed, Looking
from services.ledger.ledger import Ledger
from services.ledger.tail import Wakeups

log: Final = structlog.get_logger()

_RESOURCES: Final = (
    keyspaces,
    organizations,
    projects,
    wallets,
    plans,
    keys,
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
)
ROUTES: Final[tuple[HTTPRouteHandler, ...]] = tuple(
    route for resource in _RESOURCES for route in resource.ROUTES
)

_CODE_OF_STATUS: Final = {
    400: ("invalid_request", "The request cannot be read."),
    404: ("not_found", "There is no such path."),
    405: ("method_not_allowed", "This path does not take this method."),
    413: ("body_too_large", "The body is larger than this path takes."),
}
_SERVER_ERROR: Final = 500


def build_app(
    ledger: Ledger,
    reader: Reader,
    *,
    source: str = "urn:keyledger",
    wakeups: Wakeups | None = None,
    published: Callable[[], int | None] = lambda: None,
    nats_reachable: Callable[[], bool] = lambda: True,
    trusted_proxies: tuple[str, ...] = (),
    streams: Streams | None = None,
    more_routes: tuple[HTTPRouteHandler, ...] = (),
) -> Litestar:
    """The management API beside a ledger.

    `source` is where its events come from (a CloudEvents source); `wakeups` tell streams of events
    that there are more, and `streams` bounds these; `published` is how far NATS is, as far as is known;
    `nats_reachable` whether it answers; `more_routes` are those of other parts, and
    `app.state.api.registry` is where these may register what they count.
    """
    redactor = Redactor(ledger.state, lambda: ledger.confirmed)
    registry = CollectorRegistry()
    registry.register(metrics.LedgerFigures(ledger, reader, published, nats_reachable))
    streams = streams or Streams()
    registry.register(streams)
    feed = Feed(
        reader.events,
        lambda: ledger.state.head,
        wakeups or Looking(lambda: ledger.state.head),
        partition=ledger.partition,
        epoch=lambda: ledger.epoch,
        source=source,
    )
    api = Api(
        ledger=ledger,
        reader=reader,
        redactor=redactor,
        registry=registry,
        description=Description(operations_of((*ROUTES, *more_routes))),
        feed=feed,
        streams=streams,
        nats_reachable=nats_reachable,
    )
    gate = Gate(ledger, Callers(ledger), redactor, trusted_proxies)
    return Litestar(
        [*ROUTES, *more_routes],
        guards=[gate.guard],
        exception_handlers={Exception: _as_problem, HTTPException: _as_problem},
        before_send=[_Observer(redactor, metrics.Answers(registry))],
        state=AppState({"api": api}),
        openapi_config=None,  # services/api/description/schema.py writes it, hot paths included
        logging_config=None,
        debug=False,
        include_in_schema=False,
    )


def operations_of(routes: Iterable[HTTPRouteHandler]) -> tuple[Operation, ...]:
    """What these routes and the hot paths do."""
    return (*(route.opt["operation"] for route in routes), *OPERATIONS)


class _Observer:
    """Puts the trace id on every answer, and writes one line for each."""

    def __init__(self, redactor: Redactor, answers: metrics.Answers) -> None:
        self._redactor = redactor
        self._answers = answers

    async def __call__(self, message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        trace = trace_of(scope, self._redactor)
        names = {name.lower() for name, _ in message["headers"]}
        if b"x-request-id" not in names:
            message["headers"] = [*message["headers"], (b"x-request-id", trace.request_id.encode())]
        method, status = str(scope.get("method", "")), message["status"]
        self._answers.count(scope.get("path_template") or "other", method, status)
        level = logging.WARNING if status >= _SERVER_ERROR else logging.INFO
        log.log(
            level,
            "request",
            method=method,
            path=shown_path(scope["path"], self._redactor),
            status=status,
            code=trace.code,
            caller=trace.caller_id,
            request_id=trace.request_id,
            ms=elapsed_ms(trace),
        )


def _as_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    api: Api = request.app.state.api
    trace = trace_of(request.scope, api.redactor)
    headers = headers_of(error)
    found = problem_of(error, trace.request_id)
    if found is None and isinstance(error, HTTPException) and error.status_code in _CODE_OF_STATUS:
        headers = {**headers, **_allowed(error)}
        found = problem(*_CODE_OF_STATUS[error.status_code], trace.request_id)
    if found is None and isinstance(error, InternalServerException):
        # The client hung up while it was sending: nobody hears this.
        found = problem("invalid_request", "The request was not sent whole.", trace.request_id)
    if found is None:
        log.error(
            "request.failed",
            request_id=trace.request_id,
            error=api.redactor.redact("".join(traceback.format_exception(error))),
        )
        detail = "This is our fault; the log has more under the request id."
        found = problem("internal_error", detail, trace.request_id)
    trace.code = found.code
    return Response(
        _without_secrets(found, api.redactor),
        status_code=found.status,
        media_type=PROBLEM_JSON,
        headers={"Cache-Control": "no-store", **headers},
    )


def _allowed(error: HTTPException) -> dict[str, str]:
    given = {name.lower(): value for name, value in (error.headers or {}).items()}
    return {"Allow": given["allow"]} if "allow" in given else {}


def _without_secrets(found: Problem, redactor: Redactor) -> bytes:
    """What a client sent may be repeated in a problem, but never a secret."""
    return msgspec.json.encode(
        msgspec.structs.replace(
            found,
            detail=redactor.redact(found.detail),
            errors=tuple(
                FieldError(field=redactor.redact(one.field), message=redactor.redact(one.message))
                for one in found.errors
            ),
        )
    )
