"""A request of the hot paths: what is read of it, and when."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from itertools import count
from typing import Any, Final

from services.api.answering.problems import ProblemError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_BODY_BYTES: Final = 1_048_576
_MAX_REQUEST_ID: Final = 128

_READ: Final = frozenset(
    {b"authorization", b"x-request-id", b"x-keyledger-forwarded", b"x-keyledger-proxy-key"}
)

CONFLICTING: Final = b"\0"
"""In place of a header that was sent twice, with different values; no server lets it through as one."""

_PREFIX: Final = f"req_{os.urandom(6).hex()}"
_PREFIX_BYTES: Final = _PREFIX.encode()
_numbers = count(1)
_LONG_TEXT: Final = 22


HUNG_UP: Final = "keyledger.hung_up"
"""The extension of a scope by which our server tells whether the client has closed its end."""
_NO_EXTENSIONS: Final[dict[str, Any]] = {}


class ClientGoneError(Exception):
    """The client hung up: nobody would hear the answer."""


def new_request_id() -> str:
    """A trace id: unique, cheap, and never an idempotency key."""
    return f"{_PREFIX}{next(_numbers):x}"


async def hung_up() -> Message:
    """`receive` of a request that came whole, and is not waited for."""
    return {"type": "http.disconnect"}


class HotRequest:
    """One request: headers that every hot path needs, the rest on demand."""

    __slots__ = (
        "_received", "_request_id", "authorization", "body", "forwarded", "limit", "peer", "proxy_key",
        "receive", "refused_in", "scope", "waited_past",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, limit: int = MAX_BODY_BYTES) -> None:
        self.scope = scope
        self.receive = receive
        self.limit = limit
        self.body = b""
        self._received = False
        self.authorization: bytes | None = None
        self.forwarded: bytes | None = None
        """What another ledger process says of a request that it passes on; to be verified."""
        self.waited_past, self.refused_in = 0, ""
        """The refusal (its number, and in whose tenure) that its client is known to have waited past."""
        self.proxy_key: bytes | None = None
        given: bytes | None = None
        for name, value in scope["headers"]:
            if name in _READ:
                if name == b"authorization":
                    self.authorization = value
                elif name == b"x-request-id":
                    given = value
                elif name == b"x-keyledger-forwarded":
                    self.forwarded = value
                elif self.proxy_key is None or self.proxy_key == value:
                    self.proxy_key = value
                else:
                    self.proxy_key = CONFLICTING
        self._request_id = None if given is None else _sane(given)
        client = scope["client"]
        self.peer: str | None = client[0] or None if client else None
        """Where it came from; the HTTP layer puts the client's address here when a trusted proxy forwards."""

    @property
    def request_id(self) -> str:
        """Its trace id: the client's own, or one that is made when it is asked for."""
        if self._request_id is None:
            self._request_id = f"{_PREFIX}{next(_numbers):x}"
        return self._request_id

    @request_id.setter
    def request_id(self, request_id: str) -> None:
        self._request_id = request_id

    @property
    def shown_id(self) -> bytes:
        """The trace id as a header."""
        if self._request_id is None:
            return b"%b%x" % (_PREFIX_BYTES, next(_numbers))
        return self._request_id.encode()

    @property
    def has_long_id(self) -> bool:
        """Did the client give it, and could it hold a secret?"""
        return self._request_id is not None and len(self._request_id) >= _LONG_TEXT

    @property
    def given_id(self) -> str | None:
        """The client's own trace id, if it can stand in a header. Whether it holds a secret is not judged."""
        given = [value for name, value in self.scope["headers"] if name == b"x-request-id"]
        return _sane(given[-1]) if given else None

    async def read(self) -> None:
        """Receive the whole body; refused when it is absurdly large."""
        if not self._received:
            await self.take(await self.receive())

    async def take(self, message: Message) -> None:
        """The first message of the body, and those behind it."""
        if not self.takes_all(message):
            self.body = await self._read_on(message.get("body", b""))
            self._received = True

    def takes_all(self, message: Message) -> bool:
        """Take a message that is the whole body, as nearly all are. False: it is the first of several."""
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        if message.get("more_body"):
            return False
        body: bytes = message.get("body", b"")
        if len(body) > self.limit:
            raise self._too_large()
        self.body = body
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
        # What is left of the body is not read, so the connection cannot be used again.
        return ProblemError(
            "body_too_large", f"A body may hold {self.limit} bytes.", headers={"Connection": "close"}
        )

    async def replay(self) -> Message:
        """`receive` for whoever reads the request after its body was read here."""
        if self._received:
            self._received = False
            return {"type": "http.request", "body": self.body, "more_body": False}
        return await self.receive()

    def must_be_waited_for(self) -> None:
        """Raise ClientGoneError if the client has hung up, as the connection itself says.

        In a process that slept, the request and the end of its connection came in together: what the
        server was told so far is that there is a request.
        """
        look = self.scope.get("extensions", _NO_EXTENSIONS).get(HUNG_UP)
        if look is not None and look():
            raise ClientGoneError

    async def gone(self) -> None:
        """Returns when the client has hung up; for answers that go on for long.

        A body that was not read before goes by here, and `read` must not wait for it then.
        """
        while (message := await self.receive())["type"] != "http.disconnect":
            self._received = self._received or not message.get("more_body", False)

    def header(self, wanted: bytes) -> str | None:
        """The first value of a header."""
        for name, value in self.scope["headers"]:
            if name == wanted:
                return str(value, "latin-1").strip()
        return None


def _sane(request_id: bytes) -> str | None:
    """A caller's own trace id, if it can stand in a header and a log line."""
    if not request_id or len(request_id) > _MAX_REQUEST_ID:
        return None
    text = str(request_id, "latin-1")
    return text if text.isascii() and text.isprintable() else None
