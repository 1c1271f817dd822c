"""One request, from its headers to the arguments of its handler."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from domain.commands import Asking
from domain.desk import Desk
from domain.ids import format_position
from domain.state import Books
from keyledger_language.events import Origin
from keyledger_language.instants import Instant
from services.api.answering.problems import ProblemError
from services.api.asking.positions import number_of, with_epoch
from services.api.asking.traces import header, user_agent_of
from services.api.operations import NO_QUERY

if TYPE_CHECKING:
    from services.api.asking.callers import Caller
    from services.api.operations import Api, Operation, Reader

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

Q = TypeVar("Q")
B = TypeVar("B")

MAX_BODY_BYTES: Final = 1_048_576
CONFLICTING: Final = b"\0"
"""Replaces a header that was sent twice with different values; no server accepts it as a header's value."""
HUNG_UP: Final = "keyledger.hung_up"
"""The extension of a scope in which the ledger's server tells whether the client has closed its end."""
_MOST_REQUEST_ID: Final = 128
_LONG_TEXT: Final = 22
_NO_EXTENSIONS: Final[dict[str, Any]] = {}
_PREFIX: Final = f"req_{os.urandom(6).hex()}"
_PREFIX_BYTES: Final = _PREFIX.encode()
_numbers = count(1)

_KEPT_AS: Final = {
    b"authorization": "authorization",
    b"x-request-id": "given_id",
    b"x-keyledger-forwarded": "forwarded",
    b"x-keyledger-proxy-key": "proxy_key",
    b"x-keyledger-position": "seen_position",
    b"idempotency-key": "idempotency_key",
    b"if-match": "if_match",
}
"""The headers that a call reads, and the attributes that hold them."""


_FEW_HAVE: Final = frozenset({b"x-keyledger-position", b"idempotency-key", b"if-match"})


class ClientGoneError(Exception):
    """The client has hung up, so there is no one to answer."""


def new_request_id() -> str:
    """A trace id: unique, cheap, and never an idempotency key."""
    return f"{_PREFIX}{next(_numbers):x}"


async def hung_up() -> Message:
    """`receive` of a request that has arrived whole."""
    return {"type": "http.disconnect"}


