"""What an unknown client may use of an HTTP server: bounds on every connection, and counts of refusals."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

import msgspec
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.settings import Settings

log: Final = structlog.get_logger()

_SWEEP_SECONDS: Final = 1.0
_LOG_SECONDS: Final = 10.0
"""Each kind of refusal is logged at most this often, with its number."""
_MOST_CONNECTIONS: Final = 10_000
_FEWEST_CONNECTIONS: Final = 16
_RESERVED_FILES: Final = 256
"""Open files that are reserved for PostgreSQL, NATS, other ledgers and the log."""


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What one client, and all clients together, may use before they are authenticated."""

    header_bytes: int = 32_768
    """The most bytes of a request's headers, and of its trailers: names and values, and 4 for each."""
    headers: int = 100
    url_bytes: int = 8_192
    header_seconds: float = 10.0
    """From the start of a connection, or a request's first byte, to the end of its headers."""
    body_seconds: float = 30.0
    """For a body; it gets one more second for each `body_rate` bytes that arrived."""
    body_rate: int = 16_384
    reading_seconds: float = 30.0
    """How long a client may read nothing of its answer before it is disconnected."""
    connections: int | None = None
    """The most open connections; None: what the process's limit of open files allows."""
    sweep_seconds: float = _SWEEP_SECONDS
    """How often all connections are checked."""


def bounds_of(settings: Settings) -> Bounds:
    """The bounds that the operator has set."""
    return Bounds(
        header_bytes=settings.max_header_bytes,
        headers=settings.max_headers,
        url_bytes=settings.max_url_bytes,
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        connections=settings.max_connections,
    )


class ConnectionRefusal(msgspec.Struct, frozen=True):
    """One kind of refusal."""

    reason: str
    """Its name, for metrics and the log."""
    sentence: str
    """What happened and what to do about it, for the log."""


TOO_MANY: Final = ConnectionRefusal(
    "too_many_connections",
    "Too many connections are open: see KEYLEDGER_MAX_CONNECTIONS and the limit of open files.",
)
GAVE_WAY: Final = ConnectionRefusal(
    "gave_way",
    "All connections were in use, and one that had sent no request yet was closed for a new one: "
    "see KEYLEDGER_MAX_CONNECTIONS.",
)
SILENT: Final = ConnectionRefusal(
    "silent", "A client connected and sent nothing: closed after KEYLEDGER_HEADER_SECONDS."
)
SLOW_HEADERS: Final = ConnectionRefusal(
    "slow_headers", "A request's headers did not arrive within KEYLEDGER_HEADER_SECONDS: answered 408."
)
SLOW_BODY: Final = ConnectionRefusal(
    "slow_body", "A request's body arrived too slowly for KEYLEDGER_BODY_SECONDS: answered 408."
)
LARGE_HEADERS: Final = ConnectionRefusal(
    "headers_too_large",
    "A request's headers exceed KEYLEDGER_MAX_HEADER_BYTES or KEYLEDGER_MAX_HEADERS: answered 431.",
)
LONG_URL: Final = ConnectionRefusal(
    "url_too_long", "A request's URL is longer than KEYLEDGER_MAX_URL_BYTES: answered 414."
)
MALFORMED: Final = ConnectionRefusal("malformed", "A client's request is not valid HTTP: answered 400.")
NOT_READING: Final = ConnectionRefusal(
    "not_reading", "A client does not read its answer: the connection is closed after 30 seconds."
)
OUT_OF_FILES: Final = ConnectionRefusal(
    "out_of_files",
    "The process has reached its limit of open files, and cannot accept connections: "
    "raise its limit of open files, or lower KEYLEDGER_MAX_CONNECTIONS.",
)
REFUSALS: Final = (
    TOO_MANY, GAVE_WAY, SILENT, SLOW_HEADERS, SLOW_BODY, LARGE_HEADERS, LONG_URL, MALFORMED, NOT_READING,
    OUT_OF_FILES,
)  # fmt: skip
"""All kinds of refusals."""


