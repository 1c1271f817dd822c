"""A small HTTP/1.1 client: keeps connections alive, supports only POST, needs only asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from keyledger_edge.errors import LedgerUnreachableError

_MAX_BODY: Final = 16 * 1024 * 1024
_MAX_IDLE: Final = 32
_NO_BODY: Final = frozenset({204, 304})


class HttpReply(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


class _BrokenError(Exception):
    """The connection failed; `early` if it did before the first byte of an answer."""

    def __init__(self, *, early: bool) -> None:
        super().__init__()
        self.early = early


class _Connection:
    """One connection, for one exchange at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.reusable = True

    async def exchange(self, request: bytes) -> HttpReply:
        """Send a request, read its answer."""
        try:
            self._writer.write(request)
            await self._writer.drain()
            line = await self._reader.readline()
        except OSError:
            raise _BrokenError(early=True) from None
        except ValueError:  # A line without an end: the server does not speak HTTP.
            raise _BrokenError(early=False) from None
        if not line:
            raise _BrokenError(early=True)
        try:
            return await self._read(line)
        except (OSError, ValueError, IndexError, asyncio.IncompleteReadError):
            raise _BrokenError(early=False) from None

    async def _read(self, status_line: bytes) -> HttpReply:
        version, status = status_line.split()[:2]
        headers = await self._headers()
        self.reusable = version == b"HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
        return HttpReply(int(status), await self._body(int(status), headers))

    async def _headers(self) -> dict[bytes, bytes]:
        headers: dict[bytes, bytes] = {}
        while (line := await self._reader.readline()).strip():
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        if not line:
            raise asyncio.IncompleteReadError(b"", None)
        return headers

    async def _body(self, status: int, headers: dict[bytes, bytes]) -> bytes:
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            return await self._chunks()
        if (length := headers.get(b"content-length")) is not None:
            return await self._reader.readexactly(_bounded(int(length)))
        if status in _NO_BODY:
            return b""
        self.reusable = False
        return await self._reader.read(_MAX_BODY)

    async def _chunks(self) -> bytes:
        body = bytearray()
        while size := int((await self._reader.readline()).partition(b";")[0], 16):
            _bounded(len(body) + size)
            body += await self._reader.readexactly(size)
            await self._reader.readline()
        await self._headers()
        return bytes(body)

    def close(self) -> None:
        """Drop the connection; unsent data is lost."""
        with contextlib.suppress(Exception):
            self._writer.transport.abort()


def _bounded(length: int) -> int:
    if not 0 <= length <= _MAX_BODY:
        raise ValueError(length)
    return length


class HttpClient:
    """POSTs JSON to one server. `http://`, `https://` and `unix:/path` addresses."""

    def __init__(
        self, url: str, key: str, *, max_connections: int = 32, tls: ssl.SSLContext | None = None
    ) -> None:
        self._unix = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urlsplit("http://localhost" if self._unix else url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("The ledger's address must look like https://host:port.")
        secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port or (443 if secure else 80)
        self._path = parts.path.rstrip("/")
        self._tls = tls or (ssl.create_default_context() if secure else None)
        self._head = f"Host: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n".encode()
        self._idle: list[_Connection] = []
        self._max_connections = max_connections
        self._free: asyncio.Semaphore | None = None
        self._generation = 0

    async def post(self, path: str, body: bytes, *, seconds: float) -> HttpReply:
        """The answer, whatever its status; LedgerUnreachableError if none comes in time.

        A request may be sent twice, so use this only for requests that may safely be repeated.
        """
        if self._free is None:
            self._free = asyncio.Semaphore(self._max_connections)
        try:
            async with asyncio.timeout(seconds), self._free:
                return await self._try(self._request(path, body))
        except (OSError, TimeoutError, _BrokenError) as failure:
            raise LedgerUnreachableError(f"The ledger did not answer ({type(failure).__name__}).") from None

    def _request(self, path: str, body: bytes) -> bytes:
        head = f"POST {self._path}{path} HTTP/1.1\r\n".encode()
        rest = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        return head + self._head + rest + body

    async def _try(self, request: bytes) -> HttpReply:
        while self._idle:
            # An idle connection may have been closed by the other side: that is not a failure yet.
            try:
                return await self._on(self._idle.pop(), request)
            except _BrokenError as broken:
                if not broken.early:
                    raise
        return await self._on(await self._connect(), request)

    async def _on(self, connection: _Connection, request: bytes) -> HttpReply:
        generation, done = self._generation, False
        try:
            reply = await connection.exchange(request)
            done = connection.reusable and generation == self._generation
            return reply
        finally:
            if done and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
            else:
                connection.close()

    async def _connect(self) -> _Connection:
        if self._unix is not None:
            return _Connection(*await asyncio.open_unix_connection(self._unix))
        name = self._host if self._tls else None
        return _Connection(
            *await asyncio.open_connection(self._host, self._port, ssl=self._tls, server_hostname=name)
        )

    def close(self) -> None:
        """Drop all connections."""
        self._generation += 1
        while self._idle:
            self._idle.pop().close()

    def forget(self) -> None:
        """After a fork: open connections belong to the parent, and must not be touched."""
        self._generation += 1
        self._idle = []
        self._free = None
