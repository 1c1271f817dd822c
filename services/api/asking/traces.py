"""What every request is known by: its trace id, where it came from, and how it may be written down."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import ip_address
from time import perf_counter
from typing import Any, Final
from urllib.parse import unquote

from domain.state import State
from keyledger_edge import SecretShape, ip_allowed, redact
from services.api.asking.reading import known_shapes
from services.api.asking.requests import new_request_id
from services.redaction import may_hold_secret, without_long_runs

_KEY: Final = "keyledger.trace"
_MOST_REQUEST_ID: Final = 128
_MOST_USER_AGENT: Final = 256
_MOST_PATH: Final = 256
_UNIX: Final = "unix"


class Trace:
    """One request, as logs, answers and the audit know it."""

    __slots__ = ("caller_id", "code", "request_id", "started")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.started = perf_counter()
        self.caller_id: str | None = None
        self.code: str | None = None


class Redactor:
    """Takes secrets of all keyspaces out of what is shown or written down.

    A process that does not own the partition may not have heard of a keyspace yet. While it is not
    `sure` to know them all, whatever could be a secret is taken for one.
    """

    def __init__(self, state: State, sure: Callable[[], bool]) -> None:
        self._state = state
        self._sure = sure
        self._known: tuple[int, tuple[SecretShape, ...]] = (-1, ())

    @property
    def shapes(self) -> tuple[SecretShape, ...]:
        """What the secrets of all keyspaces look like."""
        # In one step: log lines are written in other threads too.
        keyspaces = tuple(self._state.keyspaces.values())
        mark = sum(keyspace.version for keyspace in keyspaces)
        known = self._known
        if known[0] != mark:
            known = self._known = (mark, tuple(known_shapes(one.shape for one in keyspaces)))
        return known[1]

    def redact(self, text: str) -> str:
        """The text without secrets."""
        if not may_hold_secret(text):
            return text
        told = redact(text, self.shapes)
        return told if self._sure() else without_long_runs(told)

    def holds_secret(self, text: str) -> bool:
        """Is there something in it that looks like a secret of a keyspace that is known here?"""
        return may_hold_secret(text) and any(shape.anywhere.search(text) for shape in self.shapes)

    def may_be_shown(self, text: str) -> bool:
        """Is it certain that there is no secret in it?"""
        return self.redact(text) == text


def trace_of(scope: Any, redactor: Redactor) -> Trace:
    """The trace of a request, begun on first use: the caller's own id if it is sane, else a new one."""
    state: dict[str, Any] = scope.setdefault("state", {})
    trace: Trace | None = state.get(_KEY)
    if trace is None:
        given = header(scope["headers"], b"x-request-id")
        trace = Trace(_sane(given, redactor) or new_request_id())
        state[_KEY] = trace
    return trace


def _sane(given: str | None, redactor: Redactor) -> str | None:
    """The caller's own trace id, where it can stand in headers, logs and the audit."""
    if not given or len(given) > _MOST_REQUEST_ID or not (given.isascii() and given.isprintable()):
        return None
    return given if redactor.may_be_shown(given) else None


def header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """The first value of a header."""
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1").strip()
    return None


def user_agent_of(headers: Iterable[tuple[bytes, bytes]], redactor: Redactor) -> str | None:
    """What the client calls itself, short and in one line."""
    given = header(headers, b"user-agent")
    if not given:
        return None
    printable = "".join(letter if letter.isprintable() else " " for letter in given)
    # Redacted before it is cut: half of a secret is no longer recognised as one.
    return redactor.redact(printable)[:_MOST_USER_AGENT]


def shown_path(path: str, redactor: Redactor) -> str:
    """A path as it may stand in a log line: without its query, and without a secret."""
    text = redactor.redact(unquote(path))[:_MOST_PATH]
    return text if text.isprintable() else ascii(text)[1:-1]


def client_ip(scope: Mapping[str, Any], trusted: Sequence[str]) -> str | None:
    """Where a request came from; forwarded addresses count only from trusted proxies."""
    client = scope.get("client")
    peer: str | None = client[0] if client else None
    networks = tuple(one for one in trusted if one != _UNIX)
    if not _is_trusted(peer, trusted, networks):
        return peer
    listed = header(scope["headers"], b"x-forwarded-for") or ""
    for hop in reversed([one.strip() for one in listed.split(",") if one.strip()]):
        address = _address(hop)
        if address is None:
            return None
        if not ip_allowed(networks, address):
            return address
    return peer


def _is_trusted(peer: str | None, trusted: Sequence[str], networks: tuple[str, ...]) -> bool:
    if not peer:
        return _UNIX in trusted
    return bool(networks) and ip_allowed(networks, peer)


def _address(hop: str) -> str | None:
    try:
        return str(ip_address(hop))
    except ValueError:
        return None
