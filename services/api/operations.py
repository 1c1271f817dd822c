"""From a handler to a route: what comes in is read and checked in one place, what goes out is bytes."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property
from time import perf_counter
from typing import Any, Final, Generic, Protocol, TypeVar

import msgspec
from litestar import Request, Response
from litestar.handlers import HTTPRouteHandler
from prometheus_client import CollectorRegistry

from domain.commands import Asking
from domain.desk import Desk
from domain.errors import LedgerError
from domain.ids import format_position, parse_position
from domain.instants import Instant
from domain.projecting import EventReader, Queries
from domain.state import Draft
from services.api.answering.fencing import outlast_fences
from services.api.answering.problems import ProblemError, invalid
from services.api.asking.callers import Caller
from services.api.asking.fields import NoBody
from services.api.asking.gate import caller_of
from services.api.asking.reading import read_body, read_query
from services.api.asking.traces import Redactor, Trace, header, trace_of
from services.api.resources.streams import Streams
from services.ledger.feed import Feed
from services.ledger.ledger import Ledger

POSITION_HEADER: Final = "X-Keyledger-Position"
MAX_BODY_BYTES: Final = 1_048_576
_WAIT_SECONDS: Final = 2.0
_EPOCH_ENDS: Final = "."
"""In a cursor, behind its epoch; what lists make of rows has no dot."""
_MOST_EPOCH_DIGITS: Final = 10
_encode = msgspec.json.Encoder().encode


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Query parameters; unknown ones are refused."""


class NoQuery(Query, frozen=True, kw_only=True):
    """No parameters."""


class Reader(Protocol):
    """How lists, audit, history, usage and requests are read: projections, and the log itself."""

    @property
    def queries(self) -> Queries:
        """Asks the projections."""
        ...

    @property
    def events(self) -> EventReader:
        """Reads single events back from the log."""
        ...

    @property
    def position(self) -> int:
        """How far the projections are, as far as this process has heard."""
        ...


class Described(Protocol):
    """The API description, ready to be served."""

    @cached_property
    def json(self) -> bytes:
        """For machines."""
        ...

    @cached_property
    def page(self) -> bytes:
        """For people."""
        ...


class Api(msgspec.Struct, frozen=True, kw_only=True):
    """What every handler may use."""

    ledger: Ledger
    reader: Reader
    redactor: Redactor
    registry: CollectorRegistry
    description: Described
    feed: Feed
    """Reads the log for whoever follows it."""
    streams: Streams
    """Those who follow it over HTTP."""
    nats_reachable: Callable[[], bool]
    """Did NATS answer when it was last asked?"""


Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)


