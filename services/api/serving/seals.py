"""The seal of a request that one ledger process passes on to another: nobody else can make or change one.

It covers all that the owner acts on: method, path and query, body, every header, the client's address,
and for which owner, when and which time it was sent. What is changed, cut, swapped or sent twice on the
way is refused. Headers that are added on the way are left out: a proxy that speaks TLS for the owner adds
some. It may rewrite those that tell where a request came from, so these travel under another name.
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
"""The header that holds the mark: what a process says of a request that it passes on."""
OF_THE_CONNECTION: Final = frozenset(
    {b"connection", b"content-length", b"host", b"transfer-encoding", FORWARDED}
)
"""Headers that HTTP clients write by themselves. They are passed on by nobody, and no route reads them."""
REWRITTEN: Final = {
    name: b"x-keyledger-was-" + name
    for name in (
        b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-method",
        b"x-forwarded-port", b"x-forwarded-prefix", b"x-forwarded-proto", b"x-forwarded-server",
        b"x-forwarded-uri", b"x-real-ip", b"x-request-id",
    )
}  # fmt: skip
"""Headers that proxies write, and the names under which they are passed on."""
_ITS_NAME: Final[dict[bytes, bytes]] = {passed_on: name for name, passed_on in REWRITTEN.items()}
_MARK: Final = re.compile(
    r"2;(?P<at>\d{1,12});(?P<signature>[0-9a-f]{64});(?P<said>(?P<tenure>[0-9a-f]{1,64});(?P<past>\d{1,18});"
    r"(?P<sender>[0-9a-f]{16});(?P<number>\d{1,18});(?P<names>[0-9a-f]*);(?P<peer>.*))"
)
"""It begins as the marks of earlier versions, which sealed less: their processes, too, see that it is a
mark which they cannot check, and do not take it for a client's own header."""
_OTHER_MARK: Final = re.compile(r"\d+;\d{1,12};[0-9a-f]{64};.*")
"""The mark of another version. Anything else under that name is a client's own."""
_SEALED: Final = b"keyledger forwards 4"
"""What is sealed, and in which version."""
_MARK_SECONDS: Final = 60
"""So long may a mark be under way, by the owner's clock alone."""
_UNDER_WAY: Final = 16_384
"""So many requests of one process may overtake another of it."""

log = structlog.get_logger(__name__)

Headers = Sequence[tuple[bytes, bytes]]


class InTenure(Protocol):
    """Does this process own the partition, and since which take-over?"""

    @property
    def owner(self) -> bool:
        """Does it?"""
        ...

    @property
    def tenure(self) -> str:
        """Another one each time."""
        ...


class Passed(NamedTuple):
    """What another process of this ledger says of a request that it passes on."""

    peer: str
    """The client's address; empty: a unix socket."""
    waited_past: int
    """Up to which refusal its client is known to have waited."""
    headers: Headers
    """Those that the client sent, by their own names."""


class NotMeantForUsError(NotOwnerHereError):
    """The seal is right, so a process of this ledger made it; but not for this owner, or too long ago."""

    def __init__(self, detail: str, clock: int | None = None) -> None:
        super().__init__(detail)
        self.clock = clock
        """What this owner's clock shows, where the mark is too old: another is to be made with it."""


class Seals:
    """Makes marks and checks them.

    `key` is a secret that all processes of one ledger share, and nobody else has. None: it is not known yet.
    """

    def __init__(self, key: Callable[[], bytes | None], ledger: InTenure) -> None:
        self._key = key
        self._ledger = ledger
        self._name = os.urandom(8).hex()
        self._numbers = count(1)
        self._taken = _Taken()
        self._silent_until = 0

    def mark(self, request: Call[Any, Any], headers: Headers, *, tenure: str, at: int) -> str | None:
        """What to say of it to the owner in that tenure; None while the key is not known.

        `headers` are those that it is passed on with, in small letters and as they go over the wire. Each
        mark is good for sending the request once.
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
        """What another process says of it; None: no process of ours said this, it is a client's own.

        Reads the body. Raises NotOwnerHereError for a mark that does not fit the request, was made for
        another owner, is old, or cannot be checked (a process that has just started may not know the key
        yet). To pass such a request on would make two tries of one; nor may it be decided, for whoever sent
        it may have gone on to another owner. Raises UnknownOutcomeError for one that came before, which may
        be carried out.
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
            raise NotMeantForUsError("This process is not the owner that the request was passed on to.")
        clock = _own_clock()
        if not 0 <= clock - at <= _MARK_SECONDS:
            raise NotMeantForUsError(
                "The request was under way for too long, or its mark is of another time.", clock
            )
        if not self._taken.first(found["sender"], int(found["number"]), clock):
            raise UnknownOutcomeError("This request came before, with the same seal: it may be carried out.")
        own = [(_ITS_NAME.get(name) or name, value) for name, value in headers]
        return Passed(found["peer"], int(found["past"]), own)

    def _tell_of_it(self, request: Call[Any, Any]) -> None:
        """A proxy may do this to all requests; a client may to its own, so it is told seldom."""
        clock = _own_clock()
        if clock >= self._silent_until:
            self._silent_until = clock + _MARK_SECONDS
            log.warning("forwarding.seal_broken", sender=request.peer)


class _Taken:
    """Which numbers the processes beside this one have used up. As many processes as sent one lately."""

    def __init__(self) -> None:
        self._senders: dict[str, _Sender] = {}

    def first(self, sender: str, number: int, now: int) -> bool:
        """Take a number. False: it was taken before, or is so far behind that nobody knows."""
        one = self._senders.get(sender)
        if one is None:
            # All marks of a process that was not heard of for so long are too old.
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
    """A process beside this one."""

    __slots__ = "heard_at", "highest"

    def __init__(self) -> None:
        self.heard_at = 0
        self.highest = array("Q", bytes(8 * _UNDER_WAY))
        """The highest number that was taken, of all that leave the same remainder."""


def target_of(request: Call[Any, Any]) -> bytes:
    """Path and query, as they were asked for."""
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
    # HTTP leaves the order of headers open, but for those of one name.
    for pair in sorted(headers, key=itemgetter(0)):
        parts += pair
    # With their lengths, so that nothing can move from one part into the next.
    text = b"".join([b"%d:%b" % (len(part), part) for part in parts])
    return hmac.digest(key, text, "sha256").hex()


def _short(name: bytes) -> str:
    """A header's name in 8 digits. Where another has the same, it is taken for sealed, and does not fit."""
    return f"{crc32(name):08x}"


def _names_in(text: str) -> frozenset[str]:
    return frozenset(text[at : at + 8] for at in range(0, len(text), 8))


def _own_clock() -> int:
    """The clock that marks are judged by: nobody but this process, as the owner, reads or compares it."""
    return int(time.monotonic())


def _does_not_fit() -> NotOwnerHereError:
    return NotOwnerHereError("What was passed on was changed on the way, or by a process of another version.")
