"""The HTTP protocol with a short path: a request that has arrived whole is answered in the same callback.

ASGI needs a task, an event and three coroutines for every request, which is half of the cost of a small
answer. An application that can answer some requests without waiting declares that (`AnswersAtOnce`), and
gets those as a scope and a body. All other requests, and unusual ones, take the usual path.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, Protocol, cast, runtime_checkable

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from services.api.answering.answers import Answer, lines_of
from services.api.asking.call import HUNG_UP
from services.api.serving.bounded import BODY, HEADERS, SLICE, WHOLE, BoundedProtocol

FRAGMENT: Final = "keyledger.fragment"
"""The extension of a scope whose target contained a `#`: what follows the `#` is not in the scope."""
_CLOSED_BY_PEER: Final = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_MOST_BODY: Final = 65_536
"""A larger body is read by the application itself, at its own pace."""
_MOST_PIECES: Final = 64
"""The same for a body in more pieces: joining them costs the square of their number."""

_FRAGMENT_MARK: Final = 0x23  # searching for a number is faster than for a byte string of length 1
_CLOSE_LINE: Final = b"connection: close\r\n"
_MANNERS: Final = frozenset({b"connection", b"proxy-connection", b"expect"})
"""Headers about the connection: a request with one may want something unusual."""

Scope = MutableMapping[str, Any]


class WholeResponse(Protocol):
    """A whole answer. Its headers have the body's length, and no `Connection`."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers, with names in lower case."""
        ...

    @property
    def body(self) -> bytes:
        """The whole body."""
        ...


