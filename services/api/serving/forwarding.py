"""Whole requests, forwarded to the process that owns the partition.

Nothing is answered twice and nothing is guessed: a request that was certainly not carried out is sent
again; one that may have been carried out is sent again only if repeating it is harmless, and otherwise
answered with `outcome_unknown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from services.api.answering.problems import ProblemError
from services.api.asking.call import Call, ClientGoneError, Send
from services.api.serving.handing_back import HOP_BY_HOP, Sent, clock_told, hand_back
from services.api.serving.seals import (
    FORWARDED,
    REWRITTEN,
    Headers,
    InTenure,
    Passed,
    Seals,
    target_of,
)
from services.ledger.errors import (
    CannotAnswerError,
    NotOwnerHereError,
    UnavailableError,
    UnknownOutcomeError,
    WaitsForStandbyError,
)

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_SAFE_PATHS: Final = (
    "/v1/verify",
    "/v1/forward-auth",
    "/v1/charges",
    "/v1/reservations",
    "/v1/self",
    "/v1/explain",
    "/v1/edges",
)
"""Repeating requests for these is harmless: those that move money have a request id, so they count once
however often they are sent; the others only ask."""
_ADDRESS_SECONDS: Final = 0.25
_PAUSE_SECONDS: Final = 0.05


class OwnerAt(NamedTuple):
    """The partition's owner."""

    address: str
    """Such as `http://10.0.0.2:8700`."""
    tenure: str
    """Its name for the time since it became the owner."""


class OwnerDirectory(Protocol):
    """Where the partition's owner answers."""

    async def owner_at(self) -> OwnerAt | None:
        """The present owner; None if there is none."""
        ...


class Owning(InTenure, Protocol):
    """Whether this process owns the partition, and whether that is confirmed."""

    @property
    def confirmed(self) -> bool:
        """Whether its ownership is confirmed."""
        ...

    @property
    def reachable(self) -> bool:
        """Whether the log answered when it was last asked."""
        ...

    @property
    def other_history(self) -> CannotAnswerError | None:
        """Why this process neither answers nor forwards; None if nothing prevents that."""
        ...

    @property
    def stands_by(self) -> bool:
        """Whether another process owns the partition."""
        ...

    @property
    def waits_for_standby(self) -> bool:
        """Whether PostgreSQL holds all commits; then no process can answer."""
        ...


_OURS: Final = frozenset(REWRITTEN.values())
"""Headers that only ledger processes may set: the origin of a forwarded request."""

Here = Callable[[Call[Any, Any], Send], Awaitable[None]]