class Call(Generic[Q, B]):
    """One request: its headers from the start, the rest as it is read and checked.

    A header that was sent twice with different values is `CONFLICTING`.
    """

    # Defaults are here and not in `__init__`: most requests leave nearly all of them unchanged.
    query: Q = NO_QUERY  # type: ignore[assignment]  # of a route that takes none
    body: B
    caller: Caller
    """The root key that calls, on a route that needs one."""
    data = b""
    path: dict[str, str] = {}  # noqa: RUF012  # never written to: a route's own takes its place
    operation: Operation | None = None
    authorization: bytes | None = None
    proxy_key: bytes | None = None
    seen_position: bytes | None = None
    idempotency_key: bytes | None = None
    if_match: bytes | None = None
    forwarded: bytes | None = None
    """The mark of another ledger process that forwards this request; still to be verified."""
    waited_past, refused_in = 0, ""
    """The last refusal (its number and tenure) that its client is known to have waited past."""
    is_tried_again = False
    """Whether it was to be forwarded and is tried here, because this process has become the owner."""
    lost: Exception | None = None
    """Why that try failed."""
    given_id: bytes | None = None
    says_more = False
    """Whether it has a header that few requests have: an Idempotency-Key, a version or a position."""
    prefix = ""
    """The beginning of positions, and the epoch, both as of when it was admitted. If the epoch is raised
    meanwhile, the answer may contain lost events, and must not look like one of the new epoch."""
    epoch = 1
    _received = False
    _desk: Desk | None = None
    _request_id: str | None = None

    def __init__(self, api: Api, scope: Scope, receive: Receive) -> None:
        self.started = perf_counter()
        self.api = api
        self.ledger = api.ledger
        self.scope = scope
        self.receive = receive
        self.limit = api.max_body_bytes
        for name, value in scope["headers"]:
            if name in _KEPT_AS:
                if name == b"authorization" and self.authorization is None:
                    self.authorization = value
                else:
                    self._keep(name, value)
        client = scope["client"]
        self.peer: str | None = client[0] or None if client else None
        """The address that it came from; the client's address if a trusted proxy forwards it."""

    def as_it_came_in(self, headers: Sequence[tuple[bytes, bytes]], peer: str) -> Call[Q, B]:
        """The same call with other headers, and from this address (empty: a unix socket)."""
        client = (peer, 0) if peer else None
        call = type(self)(self.api, {**self.scope, "headers": headers, "client": client}, self.receive)
        call.started, call.limit, call.forwarded = self.started, self.limit, self.forwarded
        call.data, call._received = self.data, self._received  # noqa: SLF001  # of its own kind
        return call

    def _keep(self, name: bytes, value: bytes) -> None:
        kept_as = _KEPT_AS[name]
        self.says_more = self.says_more or name in _FEW_HAVE
        before = getattr(self, kept_as)
        setattr(self, kept_as, value if before is None or before == value else CONFLICTING)
        if name == b"x-request-id":
            self._request_id = self.own_id

    # -- its method and ids

    @property
    def method(self) -> str:
        """Such as `GET`."""
        method: str = self.scope["method"]
        return method

    @property
    def request_id(self) -> str:
        """Its trace id: the client's own, or one that is made when it is first needed."""
        if self._request_id is None:
            self._request_id = f"{_PREFIX}{next(_numbers):x}"
        return self._request_id

    @property
    def shown_id(self) -> bytes:
        """The trace id as a header."""
        if self._request_id is None:
            return b"%b%x" % (_PREFIX_BYTES, next(_numbers))
        return self._request_id.encode()

    @property
    def has_long_id(self) -> bool:
        """Whether the client sent a trace id that is long enough to contain a secret."""
        return self._request_id is not None and len(self._request_id) >= _LONG_TEXT

    @property
    def own_id(self) -> str | None:
        """The client's own trace id, if a header may contain it. It is not checked for secrets."""
        return None if self.given_id is None else _sane(self.given_id)

    def settle_id(self, may_be_shown: Callable[[str], bool]) -> None:
        """Keep the client's own trace id if it may be shown."""
        given = self.own_id
        self._request_id = given if given and may_be_shown(given) else new_request_id()

    def header(self, wanted: str) -> str | None:
        """The first value of a header."""
        return header(self.scope["headers"], wanted.lower().encode())

    # -- its body

    async def read(self) -> None:
        """Receive the whole body; refused if it is larger than the limit."""
        if not self._received:
            await self.take(await self.receive())

    async def take(self, message: Message) -> None:
        """Take the first message of the body, and receive the rest."""
        if not self.takes_all(message):
            self.data = await self._read_on(message.get("body", b""))
            self._received = True

    def takes_all(self, message: Message) -> bool:
        """Take a message that is the whole body, as nearly all are. False if it is the first of several."""
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if message.get("more_body"):
            return False
        data: bytes = message.get("body", b"")
        if len(data) > self.limit:
            raise self._too_large()
        self.data = data
        self._received = True
        return True

    async def _read_on(self, first: bytes) -> bytes:
        parts, size = [first], len(first)
        more = True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > self.limit:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ProblemError:
        # The rest of the body is not read, so the connection cannot be used again.
        return ProblemError(
            "body_too_large", f"A body may have at most {self.limit} bytes.", headers={"Connection": "close"}
        )

    # -- whether its client still waits

    def must_be_waited_for(self) -> None:
        """Raise ClientGoneError if the client has hung up, according to the connection itself.

        In a process that slept, the request and the end of its connection arrive together, and the server
        has only seen the request so far.
        """
        look = self.scope.get("extensions", _NO_EXTENSIONS).get(HUNG_UP)
        if look is not None and look():
            raise ClientGoneError

    async def gone(self) -> None:
        """Returns when the client has hung up; for answers that take long.

        A body that was not read before is consumed here, and `read` must not wait for it afterwards.
        """
        while (message := await self.receive())["type"] != "http.disconnect":
            self._received = self._received or not message.get("more_body", False)

    # -- for handlers

    @property
    def reader(self) -> Reader:
        """Reads the projections and the log itself."""
        return self.api.reader

    @property
    def books(self) -> Books:
        """The committed state, to be read."""
        return self.ledger.books

    @property
    def partition(self) -> int:
        """The partition that the ledger owns."""
        return self.ledger.partition

    @property
    def caller_id(self) -> str | None:
        """The caller's id, if it was recognised."""
        caller: Caller | None = getattr(self, "caller", None)
        return None if caller is None else caller.key_id

    @property
    def asking(self) -> Asking:
        """The caller and its origin, as management commands carry them."""
        origin = Origin(
            ip=self.peer,
            user_agent=user_agent_of(self.scope["headers"], self.api.redactor),
            request_id=self.request_id,
        )
        return msgspec.structs.replace(self.caller.asking, origin=origin)

    @property
    def now(self) -> Instant:
        """The ledger's time, which never goes back."""
        return self.ledger.time.now()

    @property
    def desk(self) -> Desk:
        """A desk for reading committed state as the caller may see it, by the domain's rules."""
        if self._desk is None:
            self._desk = self.ledger.desk(self.asking)
        return self._desk

    def number_of(self, text: str) -> int | None:
        """The number of a position of the log; None if the text is not a position of this log.

        Raises ProblemError (410) for one of another epoch, or that the log has not reached: it is of a log
        that has lost events since, and its number would name another event than the one that was seen.
        """
        return number_of(self.ledger, text, self.prefix)

    def next_cursor(self, cursor: str | None) -> str | None:
        """A list's cursor as clients get it: with its epoch, as positions have it."""
        return with_epoch(cursor, self.epoch)

    def place(self, number: int) -> str:
        """A position as clients get it."""
        return format_position(self.prefix, number)


def _sane(request_id: bytes) -> str | None:
    """A caller's own trace id, if a header and a log line may contain it."""
    text = str(request_id, "latin-1")
    return text if 0 < len(text) <= _MOST_REQUEST_ID and text.isascii() and text.isprintable() else None
