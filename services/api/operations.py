"""A route: what it takes, who may call it, what it answers, and the handler beside which it is declared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, get_type_hints

import msgspec
from prometheus_client import CollectorRegistry

from domain.projecting import EventReader, Queries
from domain.state import Books
from services.api.answering.stream_count import Streams
from services.api.asking.fields import NoBody
from services.api.asking.reading import BatchReader, reader_of
from services.api.asking.secrets import Redactor
from services.ledger.feed import Feed
from services.ledger.ledger import Ledger

if TYPE_CHECKING:
    from services.api.answering.refusals import Refusals
    from services.api.asking.callers import Callers
    from services.api.resources.checking import Checker
    from services.api.resources.forward_auth import ForwardAuth
    from services.api.resources.metering import MeteringCalls
    from services.api.resources.verify import Verify

POSITION_HEADER: Final = "X-Keyledger-Position"
OWN_KEY: Final = "its `request_id` is that key"
"""Why routes that move money take no Idempotency-Key."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Query parameters; unknown ones are refused."""


class NoQuery(Query, frozen=True, kw_only=True):
    """No parameters."""


NO_QUERY: Final = NoQuery()


class Reader(Protocol):
    """How lists, audit, history, usage and requests are read: projections, and the log itself."""

    @property
    def queries(self) -> Queries:
        """Queries the projections."""
        ...

    @property
    def events(self) -> EventReader:
        """Reads single events back from the log."""
        ...

    @property
    def position(self) -> int:
        """How far the projections are, as far as this process knows."""
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


class Api(msgspec.Struct, kw_only=True):
    """What every handler can use."""

    ledger: Ledger
    reader: Reader
    redactor: Redactor
    registry: CollectorRegistry
    description: Described
    feed: Feed
    """Reads the log for those that follow it."""
    streams: Streams
    """The open streams over HTTP."""
    nats_reachable: Callable[[], bool]
    """Whether NATS answered when it was last asked."""
    refusals: Refusals
    callers: Callers
    checker: Checker
    metering: MeteringCalls
    verify: Verify
    forward_auth: ForwardAuth
    trusted_proxies: tuple[str, ...] = ()
    """Networks (or `unix`) whose X-Forwarded-For is trusted."""
    max_body_bytes: int
    log_granted: bool = False
    """Whether the log has a line for each quick request that was granted."""


Q = TypeVar("Q", bound=msgspec.Struct)
B = TypeVar("B", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers, as JSON."""

    body: Any
    """A view, or JSON that is encoded already (bytes)."""
    status: int = 200
    position: int | None = None
    """Up to which position the answer is true; None: the state's head."""
    version: int | None = None
    """For the ETag, if the answer is one thing that has a version."""
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Any], Any]
"""From a `Call` to a `Reply` or a `Stream`, awaited; of a quick route, to what `answers.Told` names."""


@dataclass(frozen=True, kw_only=True)
class Operation:
    """A route: its description and its handler."""

    method: str
    path: str
    handler: Handler
    tag: str
    summary: str
    operation_id: str = ""
    """What generated clients call it, if that is not its handler's name."""
    description: str = ""
    permissions: tuple[str, ...] = ()
    """Any of them is enough; none: it is open, or authenticates its callers itself."""
    quick: bool = False
    """Whether it is answered without the router, and at once if it need not wait for anything."""
    proxied: bool = False
    """Whether a proxy sends a client's request to it; then its query, body and headers are the client's."""
    query: type[msgspec.Struct] = NoQuery
    other_parameters: Callable[[Books], Callable[[str], bool]] | None = None
    """Says which names in a query belong to others and are not refused."""
    body: type[msgspec.Struct] = NoBody
    items: type[msgspec.Struct] | None = None
    """If the body is a batch: the type of its items; each is read on its own."""
    bodies: tuple[type[msgspec.Struct], ...] = ()
    """If the body is one of several types (`body` takes any of them)."""
    status: int = 200
    answer: Any = None
    """The type of the answer."""
    other_answers: tuple[tuple[int, Any], ...] = ()
    """Types of answers with other statuses."""
    media_types: tuple[str, ...] = ("application/json",)
    headers: tuple[str, ...] = ()
    """Headers of its answer, in addition to those that all such answers have."""
    codes: tuple[str, ...] = ()
    """Problems, in addition to those that every route may have."""
    conditional: bool = False
    """Whether it takes If-Match."""
    whole: bool = False
    """Whether its parameter is the whole rest of the path, slashes included."""
    idempotent: bool = False
    """Whether it takes an Idempotency-Key."""
    instead_of_a_key: str = "it changes nothing"
    """Why it takes no Idempotency-Key."""
    projected: bool = False
    """Whether it is read from projections."""
    shown_at: str = ""
    """For `Location`: the path of the route that shows what this one creates; empty: none shows it alone."""
    max_body_bytes: int | None = None
    """Of this route alone."""
    example: Any = None
    """A body that works."""

    @cached_property
    def has_body(self) -> bool:
        """Whether its body is read."""
        return self.method != "GET" and not self.proxied

    @cached_property
    def read(self) -> Callable[[bytes, Callable[[str], bool]], Any]:
        """Reads its body."""
        return reader_of(self.body) if self.items is None else BatchReader(self.items, self.body)

    @property
    def route_path(self) -> str:
        """The path as Litestar writes it."""
        return re.sub(r"\{(\w+)\}", r"{\1:path}" if self.whole else r"{\1:str}", self.path)

    @property
    def versioned(self) -> bool:
        """Whether the answer is one thing that has a version, and so an ETag."""
        fields = getattr(self.answer, "__struct_fields__", ())
        key = get_type_hints(self.answer)["key"] if "key" in fields else None
        return "version" in (*fields, *getattr(key, "__struct_fields__", ()))

    @property
    def fenced(self) -> bool:
        """Whether it may take something away, and so answers once the fence holds."""
        return self.method != "GET" and "fence" in self.query.__struct_fields__

    def location(self, given: Mapping[str, str], body: Any) -> str:
        """Where the created thing is shown: the path with the ids from the request and from the answer."""
        return re.sub(
            r"\{(\w+)_id\}", lambda found: given.get(found[0][1:-1]) or _id_in(body, found[1]), self.shown_at
        )

    @property
    def name(self) -> str:
        """Its unique id: a verb and its object, such as `rotateKey`."""
        first, *others = self.handler.__name__.split("_")
        return self.operation_id or first + "".join(word.capitalize() for word in others)

    def others(self, books: Books) -> Callable[[str], bool] | None:
        """Says which names in a query belong to others; None: none do."""
        return None if self.other_parameters is None else self.other_parameters(books)


def _id_in(body: Any, thing: str) -> str:
    """The id of a thing that an answer shows: the answer itself, or one of its fields."""
    fields = body if isinstance(body, dict) else msgspec.structs.asdict(body)
    shown = fields.get(thing, fields)
    found: str = shown["id"] if isinstance(shown, dict) else shown.id
    return found


def operation(method: str, path: str, **about: Any) -> Callable[[Handler], Operation]:
    """Make a handler a route; `about` are the fields of its Operation."""

    def made(handler: Handler) -> Operation:
        return Operation(method=method, path=path, handler=handler, **about)

    return made