class Forwarder:
    """Forwards requests over connections that are kept alive.

    `key` is a secret that only the processes of one ledger share: they seal forwarded requests with it.
    """

    def __init__(
        self,
        directory: OwnerDirectory,
        ledger: Owning,
        *,
        own_address: str,
        key: Callable[[], bytes | None],
        patience_seconds: float = 5.0,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._own_address = own_address.rstrip("/")
        self._seals = Seals(key, ledger)
        self._patience = patience_seconds
        self._session: aiohttp.ClientSession | None = None
        self._known: OwnerAt | None = None
        self._known_until = 0.0
        self._looking: asyncio.Task[OwnerAt | None] | None = None
        self._clock = ("", 0)
        """The last clock that an owner sent, after the tenure in which it did."""

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def admitted(self, request: Call[Any, Any]) -> Passed | None:
        """What another process added to a request that it forwarded, from `Seals.admitted`."""
        return await self._seals.admitted(request)

    def _reason(self, why: CannotAnswerError) -> CannotAnswerError:
        """Why no process answered in time."""
        if not self._ledger.reachable:
            return _unreachable()
        # Then the owner is gone, and its last commit, which still waits, holds the lock.
        return WaitsForStandbyError() if self._ledger.waits_for_standby else why

    # -- forwarding

    async def forward(self, request: Call[Any, Any], send: Send, here: Here) -> None:
        """Answer a request through the owner, or here once this process owns the partition.

        Raises CannotAnswerError if neither is possible in time, ClientGoneError if the client has hung up.
        """
        _must_name_a_path(request)
        deadline = time.monotonic() + self._patience
        why: CannotAnswerError = NotOwnerHereError("No ledger process owns the partition at the moment.")
        while True:
            request.must_be_waited_for()
            if self._ledger.other_history is not None:
                raise self._ledger.other_history
            if self._ledger.confirmed:
                with contextlib.suppress(NotOwnerHereError):
                    await here(request, send)
                    return
            if self._ledger.waits_for_standby and not self._ledger.stands_by:
                raise WaitsForStandbyError
            try:
                owner = await self._owner()
            except CannotAnswerError as error:
                why, owner = error, None
            if owner is not None and owner.address != self._own_address:
                sent = await self._pass_on(request, owner, send)
                if sent is Sent.ANSWERED:
                    return
                if sent is Sent.UNKNOWN and not may_repeat(request):
                    raise UnknownOutcomeError(
                        "The owner's answer was lost; check whether it was carried out before you try again."
                    )
                self._known_until = 0.0
            if time.monotonic() >= deadline:
                raise self._reason(why)
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _owner(self) -> OwnerAt | None:
        """The owner, looked up at most every quarter of a second."""
        if time.monotonic() < self._known_until:
            return self._known
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> OwnerAt | None:
        try:
            owner = await asyncio.wait_for(self._directory.owner_at(), 2.0)
        except Exception as error:
            if self._known is not None:
                # The directory is down; the owner that was known may still answer.
                return self._known
            raise _unreachable() from error
        finally:
            self._looking = None
        self._known = None if owner is None else owner._replace(address=owner.address.rstrip("/"))
        self._known_until = time.monotonic() + _ADDRESS_SECONDS
        return self._known

    async def _pass_on(self, request: Call[Any, Any], owner: OwnerAt, send: Send) -> Sent:
        sent = await self._pass_on_once(request, owner, send)
        # Its clock is known now, so it is sent again at once, if the client still waits.
        return await self._pass_on_once(request, owner, send) if sent is Sent.TOO_OLD else sent

    async def _pass_on_once(self, request: Call[Any, Any], owner: OwnerAt, send: Send) -> Sent:
        # Checked last: the request of a client that has hung up must not be carried out late.
        request.must_be_waited_for()
        tenure, clock = self._clock
        at = clock if tenure == owner.tenure else 0
        headers = _passed_on_with(request)
        mark = self._seals.mark(request, headers, tenure=owner.tenure, at=at)
        if mark is None:
            return Sent.NOT_CARRIED_OUT
        headers.append((FORWARDED, mark.encode()))
        asking = asyncio.create_task(self._ask(request, owner.address, headers))
        gone = asyncio.create_task(request.gone())
        try:
            while not asking.done():
                await asyncio.wait(
                    {asking, gone}, timeout=2 * _ADDRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if not asking.done() and gone.done():
                    raise ClientGoneError  # The connection to the owner is closed, so it learns of this.
                if not asking.done() and await self._moved(owner):
                    # The owner hangs, and another process has taken over meanwhile.
                    return Sent.UNKNOWN
            response = asking.result()
        except aiohttp.ClientConnectorError:
            return Sent.NOT_CARRIED_OUT
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Sent.UNKNOWN
        finally:
            gone.cancel()
            if not asking.done():
                asking.cancel()
        async with response:
            told = clock_told(response)
            if told is not None and told != at:
                self._clock = (owner.tenure, told)
                return Sent.TOO_OLD
            return await hand_back(response, request, owner.tenure, send)

    async def _moved(self, owner: OwnerAt) -> bool:
        if self._ledger.confirmed:
            return True
        try:
            now = await self._owner()
        except CannotAnswerError:
            return False
        return now is not None and now != owner

    async def _ask(self, request: Call[Any, Any], address: str, headers: Headers) -> aiohttp.ClientResponse:
        method: str = request.scope["method"]
        return await self._connections().request(
            method,
            URL(address + str(target_of(request), "latin-1"), encoded=True),
            headers=CIMultiDict([(str(name, "latin-1"), value.decode()) for name, value in headers]),
            data=request.data or None,
            allow_redirects=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The owner keeps idle connections longer than this side does, so it never closes one that
            # is about to be used.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=20.0, ttl_dns_cache=10)
            self._session = aiohttp.ClientSession(
                connector=connector,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=1.0),
            )
            # aiohttp would repeat a DELETE by itself when a connection breaks; that is decided here.
            self._session._retry_connection = False  # noqa: SLF001  # there is no public way
        return self._session


def may_repeat(request: Call[Any, Any]) -> bool:
    """Whether it is harmless to carry out this request twice."""
    if request.scope["method"] in _SAFE_METHODS:
        return True
    path: str = request.scope["path"]
    if path.startswith(_SAFE_PATHS):
        return True
    return request.idempotency_key is not None


def _unreachable() -> UnavailableError:
    return UnavailableError("postgresql", "PostgreSQL cannot be reached.")


def _must_name_a_path(request: Call[Any, Any]) -> None:
    """Refuse other targets: appended to the owner's address, `*@host/path` would name another host."""
    if not target_of(request).startswith(b"/"):
        raise ProblemError("malformed_request", "The target of a request must begin with a slash.")


def _passed_on_with(request: Call[Any, Any]) -> list[tuple[bytes, bytes]]:
    """The headers that it is forwarded with, without those of the connection to the client."""
    headers = [
        # aiohttp writes UTF-8; a value that is not UTF-8 stays invalid, and is refused there as it is here.
        (REWRITTEN.get(name) or name, value if value.isascii() else value.decode(errors="replace").encode())
        for name, value in request.scope["headers"]
        if name not in HOP_BY_HOP and name not in _OURS
    ]
    # The owner checks the trace id: this process may not know the keyspace of a secret in it yet.
    headers.append((REWRITTEN[b"x-request-id"], (request.own_id or request.request_id).encode()))
    return headers
