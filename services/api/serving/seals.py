"""The seal of a request that one ledger process forwards to another: no one else can make or change one.

It covers all that the owner acts on: method, path and query, body, every header, the client's address,
the owner that it is for, when it was sent, and its number. A request that is changed, cut, swapped or sent
twice on the way is refused. Headers that are added on the way are dropped: a proxy that terminates TLS for
the owner adds some. It may rewrite headers about a request's origin, so these are sent under other names.
"""

from __future__ import annotations

import hmac
import os
import re
import time
from array import array
from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import count
from operator import itemgetter
from typing import Any, Final, NamedTuple, Protocol
from zlib import crc32

import structlog

from services.api.asking.call import CONFLICTING, Call
from services.ledger.errors import NotOwnerHereError, UnknownOutcomeError

FORWARDED: Final = b"x-keyledger-forwarded"
"""The header with the mark that a process adds to a request that it forwards."""
OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"content-length", b"host", b"transfer-encoding", FORWARDED}
)
"""Headers that HTTP clients write by themselves. They are not forwarded, and no route reads them."""
REWRITTEN: Final = {
    name: b"x-keyledger-was-" + name
    for name in (
        b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-method",
        b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-proto", b"x-forwarded-server",
        b"x-forwarded-uri", b"x-real-ip", b"x-request-id",
    )
}  # fmt: skip
"""Headers that proxies write, and the names under which they are forwarded."""
_ITS_NAME: Final[dict[bytes, bytes]] = {passed_on: name for name, passed_on in REWRITTEN.items()}
_MARK: Final = re.compile(
    r"2;(?P<at>\d{1,12});(?P<signature>[0-9a-f]{64});(?P<said>(?P<tenure>[0-9a-f]{1,64});(?P<past>\d{1,18});"
    r"(?P<sender>[0-9a-f]{16});(?P<number>\d{1,18});(?P<names>[0-9a-f]*);(?P<peer>.*))"
)
"""It begins like the marks of earlier versions, which sealed less: so their processes recognise it as a
mark that they cannot check, and not as a client's own header."""
_OTHER_MARK: Final = re.compile(r"\d+;\d{1,12};[0-9a-f]{64};.*")
"""The mark of another version. Anything else in that header is a client's own."""
_SEALED: Final = b"keyledger forwards 4"
"""The purpose and version of the seal."""
_MARK_SECONDS: Final = 60
"""How long a mark may take to arrive, by the owner's clock alone."""
_UNDER_WAY: Final = 16_384
"""How many requests of one process may overtake another one of it."""

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[bytes, bytes]]


class InTenure(Protocol):
    """Whether this process owns the partition, and since which take-over."""

    @property
    def owner(self) -> bool:
        """Whether it owns the partition."""
        ...

    @property
    def tenure(self) -> str:
        """The present tenure; each one has another name."""
        ...


class Passed(NamedTuple):
    """What another process of this ledger adds to a request that it forwards."""

    peer: str
    """The client's address; empty: a unix socket."""
    waited_past: int
    """The last refusal that its client is known to have waited past."""
    headers: Headers
    """The headers that the client sent, under their own names."""


class NotMeantForUsError(NotOwnerHereError):
    """The seal is valid, so a process of this ledger made it; but not for this owner, or too long ago."""

    def __init__(self, detail: str, clock: int | None = None) -> None:
        super().__init__(detail)
        self.clock = clock
        """This owner's clock, if the mark is too old: the sender has to make another mark with it."""


