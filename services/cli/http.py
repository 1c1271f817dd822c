"""How the command line talks to a ledger: HTTP and JSON, on the standard library, for a quick start."""

from __future__ import annotations

import http.client
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import msgspec

from services.cli.faults import UNREACHABLE, CommandError, ProblemError

TIMEOUT_SECONDS: Final = 30.0
_TRIES: Final = 3
_LONGEST_WAIT_SECONDS: Final = 2.0
_UNAVAILABLE: Final = 503
_REFUSALS: Final = 400
_LONGEST_PAGE: Final = 500

Document = dict[str, Any]
"""A JSON object."""


class LedgerClient:
    """One ledger, as one root key."""

    def __init__(self, url: str, root_key: str | None) -> None:
        self.url = url.rstrip("/")
        self._root_key = root_key
        parts = urlsplit(self.url)
        self._base = parts.path
        self._secure = parts.scheme == "https"
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port
        self._connection: http.client.HTTPConnection | None = None

    def get(self, path: str, **query: Any) -> Document:
        """Read something; parameters that are None are left out."""
        given = {name: _written(value) for name, value in query.items() if value is not None}
        return self.ask("GET", f"{path}?{urlencode(given)}" if given else path)

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, named: bool = True) -> Document:
        """Ask for something to be done, once even when the way to the ledger breaks.

        Not `named` is what needs no Idempotency-Key: money, which has its request id, and questions.
        """
        headers = {"Idempotency-Key": f"cli-{uuid.uuid4()}"} if named else {}
        return self.ask("POST", path, body or {}, headers)

    def patch(self, path: str, body: Mapping[str, Any]) -> Document:
        """Change some fields."""
        return self.ask("PATCH", path, body, {"Idempotency-Key": f"cli-{uuid.uuid4()}"})

    def delete(self, path: str) -> Document:
        """Take something away."""
        return self.ask("DELETE", path, None, {"Idempotency-Key": f"cli-{uuid.uuid4()}"})

    def pages(self, path: str, *, limit: int, **query: Any) -> Iterator[Document]:
        """The items of a list, page by page, `limit` of them at most."""
        cursor: str | None = None
        while limit > 0:
            page = self.get(path, **query, limit=min(limit, _LONGEST_PAGE), cursor=cursor)
            yield from page["items"][:limit]
            limit -= len(page["items"])
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Document:
        """One exchange; a ledger that is busy or changing hands is asked again, politely."""
        for attempt in range(1, _TRIES + 1):
            status, said, answer = self._exchange(method, path, body, headers or {})
            if status < _REFUSALS:
                return _document(answer)
            wait = said.get("Retry-After", "")
            if status != _UNAVAILABLE or attempt == _TRIES or not wait.isdecimal():
                raise ProblemError(status, _problem(status, answer))
            time.sleep(min(float(wait), _LONGEST_WAIT_SECONDS))
        raise AssertionError("the last try answers or raises")

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        sent = dict(headers) | {"Accept": "application/json"}
        if self._root_key is not None:
            sent["Authorization"] = f"Bearer {self._root_key}"
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            sent["Content-Type"] = "application/json"
        try:
            connection = self._connect()
            connection.request(method, self._base + path, body=data, headers=sent)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise CommandError(
                f"No ledger answers at {self.url}: {_reason(error)}. Is it running (`keyledger up`), "
                "and is KEYLEDGER_URL right?",
                code="ledger_unreachable",
                exit_code=UNREACHABLE,
            ) from None

    def _connect(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._secure:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=TIMEOUT_SECONDS, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        return self._connection

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _document(answer: bytes) -> Document:
    if not answer:
        return {}
    try:
        found = msgspec.json.decode(answer)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        raise CommandError(
            "What answers there is no ledger: it does not speak JSON.",
            code="no_ledger",
            exit_code=UNREACHABLE,
        )
    return found


def _problem(status: int, answer: bytes) -> Document:
    with suppress(msgspec.DecodeError):
        found = msgspec.json.decode(answer)
        if isinstance(found, dict) and "code" in found:
            return found
    return {
        "type": "about:blank",
        "title": http.client.responses.get(status, "Refused"),
        "status": status,
        "detail": f"The server answered {status} without saying why.",
        "code": "refused",
    }


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
