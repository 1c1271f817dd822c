"""The HTTP client of the command line: JSON, on the standard library, for a quick start."""

from __future__ import annotations

import http.client
import ssl
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from services.cli.faults import UNREACHABLE, CommandError, LedgerProblemError
from services.cli.version import program_version

TIMEOUT_SECONDS: Final = 30.0
_TRIES: Final = 3
_LONGEST_WAIT_SECONDS: Final = 2.0
_UNAVAILABLE: Final = 503
_REFUSALS: Final = 400
_LONGEST_PAGE: Final = 500

Document = dict[str, Any]
"""A JSON object."""


class ApiClient:
    """One ledger, called with one root key."""

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
        """GET; parameters that are None are left out."""
        return self.ask("GET", _with_query(path, query))

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, named: bool = True) -> Document:
        """POST, carried out once even if the connection to the ledger breaks.

        `named` is False for requests that need no Idempotency-Key: money, which has its request id, and
        questions.
        """
        headers = {"Idempotency-Key": f"cli-{uuid.uuid4()}"} if named else {}
        return self.ask("POST", path, body or {}, headers)

    def patch(self, path: str, body: Mapping[str, Any]) -> Document:
        """PATCH: change some fields."""
        return self.ask("PATCH", path, body, {"Idempotency-Key": f"cli-{uuid.uuid4()}"})

    def delete(self, path: str) -> Document:
        """DELETE."""
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
        """One request; a 503 with `Retry-After`, of a busy ledger or a new owner, is tried twice more."""
        return _document(self._answered(method, path, body, headers or {})[1])

    def text(self, path: str, **query: Any) -> tuple[str, str | None]:
        """A page that is not a JSON document, unchanged, and the cursor of the next."""
        said, answer = self._answered("GET", _with_query(path, query), None, {"Accept": "*/*"})
        return answer.decode(), said.get("X-Next-Cursor")

    def lines(self, path: str, headers: Mapping[str, str], *, silence_seconds: float) -> Iterator[bytes]:
        """The lines of an answer that continues until the ledger ends it.

        If nothing comes for `silence_seconds`, it is ended with a `CommandError`.
        """
        connection = self._new_connection(silence_seconds)
        with closing(connection):
            try:
                connection.request("GET", self._base + path, headers=self._headers(headers))
                answer = connection.getresponse()
                if answer.status >= _REFUSALS:
                    raise LedgerProblemError(answer.status, _problem(answer.status, answer.read()))
                yield from answer
            except (OSError, http.client.HTTPException) as error:
                raise self._unreachable(error) from None

    def _answered(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> tuple[http.client.HTTPMessage, bytes]:
        for attempt in range(1, _TRIES + 1):
            status, said, answer = self._exchange(method, path, body, headers)
            if status < _REFUSALS:
                return said, answer
            wait = said.get("Retry-After", "")
            if status != _UNAVAILABLE or attempt == _TRIES or not wait.isdecimal():
                raise LedgerProblemError(status, _problem(status, answer))
            time.sleep(min(float(wait), _LONGEST_WAIT_SECONDS))
        raise AssertionError("the last try answers or raises")

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        sent = self._headers(headers)
        data = None
        if body is not None:
            data = msgspec.json.encode(body)
            sent["Content-Type"] = "application/json"
        kept = self._connection is not None
        try:
            return self._exchange_once(method, path, data, sent)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not kept or isinstance(error, TimeoutError):
                raise self._unreachable(error) from None
        # The ledger closed an idle connection, for example while a person was asked. If it received this
        # request, it still counts once: every write has an Idempotency-Key or a request id.
        try:
            return self._exchange_once(method, path, data, sent)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None

    def _exchange_once(
        self, method: str, path: str, data: bytes | None, sent: Mapping[str, str]
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        if self._connection is None:
            self._connection = self._new_connection(TIMEOUT_SECONDS)
        self._connection.request(method, self._base + path, body=data, headers=sent)
        answer = self._connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def _headers(self, more: Mapping[str, str]) -> dict[str, str]:
        sent = {"Accept": "application/json", "User-Agent": f"keyledger-cli/{program_version()}", **more}
        if self._root_key is not None:
            sent["Authorization"] = f"Bearer {self._root_key}"
        return sent

    def _new_connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(
                self._host, self._port, timeout=timeout, context=ssl.create_default_context()
            )
        return http.client.HTTPConnection(self._host, self._port, timeout=timeout)

    def _unreachable(self, error: Exception) -> CommandError:
        return CommandError(
            f"No ledger answers at {self.url}: {_reason(error)}. Is it running (`keyledger up`), "
            "and is KEYLEDGER_URL right?",
            code="ledger_unreachable",
            exit_code=UNREACHABLE,
        )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None


def path_part(text: str) -> str:
    """A name that the caller gave, as a part of a path."""
    return quote(text, safe="")


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name: _written(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


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
            "The server at this address is not a ledger: its answer is not JSON.",
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
        "detail": f"The server answered {status} without a reason.",
        "code": "refused",
    }


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