class Seals:
    """Makes marks and checks them.

    `key` is a secret that only the processes of one ledger share. None: it is not known yet.
    """

    def __init__(self, key: Callable[[], bytes | None], ledger: InTenure) -> None:
        self._key = key
        self._ledger = ledger
        self._name = os.urandom(8).hex()
        self._numbers = count(1)
        self._taken = _Taken()
        self._silent_until = 0

    def mark(self, request: Call[Any, Any], headers: Headers, *, tenure: str, at: int) -> str | None:
        """The mark of a request, for the owner in that tenure; None while the key is not known.

        `headers` are those that it is forwarded with, in lower case and as they are sent. Each mark is
        valid for sending the request once.
        """
        key = self._key()
        if key is None:
            return None
        client = request.scope.get("client")
        past = request.waited_past if request.refused_in == tenure else 0
        names = "".join(sorted({_short(name) for name, _ in headers}))
        said = f"{tenure};{past};{self._name};{next(self._numbers)};{names};{client[0] if client else ''}"
        return f"2;{at};{_signature(key, request, at, said, headers)};{said}"

    async def admitted(self, request: Call[Any, Any]) -> Passed | None:
        """What another process added to it; None if the header is not a mark, but a client's own.

        Reads the body. Raises NotOwnerHereError for a mark that does not match the request, was made for
        another owner, is too old, or cannot be checked (a process that has just started may not know the
        key yet). Forwarding such a request would turn one try into two; nor may it be decided, since its
        sender may have tried another owner already. Raises UnknownOutcomeError for one that was received
        before, since that may have been carried out.
        """
        if request.forwarded == CONFLICTING:
            raise _does_not_fit()
        text = str(request.forwarded or b"", "latin-1")
        found = _MARK.fullmatch(text)
        if found is None:
            if _OTHER_MARK.fullmatch(text) is not None:
                raise _does_not_fit()
            return None
        await request.read()
        key, at = self._key(), int(found["at"])
        if key is None:
            raise _does_not_fit()
        names = _names_in(found["names"])
        headers = [pair for pair in request.scope["headers"] if _short(pair[0]) in names]
        if not hmac.compare_digest(found["signature"], _signature(key, request, at, found["said"], headers)):
            self._tell_of_it(request)
            raise _does_not_fit()
        if not self._ledger.owner or found["tenure"] != self._ledger.tenure:
            raise NotMeantForUsError("This process is not the owner that the request was forwarded to.")
        clock = _own_clock()
        if not 0 <= clock - at <= _MARK_SECONDS:
            raise NotMeantForUsError(
                "The request took too long to arrive, or its mark is of another time.", clock
            )
        if not self._taken.first(found["sender"], int(found["number"]), clock):
            raise UnknownOutcomeError(
                "This request came before, with the same seal: it may have been carried out."
            )
        own = [(_ITS_NAME.get(name) or name, value) for name, value in headers]
        return Passed(found["peer"], int(found["past"]), own)

    def _tell_of_it(self, request: Call[Any, Any]) -> None:
        """Log a broken seal, seldom: a proxy may break all seals, a client those of its own requests."""
        clock = _own_clock()
        if clock >= self._silent_until:
            self._silent_until = clock + _MARK_SECONDS
            log.warning("forwarding.seal_broken", sender=request.peer)


class _Taken:
    """The numbers that other processes have used, of all processes that sent one lately."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}

    def first(self, sender: str, number: int, now: int) -> bool:
        """Take a number. False if it was taken before, or is so far behind that this is not known."""
        one = self._senders.get(sender)
        if one is None:
            # All marks of a process that sent none for so long are too old.
            self._senders = {
                name: each for name, each in self._senders.items() if now - each.heard_at <= _MARK_SECONDS
            }
            one = self._senders[sender] = _Sender()
        one.heard_at = now
        slot = number % _UNDER_WAY
        if one.highest[slot] >= number:
            return False
        one.highest[slot] = number
        return True


class _Sender:
    """Another process of this ledger."""

    __slots__ = "heard_at", "highest"

    def __init__(self) -> None:
        self.heard_at = 0
        self.highest = array("Q", bytes(8 * _UNDER_WAY))
        """The highest number that was taken, of all with the same remainder."""


def target_of(request: Call[Any, Any]) -> bytes:
    """Path and query, as they were sent."""
    scope = request.scope
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    query: bytes = scope["query_string"]
    return b"%b?%b" % (path, query) if query else path


def _signature(key: bytes, request: Call[Any, Any], at: int, said: str, headers: Headers) -> str:
    parts = [
        _SEALED,
        b"%d" % at,
        said.encode("utf-8", "surrogateescape"),
        request.scope["method"].encode(),
        target_of(request),
        sha256(request.data).digest(),
    ]
    # HTTP does not fix the order of headers, except of those with the same name.
    for pair in sorted(headers, key=itemgetter(0)):
        parts += pair
    # With their lengths, so that nothing can move from one part into the next.
    text = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return hmac.digest(key, text, "sha256").hex()


def _short(name: bytes) -> str:
    """A header's name in 8 digits. Another header with the same digits counts as sealed and does not fit."""
    return f"{crc32(name):08x}"


def _names_in(text: str) -> frozenset[str]:
    return frozenset(text[at : at + 8] for at in range(0, len(text), 8))


def _own_clock() -> int:
    """The clock by which marks are judged: only this process, as the owner, reads and compares it."""
    return int(time.monotonic())


def _does_not_fit() -> NotOwnerHereError:
    return NotOwnerHereError("The request was changed on the way, or by a process of another version.")
