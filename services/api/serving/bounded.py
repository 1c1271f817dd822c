"""uvicorn's HTTP protocol with bounds: what a client sends is counted before it is kept, and timed.

The parser reports a header only when it is complete, so bytes are counted as they arrive. Large pieces
are fed to it in slices: nothing grows larger than a bound and a slice.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.utils import get_remote_addr
from uvicorn.server import ServerState

from services.api.answering.answers import encode
from services.api.answering.problems import PROBLEM_JSON, TABLE, problem
from services.api.asking.call import new_request_id
from services.api.serving.connection_bounds import (
    GAVE_WAY,
    LARGE_HEADERS,
    LONG_URL,
    MALFORMED,
    NOT_READING,
    SILENT,
    SLOW_BODY,
    SLOW_HEADERS,
    TOO_MANY,
    ConnectionRefusal,
    Connections,
)

SLICE: Final = 16_384
_REQUEST_LINE: Final = 512
"""Bytes before a request's body that are neither URL nor header: method, version, line ends."""
_ON_BEHALF: Final = b"x-keyledger-forwarded"
_MORE_HEADERS_ON_BEHALF: Final = 8
_MORE_BYTES_ON_BEHALF: Final = 4_096
"""Another ledger process adds a few headers to a request that it forwards."""
_MOST_SMALL_CHUNKS: Final = 1_000
_CHUNK_BYTES: Final = 64
"""If there are more chunks, the others must have so many bytes each, on average: a byte in a chunk of its own
costs as much as thousands."""
_LINGER_SECONDS: Final = 1.0
"""How long a refused client may read the reason, before what it still sends resets the connection."""
_FOR_GOOD: Final = 1 << 62


class BoundedConfig(uvicorn.Config):
    """uvicorn's settings and the server's connections."""

    def __init__(self, app: Any, *, connections: Connections, **settings: Any) -> None:
        super().__init__(app, **settings)
        self.connections = connections


# The stages of a connection. Plain numbers: they are set with each request.
WHOLE: Final = 0  # a request has arrived whole and is being answered, or there is none
HEADERS: Final = 1
BODY: Final = 2
_SILENT: Final = 3  # no byte of a request has arrived yet
_REFUSED: Final = 4