class Connection(Protocol):
    """One connection, as `Connections` checks it."""

    @property
    def is_new(self) -> bool:
        """Whether it is open and has sent no request's headers yet."""
        ...

    def look(self, now: float, passed: float) -> None:
        """Do what is due; `passed` is the time since the last look."""
        ...

    def give_way(self) -> None:
        """Close, to make room for another connection."""
        ...


class Connections(Collector):
    """All connections of one server.

    `now` is the server's own time: it stops while the process does not run, so that no client is
    refused because the process itself was too slow to read.
    """

    def __init__(self, bounds: Bounds | None = None) -> None:
        self.bounds = bounds or Bounds()
        self.now = 0.0
        self.most = self.bounds.connections or _most_connections()
        self.refused = dict.fromkeys((one.reason for one in REFUSALS), 0)
        """How many connections and requests were refused, by reason."""
        self._open: set[Connection] = set()
        self._newcomers: deque[Connection] = deque()
        self._logged = dict(self.refused)
        self._logged_at: dict[str, float] = {}
        self._last_client: dict[str, str | None] = {}

    @property
    def open(self) -> int:
        """How many are open."""
        return len(self._open)

    def admit(self, connection: Connection) -> bool:
        """Whether it may stay. If all are in use, the oldest that has sent no request yet gives way."""
        if len(self._open) >= self.most and not self._made_room():
            return False
        self._open.add(connection)
        self._newcomers.append(connection)
        return True

    def _made_room(self) -> bool:
        while self._newcomers:
            oldest = self._newcomers.popleft()
            if oldest.is_new:
                self._open.discard(oldest)
                oldest.give_way()
                return True
        return False

    def lost(self, connection: Connection) -> None:
        """It is closed."""
        self._open.discard(connection)

    def count(self, refusal: ConnectionRefusal, client: str | None = None) -> None:
        """Count a refusal; the next sweep logs it."""
        self.refused[refusal.reason] += 1
        self._last_client[refusal.reason] = client

    async def watch(self) -> None:
        """Check all connections regularly, until cancelled."""
        seconds, last = self.bounds.sweep_seconds, time.monotonic()
        try:
            while True:
                await asyncio.sleep(seconds)
                last, before = time.monotonic(), last
                self.sweep(min(last - before, 2 * seconds))
                self._look_for_files()
        finally:
            self._say(always=True)

    def sweep(self, passed: float) -> None:
        """Advance the time by this much, and check all connections."""
        self.now += passed
        for connection in [*self._open]:
            connection.look(self.now, passed)
        while self._newcomers and not self._newcomers[0].is_new:
            self._newcomers.popleft()
        self._say()

    def _look_for_files(self) -> None:
        # uvloop accepts and closes connections that it has no file for, and does not report it.
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno in {errno.EMFILE, errno.ENFILE}:
                self.count(OUT_OF_FILES)

    def _say(self, *, always: bool = False) -> None:
        for refusal in REFUSALS:
            reason = refusal.reason
            times = self.refused[reason] - self._logged[reason]
            at = time.monotonic()
            if times and (always or at - self._logged_at.get(reason, -_LOG_SECONDS) >= _LOG_SECONDS):
                self._logged[reason], self._logged_at[reason] = self.refused[reason], at
                log.warning(
                    "connections.refused",
                    reason=reason,
                    times=times,
                    last_client=self._last_client.get(reason),
                    problem=refusal.sentence,
                )

    def exposition(self) -> bytes:
        """Prometheus text, for a server that has no registry."""
        registry = CollectorRegistry()
        registry.register(self)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        refused = CounterMetricFamily(
            "keyledger_connections_refused",
            "Connections and requests refused before they were read.",
            labels=["reason"],
        )
        for reason, times in self.refused.items():
            refused.add_metric([reason], times)
        yield refused
        yield GaugeMetricFamily("keyledger_open_connections", "Open HTTP connections.", value=self.open)
        yield GaugeMetricFamily(
            "keyledger_most_connections", "The most connections that may be open.", value=self.most
        )


def _most_connections() -> int:
    try:
        import resource  # noqa: PLC0415  # not on Windows
    except ImportError:
        return _MOST_CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    left = files - min(_RESERVED_FILES, files // 2)
    return max(_FEWEST_CONNECTIONS, min(left, _MOST_CONNECTIONS))
