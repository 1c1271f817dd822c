"""Where a request came from, and how it may be logged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import unquote

from keyledger_language import ip_allowed
from services.api.asking.secrets import Redactor

_MOST_USER_AGENT: Final = 256
_MOST_PATH: Final = 256
_UNIX: Final = "unix"


def header(headers: Iterable[tuple[bytes, bytes]], wanted: bytes) -> str | None:
    """The first value of a header."""
    for name, value in headers:
        if name == wanted:
            return value.decode("latin-1").strip()
    return None


def user_agent_of(headers: Iterable[tuple[bytes, bytes]], redactor: Redactor) -> str | None:
    """The client's User-Agent, shortened, in one line and redacted."""
    given = header(headers, b"user-agent")
    if not given:
        return None
    printable = "".join(letter if letter.isprintable() else " " for letter in given)
    # Redacted before it is cut: half of a secret would not be recognised.
    return redactor.redact(printable)[:_MOST_USER_AGENT]


def shown_path(path: str, redactor: Redactor) -> str:
    """A path for a log line: without its query, and without secrets."""
    text = redactor.redact(unquote(path))[:_MOST_PATH]
    return text if text.isprintable() else ascii(text)[1:-1]


def client_ip(scope: Mapping[str, Any], trusted: Sequence[str]) -> str | None:
    """The address that a request came from; forwarded addresses count only from trusted proxies."""
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