class RefusedError(Exception):
    """Raised in a callback of the parser to stop it."""

    def __init__(self, refusal: ConnectionRefusal, code: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = refusal
        self.code = code
        self.detail = detail


class BoundedProtocol(HttpToolsProtocol):
    """One connection within the bounds of its server."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A protocol without BoundedConfig (in a benchmark) gets bounds of its own.
        self._all = config.connections if isinstance(config, BoundedConfig) else Connections()
        self._bounds = self._all.bounds
        self._stage = _SILENT
        # How many bytes arrived since the last progress (a request that began, a part of a body), or up
        # to a slice more: what is within its bound by this count need not be measured.
        self._fed = 0
        self._unmeasured = min(self._bounds.url_bytes, self._bounds.header_bytes)
        self._most_headers = self._bounds.headers
        self._body_bytes = self._chunks = self._trailers = self._trailer_bytes = 0
        self._upgrades = False
        self.url = b""
        # What the last look saw, and since when that is so.
        self._seen: tuple[int, Any] = -1, None
        self._since = self._all.now
        self._unsent, self._unsent_since = 0, 0.0

    # -- coming and going

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """A client connected."""
        if self._all.admit(self):
            super().connection_made(transport)
            return
        self.transport, self.flow = transport, FlowControl(transport)
        self.client = get_remote_addr(transport)
        self._stage, self._fed = _REFUSED, _FOR_GOOD
        detail = "Too many connections are open: try again."
        self._all.count(TOO_MANY, self._client)
        transport.write(_answer(503, "too_many_connections", detail, b"retry-after: 1\r\n"))
        transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed."""
        self._all.lost(self)
        super().connection_lost(exc)

    @property
    def _client(self) -> str | None:
        return self.client[0] if self.client else None

    # -- what comes in

    def data_received(self, data: bytes) -> None:
        """Feed the parser, with large pieces in slices, so that nothing exceeds its bound unnoticed."""
        self._fed = fed = self._fed + len(data) if self._stage else len(data)
        if fed > SLICE:
            self._feed_carefully(data)
            return
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
        parser: Any = self.parser  # the type that httptools declares is too narrow
        try:
            parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
            self._stumbled(error, data)

    def _stumbled(self, error: Exception, data: bytes | memoryview) -> None:
        """Continue without the upgrade that the parser stopped for, or refuse what it cannot read."""
        while isinstance(error, httptools.HttpParserUpgrade):
            if self._stage == _REFUSED or self.transport.is_closing():
                return
            data = self._begin_again() + bytes(data[error.args[0] :])
            try:
                self.parser.feed_data(data)
            except (httptools.HttpParserUpgrade, httptools.HttpParserError) as next_error:
                error = next_error
            else:
                return
        why = error.__context__  # what a callback raised
        if isinstance(why, RefusedError):
            self._refuse(why)
        else:
            self.refuse(MALFORMED, "malformed_request", "The request is not valid HTTP.")

    def _begin_again(self) -> bytes:
        """Make a new parser; returns the head of the request that asks for an upgrade, without the upgrade.

        A server may ignore it (RFC 9110, 7.8). The old parser would read the body as the next request.
        """
        parser: Any = self.parser
        version = parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self._upgrades = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return b"\r\n".join([*lines, b"", b""])

    def _feed_carefully(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._fed -= len(data)
        whole = memoryview(data)
        for start in range(0, len(data), SLICE):
            if self._stage == _REFUSED or self.transport.is_closing():
                return
            part = whole[start : start + SLICE]
            self._fed = self._fed + len(part) if self._stage else len(part)
            parser: Any = self.parser
            try:
                parser.feed_data(part)
            except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
                self._stumbled(error, part)
            self._check_unfinished()

    def _check_unfinished(self) -> None:
        """Check what arrived since the last progress, even if the parser has not reported it yet."""
        bounds, in_headers = self._bounds, self._stage == HEADERS
        most_bytes = SLICE + bounds.header_bytes + _MORE_BYTES_ON_BEHALF + _REQUEST_LINE + len(self.url)
        if in_headers and len(self.url) > bounds.url_bytes:
            self._refuse(self._long_url())
        elif self._fed > most_bytes or (
            in_headers and len(self.headers) > bounds.headers + _MORE_HEADERS_ON_BEHALF
        ):
            self._refuse(self._large_headers())

    def on_message_begin(self) -> None:
        """A request begins."""
        self._stage = HEADERS
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header. Those after the body have no meaning here: they are counted, not kept."""
        if self._stage == HEADERS:
            super().on_header(name, value)
        else:
            self.on_trailer((name, value))

    def on_trailer(self, trailer: tuple[bytes, bytes]) -> None:
        """A header after the body."""
        name, value = trailer
        self._trailers += 1
        self._trailer_bytes += len(name) + len(value) + 4
        if self._trailers > self._bounds.headers or self._trailer_bytes > self._bounds.header_bytes:
            raise self._large_headers()

    def on_headers_complete(self) -> None:
        """Take the request, if its headers are within bounds."""
        self.check_headers()
        if not self.begins_again():
            self._stage, self._body_bytes, self._chunks = BODY, 0, 0
            super().on_headers_complete()

    def begins_again(self) -> bool:
        """Whether the request asks for an upgrade; then it is parsed a second time, without that."""
        self._upgrades = self.parser.should_upgrade()
        return self._upgrades

    def check_headers(self) -> None:
        """Raises RefusedError if they are not within bounds."""
        if len(self.url) > self._bounds.url_bytes:
            raise self._long_url()
        if self.url[:1] != b"/":
            self._check_target()
        if len(self.headers) > self._most_headers or self._fed > self._unmeasured:
            self._measure()

    def _check_target(self) -> None:
        """Raises RefusedError if it is not a path: after a process's address, `*@host` would be a host."""
        try:
            path: bytes | None = httptools.parse_url(self.url).path
        except httptools.HttpParserInvalidURLError:
            path = None
        if path is None or path[:1] != b"/":
            raise RefusedError(
                MALFORMED, "malformed_request", "The target of a request must begin with a slash."
            )

    def _measure(self) -> None:
        most, most_bytes = self._bounds.headers, self._bounds.header_bytes
        if any(name == _ON_BEHALF for name, _ in self.headers):
            most, most_bytes = most + _MORE_HEADERS_ON_BEHALF, most_bytes + _MORE_BYTES_ON_BEHALF
        size = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.headers) > most or size > most_bytes:
            raise self._large_headers()

    def on_chunk_header(self) -> None:
        """A chunk of a body begins; the last one is followed by trailers."""
        self._fed = SLICE
        self._trailers = self._trailer_bytes = 0
        self._chunks += 1
        if self._chunks > _MOST_SMALL_CHUNKS + self._body_bytes // _CHUNK_BYTES:
            raise RefusedError(
                MALFORMED,
                "malformed_request",
                f"A body in more than {_MOST_SMALL_CHUNKS} chunks must have {_CHUNK_BYTES} bytes in each.",
            )

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._fed = SLICE
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has arrived whole."""
        if self._upgrades:
            return  # Only its head has.
        self._stage, self._body_bytes = WHOLE, 0
        super().on_message_complete()

    # -- refusing

    def _large_headers(self) -> RefusedError:
        detail = (
            f"A request may have at most {self._bounds.headers} headers, with {self._bounds.header_bytes} "
            "bytes together, and as many trailers."
        )
        return RefusedError(LARGE_HEADERS, "headers_too_large", detail)

    def _long_url(self) -> RefusedError:
        return RefusedError(
            LONG_URL, "url_too_long", f"A URL may have at most {self._bounds.url_bytes} bytes."
        )

    def _refuse(self, why: RefusedError) -> None:
        self.refuse(why.refusal, why.code, why.detail)

    def refuse(self, refusal: ConnectionRefusal, code: str, detail: str) -> None:
        """Answer with the reason, read nothing more, and close."""
        if self._stage == _REFUSED or self.transport.is_closing():
            return
        may_answer = self._may_answer()
        self._all.count(refusal, self._client)
        self._stop_reading()
        if not may_answer:
            self.transport.close()
            return
        self.transport.write(_answer(TABLE[code].status, code, detail))
        # If it were closed at once, with bytes of the client unread, the connection would be reset, and
        # the client might never read the answer.
        self.transport.write_eof()

    def _may_answer(self) -> bool:
        """Whether the client expects an answer next, and none was begun."""
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            # While a body arrives, the next answer is that request's own.
            return self._stage != BODY or self.holds_back
        return self._stage == BODY and not self.pipeline and not cycle.response_started

    @property
    def holds_back(self) -> bool:
        """Whether the request that is arriving is still held back."""
        return False

    def _stop_reading(self) -> None:
        self._stage, self._fed = _REFUSED, _FOR_GOOD
        self.flow.pause_reading()
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    def shutdown(self) -> None:
        """The server stops."""
        if self._stage == _REFUSED:
            self.transport.abort()
        else:
            super().shutdown()

    # -- timeouts

    @property
    def is_new(self) -> bool:
        """Whether it is open and has sent no request's headers yet."""
        return not self.has_asked and self._stage != _REFUSED and not self.transport.is_closing()

    @property
    def has_asked(self) -> bool:
        """Whether a request's headers ever arrived whole."""
        return cast(Any, self.cycle) is not None

    def give_way(self) -> None:
        """Close, to make room for another connection."""
        self._all.count(GAVE_WAY, self._client)
        self._stage = _REFUSED
        self.transport.abort()

    def look(self, now: float, passed: float) -> None:
        """Refuse what takes too long; about once a second."""
        if self._gives_up_sending(now) or self.transport.is_closing():
            return
        stage, most = self._stage, self._bounds.header_seconds
        # Each request has its own list of headers, by which two requests are told apart; so a request
        # need not read the time.
        if stage != self._seen[0] or self.headers is not self._seen[1]:
            self._seen, self._since = (stage, self.headers), now
        lasted = now - self._since
        if stage == BODY:
            self._look_at_body(lasted, passed)
        elif stage == WHOLE and not self.is_loose():
            self._since = now
        elif stage == _REFUSED:
            if lasted >= _LINGER_SECONDS:
                self.transport.abort()
        elif lasted <= most:
            return
        elif stage == HEADERS:
            detail = f"The headers of a request must arrive within {most:g} s."
            self.refuse(SLOW_HEADERS, "request_timeout", detail)
        else:
            # A browser connects in advance, and would take an answer for that of its first request.
            self._all.count(SILENT, self._client)
            self.transport.close()

    def _look_at_body(self, lasted: float, passed: float) -> None:
        bounds = self._bounds
        if self.flow.read_paused:
            self._since += passed  # The application does not read, not the client.
        elif lasted > bounds.body_seconds + self._body_bytes / bounds.body_rate:
            detail = (
                f"A body must arrive within {bounds.body_seconds:g} s, "
                f"plus one second for each {bounds.body_rate} bytes."
            )
            self.refuse(SLOW_BODY, "request_timeout", detail)

    def is_loose(self) -> bool:
        """Whether there is no request and no timer for that: line ends between requests stop uvicorn's."""
        cycle: Any = self.cycle
        answered = cycle is None or cycle.response_complete
        return answered and not self.pipeline and self.timeout_keep_alive_task is None

    def _gives_up_sending(self, now: float) -> bool:
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        if not unsent or now - self._unsent_since <= self._bounds.reading_seconds:
            return False
        self._all.count(NOT_READING, self._client)
        self.transport.abort()
        return True


def _answer(status: int, code: str, detail: str, more: bytes = b"") -> bytes:
    request_id = new_request_id()
    body = encode(problem(code, detail, request_id))
    return b"".join((
        STATUS_LINE[status],
        b"content-type: ", PROBLEM_JSON.encode(), b"\r\n",
        b"content-length: %d\r\n" % len(body),
        b"cache-control: no-store\r\n",
        b"x-request-id: ", request_id.encode(), b"\r\n",
        more,
        b"connection: close\r\n\r\n",
        body,
    ))  # fmt: skip