class Call(Generic[Q, B]):
    """One request, read and checked."""

    def __init__(
        self,
        api: Api,
        request: Request[Any, Any, Any],
        operation: Operation,
        *,
        query: Q,
        body: B,
        data: bytes,
    ) -> None:
        self.api = api
        self.ledger = api.ledger
        self.reader = api.reader
        self.request = request
        self.operation = operation
        self.query = query
        self.body = body
        self.data = data
        self.epoch = max(api.ledger.epoch, 1)
        self.prefix = api.ledger.position_prefix
        """What positions begin with. Both of when the request began: where the epoch is raised meanwhile, the
        answer may be of what was lost, and must not pass for what is known now."""
        self.path: dict[str, str] = request.path_params
        self.trace: Trace = trace_of(request.scope, api.redactor)
        self._desk: Desk | None = None

    @property
    def caller(self) -> Caller:
        """The root key that asks."""
        return caller_of(self.request.scope)[0]

    @property
    def asking(self) -> Asking:
        """Who asks, and from where, as commands carry it."""
        return caller_of(self.request.scope)[1]

    @property
    def now(self) -> Instant:
        """The time in the ledger, which never steps back."""
        return max(self.ledger.clock.now(), self.ledger.state.at)

    @property
    def partition(self) -> int:
        """Where all of this is."""
        return self.ledger.partition

    @property
    def desk(self) -> Desk:
        """Committed state as the caller may see it: the domain's own rules, for reading."""
        if self._desk is None:
            self._desk = Desk(
                Draft(self.ledger.state),
                now=self.now,
                facts=self.ledger.facts,
                limiter=self.ledger.limiter,
                entropy=lambda: 0,
                partition=self.partition,
            )
            self._desk.asking = self.asking
        return self._desk

    def header(self, name: str) -> str | None:
        """The first value of a request header."""
        return header(self.request.scope["headers"], name.lower().encode())

    def number_of(self, text: str) -> int | None:
        """The number of a position that the log has told; None where the text is no position of this log.

        One of another epoch, or that the log has not reached, was told by a log that has lost events
        since: by its number, it would be another event than the one that was seen.
        """
        number = number_in(self.ledger, text)
        head = self.ledger.state.head
        if number is None:
            return None
        if number > head:
            raise ProblemError(
                "position_unknown",
                f"The log ends at {self.place(head)}: if this position was ever told, the log has lost events"
                " since. Read what you keep of it anew.",
            )
        return number

    def next_cursor(self, cursor: str | None) -> str | None:
        """A list's cursor as the outside sees it: it says its epoch, as positions do."""
        epoch = self.epoch
        return cursor if cursor is None or epoch == 1 else f"{epoch}{_EPOCH_ENDS}{cursor}"

    def place(self, number: int) -> str:
        """A position as the outside sees it."""
        return format_position(self.prefix, number)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers: something to be JSON."""

    body: Any
    """A view, or what is JSON already (bytes)."""
    status: int = 200
    position: int | None = None
    """Up to where the answer is true; None: the state's head."""
    version: int | None = None
    """For the ETag, where the answer is one thing that has a version."""
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Call[Q, B]], Awaitable[Reply | Response[Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """A route, as the API description tells of it."""

    method: str
    path: str
    tag: str
    summary: str
    description: str = ""
    permissions: tuple[str, ...] = ()
    """Any of them opens it; none: it is open to everybody."""
    query: type[msgspec.Struct] = NoQuery
    body: type[msgspec.Struct] = NoBody
    bodies: tuple[type[msgspec.Struct], ...] = ()
    """Where the body is one of several things (and `body` takes any of them)."""
    status: int = 200
    answer: Any = None
    """The type of the answer."""
    other_answers: tuple[tuple[int, Any], ...] = ()
    """Types of answers with other statuses."""
    media_types: tuple[str, ...] = ("application/json",)
    codes: tuple[str, ...] = ()
    """Problems beside those that every route may have."""
    conditional: bool = False
    """Does it take If-Match?"""
    whole: bool = False
    """Is its parameter all that is left of the path, slashes included?"""
    idempotent: bool = False
    """Does it take an Idempotency-Key?"""
    projected: bool = False
    """Is it read from projections?"""
    secrets: bool = False
    """May the body hold a secret?"""
    max_body_bytes: int = MAX_BODY_BYTES
    example: Any = None
    """A body that works."""

    @property
    def fenced(self) -> bool:
        """May it take something away, and so answer once the fence holds?"""
        return self.method != "GET" and "fence" in self.query.__struct_fields__

    @property
    def name(self) -> str:
        """A unique id, such as `post_keys_key_id_rotate`."""
        words = re.findall(r"[a-z_]+", self.path.removeprefix("/v1"))
        return "_".join((self.method.lower(), *words)).replace(".", "_")


def operation(
    method: str,
    path: str,
    *,
    query: type[Q] = NoQuery,  # type: ignore[assignment]  # a default for a type variable
    body: type[B] = NoBody,  # type: ignore[assignment]  # the same
    **about: Any,
) -> Callable[[Handler[Q, B]], HTTPRouteHandler]:
    """Make a handler a route of the management API; `about` are the fields of its Operation."""
    described = Operation(method=method, path=path, query=query, body=body, **about)

    def wrap(handler: Handler[Q, B]) -> HTTPRouteHandler:
        return _route(described, handler)

    return wrap


def _route(described: Operation, handler: Handler[Any, Any]) -> HTTPRouteHandler:
    async def handle(request: Request[Any, Any, Any]) -> Response[Any]:
        call = await _read(request, described)
        try:
            reply = await handler(call)
        except LedgerError as refusal:
            if described.fenced and call.query.fence:
                await outlast_fences(call.ledger, refusal)
            raise
        return _response(call, reply) if isinstance(reply, Reply) else reply

    handle.__name__ = handle.__qualname__ = described.name
    return HTTPRouteHandler(
        re.sub(r"\{(\w+)\}", r"{\1:path}" if described.whole else r"{\1:str}", described.path),
        http_method=[described.method],  # type: ignore[list-item]  # a method's name
        status_code=described.status,
        opt={"operation": described, "permissions": described.permissions},
        request_max_body_size=described.max_body_bytes,
        include_in_schema=False,
        name=described.name,
    )(handle)


async def _read(request: Request[Any, Any, Any], described: Operation) -> Call[Any, Any]:
    api: Api = request.app.state.api
    scope = request.scope
    query = _of_this_epoch(api.ledger, read_query(scope["query_string"], described.query))
    data = b""
    body: Any = None
    if described.method != "GET":
        data = await request.body()
        shapes = () if described.secrets else api.redactor.shapes
        body = read_body(data, described.body, shapes)
    elif (wanted := header(scope["headers"], POSITION_HEADER.lower().encode())) is not None:
        await _wait_for(api, described, wanted)
    if not described.conditional and header(scope["headers"], b"if-match") is not None:
        raise invalid("If-Match", "this request takes no If-Match: there is no version to compare")
    return Call(api, request, described, query=query, body=body, data=data)


def _of_this_epoch(ledger: Ledger, query: Any) -> Any:
    """The query, with the cursor as the list has given it; 410 where that was in another epoch."""
    cursor: str | None = getattr(query, "cursor", None)
    if cursor is None:
        return query
    named, dot, rest = cursor.partition(_EPOCH_ENDS)
    if not dot:
        named, rest = "1", cursor
    if not (named.isascii() and named.isdigit() and len(named) <= _MOST_EPOCH_DIGITS):
        raise invalid("cursor", "the cursor is not one that a list of ours has given")
    _refuse_another_epoch(ledger, int(named))
    return msgspec.structs.replace(query, cursor=rest)


def number_in(ledger: Ledger, text: str) -> int | None:
    """The number of a position; None where it is none of this log, 410 where it is of another epoch."""
    try:
        partition, epoch, number = parse_position(text)
    except ValueError:
        return None
    if partition != ledger.partition:
        return None
    _refuse_another_epoch(ledger, epoch)
    return number


def _refuse_another_epoch(ledger: Ledger, epoch: int) -> None:
    now = max(ledger.epoch, 1)
    if epoch != now:
        raise ProblemError(
            "position_unknown",
            f"This was told in epoch {epoch} of the log, which is in epoch {now}: it was restored, or has"
            " lost events, in between. Start from the beginning, and read what you keep of it anew.",
        )


async def _wait_for(api: Api, described: Operation, text: str) -> None:
    """Have what is read reached the position that the caller saw elsewhere?"""
    number = number_in(api.ledger, text)
    if number is None:
        raise invalid(POSITION_HEADER, "not a position of this ledger")
    reached = number <= api.ledger.state.head
    if not reached or described.projected:
        reached = await api.ledger.wait_for_projections(number, _WAIT_SECONDS)
    if not reached:
        raise ProblemError(
            "position_not_reached",
            f"Position {text} was not reached within {_WAIT_SECONDS:.0f} s.",
            headers={"Retry-After": "1"},
        )


def _response(call: Call[Any, Any], reply: Reply) -> Response[bytes]:
    headers = {
        POSITION_HEADER: call.place(call.ledger.state.head if reply.position is None else reply.position),
        "Cache-Control": "no-store",
        **reply.headers,
    }
    if reply.version is not None:
        headers["ETag"] = f'"{reply.version}"'
    content = reply.body if isinstance(reply.body, bytes) else _encode(reply.body)
    return Response(
        content, status_code=reply.status, headers=headers, media_type=call.operation.media_types[0]
    )


def elapsed_ms(trace: Trace) -> float:
    """How long a request has taken so far."""
    return round((perf_counter() - trace.started) * 1000, 3)