class ReplyLater(msgspec.Struct):
    """An answer that waits for a future."""

    future: asyncio.Future[Any]
    reply: Callable[[asyncio.Future[Any]], WholeResponse | None]
    """Called once the future is done, failed or not; None: the request takes the usual path after all."""


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An ASGI application that answers some requests without being awaited."""

    def hears(self, method: bytes, path: bytes) -> bool:
        """Whether a request for this path (as it was sent) may be answered at once."""
        ...

    def at_once(self, scope: Scope, body: bytes) -> WholeResponse | ReplyLater | asyncio.Future[Any] | None:
        """The answer to such a request, or a future of one; None: it takes the usual path. Never raises."""
        ...

    def __call__(self, scope: Scope, receive: Any, send: Any) -> Awaitable[None]:
        """The usual path."""
        ...


class AtOnceProtocol(BoundedProtocol):
    """One connection to an application that answers at once.

    A request is held back from its headers on until its body is whole. Meanwhile `cycle` is that of the
    previous request, as it is between two requests.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._quick = cast(AnswersAtOnce, config.app)
        self._held = self._mannered = False
        self._pieces: tuple[Any, int] = None, 0  # of which request, and how many
        self._take: Callable[[tuple[bytes, bytes]], None] = _nobody_takes
        self._take_trailer: Callable[[tuple[bytes, bytes]], None] = self.on_trailer
        self._method = self._path = self._query = self._body = b""
        self._defaults: list[tuple[bytes, bytes]] = []
        self._default_lines = b""
        self._begun = False
        self._idle_since = 0.0
        self._idle: asyncio.TimerHandle | None = None

    # -- callbacks of the parser

    def on_message_begin(self) -> None:
        """A request begins; its scope for ASGI is made only if ASGI gets it."""
        self.url = b""
        self.headers = []
        self._take = self.headers.append
        self.expect_100_continue = self._mannered = False
        self._begun = True
        self._stage = HEADERS
        self._chunks = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer."""
        name = name.lower()
        self._take((name, value))
        if name in _MANNERS:
            self._mannered = True
            self.expect_100_continue = self.expect_100_continue or name == b"expect"

    def on_headers_complete(self) -> None:
        """Hold the request back if it can be answered at once."""
        parser: Any = self.parser
        method: bytes = parser.get_method()
        path, _, query = self.url.partition(b"?")
        heard = self._quick.hears(method, path)
        # A target that `hears` accepts is a path; any other may not be one.
        if (
            self._fed > self._unmeasured
            or len(self.headers) > self._most_headers
            or not (heard or path[:1] == b"/")
        ):
            self.check_headers()
        if self._mannered and self.begins_again():
            self._held = False
            return
        self._stage = BODY
        self._take = self._take_trailer
        self._method, self._path, self._query, self._body = method, path, query, b""
        cycle: Any = self.cycle  # None before the first request
        self._held = (
            heard
            and (cycle is None or cycle.response_complete)
            and not (query and _FRAGMENT_MARK in query)
            and not self.flow.write_paused
            and parser.should_keep_alive()
            and (not self._mannered or self._is_plain(parser))
        )
        if not self._held:
            self._let_go()

    def _is_plain(self, parser: Any) -> bool:
        """Whether it is plain HTTP/1.1, as a kept-alive request without such headers always is."""
        return parser.get_http_version() == "1.1" and not self.expect_100_continue

    def on_body(self, body: bytes) -> None:
        """A part of the body, or all of it."""
        if not self._held:
            super().on_body(body)
        elif not self._body and len(body) <= _MOST_BODY:
            self._body = body  # nearly always the whole body
        elif self._takes_piece(body):
            self._body += body
            self._fed = SLICE
        else:
            self._let_go()
            super().on_body(body)

    def _takes_piece(self, body: bytes) -> bool:
        if self._pieces[0] is not self.headers:
            self._pieces = self.headers, 1
        self._pieces = self.headers, self._pieces[1] + 1
        return len(self._body) + len(body) <= _MOST_BODY and self._pieces[1] <= _MOST_PIECES

    def on_message_complete(self) -> None:
        """Answer what was held back."""
        if not self._held:
            super().on_message_complete()
            return
        self._stage = WHOLE
        scope: Scope = {
            "type": "http",
            "method": self._method.decode(),
            "path": self._path.decode(),
            "raw_path": self._path,
            "query_string": self._query,
            "headers": self.headers,
            "client": self.client,
        }
        try:
            told = self._quick.at_once(scope, self._body)
        except Exception:
            # If this were raised, the parser would blame the client.
            self.logger.exception("Exception in an answer at once")
            told = None
        if told is None:
            self._let_go()
            HttpToolsProtocol.on_message_complete(self)
            return
        self._held = False
        if isinstance(told, asyncio.Future):
            told = ReplyLater(told, _result_of)
        if isinstance(told, ReplyLater):
            waiting = _Waiting(self, scope, self._body, told)
            self.cycle = cast(RequestResponseCycle, waiting)
            told.future.add_done_callback(waiting.finish)
        else:
            self.say(told)
            self.rest()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection was closed, by the client or here."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._take = self._take_trailer = _nobody_takes
        waiting: Any = self.cycle
        super().connection_lost(exc)
        if isinstance(waiting, _Waiting):
            waiting.give_up()

    def shutdown(self) -> None:
        """Stop, once the request that is arriving is answered, if there is one."""
        if self._held:
            self._let_go()
        super().shutdown()

    def _let_go(self) -> None:
        """The request takes uvicorn's usual path."""
        self._held = False
        url, headers = self.url, self.headers
        HttpToolsProtocol.on_message_begin(self)
        self.url = url
        cast(Any, self.scope)["extensions"] = {HUNG_UP: self.hung_up, FRAGMENT: b"#" in url}
        for name, value in headers:
            HttpToolsProtocol.on_header(self, name, value)
        HttpToolsProtocol.on_headers_complete(self)
        if self._body:
            HttpToolsProtocol.on_body(self, self._body)

    @property
    def holds_back(self) -> bool:
        """Whether the request that is arriving is still held back."""
        return self._held

    @property
    def has_asked(self) -> bool:
        """Whether a request's headers ever arrived whole."""
        return self._method != b""

    def is_loose(self) -> bool:
        """Whether there is no request and no timer that ends the idle connection."""
        return self._idle is None and super().is_loose()

    def hung_up(self) -> bool:
        """Whether the client has closed its end, according to the kernel: the event loop may not know yet."""
        if self.transport.is_closing():
            return True
        looking = select.poll()
        looking.register(self.transport.get_extra_info("socket").fileno(), _CLOSED_BY_PEER)
        return bool(looking.poll(0))

    # -- answering

    def say(self, reply: WholeResponse, *, closing: bool = False) -> None:
        """Write the whole answer."""
        defaults = self.server_state.default_headers
        if defaults is not self._defaults:
            self._defaults = defaults
            self._default_lines = b"".join(b"%b: %b\r\n" % pair for pair in defaults)
        try:
            lines = reply.lines if isinstance(reply, Answer) else lines_of(reply.headers)
        except ValueError:
            self.logger.exception("An answer cannot be written.")
            self.transport.close()
            return
        self.transport.write(
            b"%b%b%b%b\r\n%b"
            % (
                STATUS_LINE[reply.status],
                self._default_lines,
                lines,
                _CLOSE_LINE if closing else b"",
                reply.body,
            )
        )

    # -- between two requests

    def rest(self) -> None:
        """Wait for the next request, as long as connections are kept alive.

        uvicorn sets a timer after each answer and cancels it with the next request; here it is set
        once, and checks for how long nothing arrived.
        """
        self.server_state.total_requests += 1
        self._begun = False
        self._idle_since = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._look_whether_idle)

    def _look_whether_idle(self) -> None:
        self._idle = None
        if self._begun:
            return  # The answer to the request that has begun sets a timer again, uvicorn's or this one.
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._look_whether_idle)
        elif not self.transport.is_closing():
            self.transport.close()

    # -- the usual path after all

    def start_over(self, scope: Scope, body: bytes, *, keep_alive: bool) -> RequestResponseCycle:
        """A request that was answered neither at once nor later takes the usual path."""
        whole = {
            **scope,
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "state": self.app_state.copy(),
            "extensions": {HUNG_UP: self.hung_up},
        }
        cycle = RequestResponseCycle(
            scope=cast(Any, whole),
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += body
        cycle.more_body = False
        cycle.message_event.set()
        self._start_asgi_task(cycle, cast(Any, self.app))
        return cycle


class _Waiting:
    """Takes the place of uvicorn's cycle while a request is being answered."""

    __slots__ = (
        "_body", "_later", "_protocol", "_scope", "disconnected", "keep_alive", "message_event",
        "response_complete",
    )  # fmt: skip

    def __init__(self, protocol: AtOnceProtocol, scope: Scope, body: bytes, later: ReplyLater) -> None:
        self._protocol = protocol
        self._scope = scope
        self._body = body
        self._later = later
        self.disconnected = False
        self.keep_alive = True
        self.response_complete = False
        self.message_event = _NOBODY_WAITS

    def give_up(self) -> None:
        """The client has hung up: cancel what was not begun."""
        self._later.future.cancel()

    def finish(self, future: asyncio.Future[Any]) -> None:
        """Write the answer, now that it is known."""
        protocol = self._protocol
        if future.cancelled():
            protocol.transport.close()
            return
        reply = self._later.reply(future)
        if self.disconnected:
            return
        if reply is None:
            # A request that was pipelined after this one may have become the protocol's cycle.
            last = cast(Any, protocol.cycle) is self
            cycle = protocol.start_over(self._scope, self._body, keep_alive=self.keep_alive)
            if last:
                protocol.cycle = cycle
            return
        self.response_complete = True
        protocol.say(reply, closing=not self.keep_alive)
        if not self.keep_alive:
            protocol.transport.close()
        if self.keep_alive and not protocol.pipeline:
            protocol.rest()
        else:
            protocol.on_response_complete()


def _nobody_takes(_: tuple[bytes, bytes]) -> None:
    """No request is arriving."""


def _result_of(future: asyncio.Future[Any]) -> WholeResponse | None:
    return None if future.exception() is not None else future.result()


class _NobodyWaits:
    """Takes the place of an event that uvicorn sets and nothing waits for."""

    __slots__ = ()

    def set(self) -> None:
        """Do nothing."""


_NOBODY_WAITS: Final = _NobodyWaits()
