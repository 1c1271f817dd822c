"""The caller: the root key in `Authorization: Bearer kl_root_...`, looked up in committed state."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2s, sha256
from typing import Final, NamedTuple, Protocol

import msgspec
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from domain.commands import Asking
from domain.decisions.access import permissions_of
from domain.facts import FactsBook
from domain.keyspaces import ROOT_KEYSPACE_ID
from domain.state import Books
from keyledger_language import VALID, KeyFacts, is_easy, judge_key
from keyledger_language.bounded_dicts import BoundedCache
from services.api.answering.problems import ProblemError, challenge
from services.api.asking.call import CONFLICTING
from services.ledger.ledger_time import LedgerTime

_FORGET_AT: Final = 10_000
_SHOW: Final = "Send a root key: Authorization: Bearer kl_root_..."
_UNAUTHENTICATED: Final = {
    "not_found": "This is not a root key of this ledger.",
    "revoked": "This root key is revoked.",
    "expired": "This root key is expired.",
    "rotated": "This root key's secret was rotated; use its new one.",
    "disabled": "This root key is disabled.",
}
_FORBIDDEN: Final = {
    "organization_suspended": "The organization of this root key is suspended.",
    "ip_denied": "This root key cannot be used from this address.",
}


class _Known(NamedTuple):
    """A caller, and the facts that it depends on."""

    digest: bytes
    facts: KeyFacts
    caller: Caller
    always: bool
    """Whether only a change can invalidate the caller's key."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A root key that was recognised."""

    key_id: str
    organization_id: str | None
    keyspace_id: str | None
    """The keyspace that it is bound to; None: all."""
    permissions: frozenset[str]
    asking: Asking


class CallersLedger(Protocol):
    """What recognising a caller needs of the ledger."""

    books: Books
    facts: FactsBook
    time: LedgerTime


class Callers(Collector):
    """Recognises root keys; each is cached until it changes. Counts those that it refuses."""

    def __init__(self, ledger: CallersLedger) -> None:
        self._books, self._time = ledger.books, ledger.time
        self._facts, self._kept = ledger.facts, ledger.facts.kept
        self._known = BoundedCache[bytes, _Known](_FORGET_AT)
        self._welcome = BoundedCache[bytes, _Known](_FORGET_AT)
        """By a digest of the whole header (BLAKE2s takes half of SHA-256's time, and the digest is used
        nowhere else); only keys that nothing but a change can invalidate."""
        self._welcome_of = self._welcome.get
        self._refused: dict[str, int] = {}
        """How many were refused, by reason."""

    def admit(self, authorization: bytes | None, permissions: tuple[str, ...], peer: str | None) -> Caller:
        """The caller, which must have one of these permissions.

        Raises ProblemError: 401 if it is not recognised, 403 if it is not permitted, 400 if the request
        names two callers.
        """
        known = self._welcome_of(blake2s(authorization or b"").digest())
        if known is not None:
            digest, facts, caller, _ = known
            if self._kept(digest) is not facts:
                caller = self._shown(authorization, peer)
        else:
            caller = self._shown(authorization, peer)
        if caller.permissions.isdisjoint(permissions):
            needed = " or ".join(permissions)
            raise ProblemError(
                "permission_denied", f"This needs a root key with {needed}.", permission=permissions[0]
            )
        return caller

    def _shown(self, authorization: bytes | None, peer: str | None) -> Caller:
        if authorization is CONFLICTING:
            self._count("ambiguous")
            raise ProblemError(
                "ambiguous_credentials", "The request has two Authorization headers; send one."
            )
        if authorization is None or authorization[:7].lower() != b"bearer " or not authorization[7:].strip():
            self._count("missing")
            raise ProblemError("unauthenticated", _SHOW, headers=challenge())
        secret = authorization[7:].strip()
        caller = self.find(secret, peer)
        if isinstance(caller, str):
            raise _refusal(caller)
        known = self._known.get(sha256(secret).digest())
        if known is not None and known.always:
            self._welcome.put(blake2s(authorization).digest(), known)
        return caller

    def find(self, secret: bytes, peer: str | None) -> Caller | str:
        """The caller with this secret, or the code of the reason why there is none."""
        digest = sha256(secret).digest()
        known = self._known.get(digest)
        if known is not None and known.always and self._kept(digest) is known.facts:
            return known.caller
        facts = self._facts.find(digest)
        if facts is None or facts.keyspace_id != ROOT_KEYSPACE_ID:
            return self._count("not_found")
        # Only whether the root key works is checked here; the calling function checks its permissions.
        code = judge_key(facts, peer, self._time.now())
        if code != VALID:
            return self._count(code)
        if known is not None and known.facts is facts:
            return known.caller
        return self._gather(digest, facts)

    def _count(self, reason: str) -> str:
        self._refused[reason] = self._refused.get(reason, 0) + 1
        return reason

    def collect(self) -> Iterator[Metric]:
        """For Prometheus: shows guessed root keys, and keys that are still used after their end."""
        refused = CounterMetricFamily(
            "keyledger_root_keys_refused", "Requests refused because of their root key.", labels=["reason"]
        )
        for reason, times in self._refused.items():
            refused.add_metric([reason], times)
        yield refused

    def _gather(self, digest: bytes, facts: KeyFacts) -> Caller:
        key = self._books.keys[facts.key_id]
        caller = Caller(
            key_id=key.id,
            organization_id=key.organization_id,
            keyspace_id=key.bound_keyspace_id,
            permissions=permissions_of(key),
            asking=Asking(
                actor=key.id, organization_id=key.organization_id, keyspace_id=key.bound_keyspace_id
            ),
        )
        self._known.put(digest, _Known(digest, facts, caller, is_easy(facts)))
        return caller


def _refusal(code: str) -> ProblemError:
    if code in _FORBIDDEN:
        return ProblemError(code, _FORBIDDEN[code])
    detail = _UNAUTHENTICATED.get(code, "This root key does not work.")
    return ProblemError("unauthenticated", detail, headers=challenge("invalid_token"))
