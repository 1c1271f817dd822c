"""Checks a secret against a use from the owner's committed state, without the command queue."""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from domain.keyspaces import Keyspace
from domain.quotas import Refusal, balance_refusal
from keyledger_edge import Verifier
from keyledger_language import (
    NO_USE,
    NOT_FOUND,
    VALID,
    KeyFacts,
    KeyspaceView,
    Use,
    Verdict,
    is_easy,
    judge_use,
)
from keyledger_language.bounded_dicts import BoundedCache, TwoGenerations
from services.api.asking.secrets import Redactor
from services.api.asking.uses import MAX_SECRET_LENGTH
from services.ledger.ledger import Ledger
from services.ledger.owned_facts import OwnedFacts

_REMEMBERED_USES = 100_000
_MOST_VIEWS = 10_000
_MOST_WELCOMES = 100_000
_NOT_FOUND = Verdict(NOT_FOUND)


class Shortfall(Verdict, frozen=True, gc=False, kw_only=True):
    """The verdict if wallet or quota are at zero, and what is left of them."""

    refusal: Refusal


class _Welcome(NamedTuple):
    """A cached verdict, and all that it depends on except time and ownership."""

    facts: KeyFacts
    keyspace: Keyspace
    verdict: Verdict


class Checker:
    """Checks secrets against uses without a cost: with the edge's verifier and what only a ledger knows.

    Only the ledger knows what its callers may see, which requests were counted, and what money is
    left; and it records sightings and denials.
    """

    def __init__(self, ledger: Ledger, redactor: Redactor) -> None:
        self._ledger, self._standing = ledger, ledger.standing
        self._redactor = redactor
        self._books, self._limiter, time = ledger.books, ledger.limiter, ledger.time
        self._facts = OwnedFacts(ledger.standing, ledger.facts.find, time)
        self._find, self._kept = ledger.facts.find, ledger.facts.kept
        self._seen = ledger.seen
        self._now, self._boottime_ns = time.now, time.boottime_ns
        # It gets the present keyspace with each secret, so it need not know any.
        self._verifier = Verifier(self._facts, {}, limiter=self._limiter)
        self._welcomes = BoundedCache[bytes, _Welcome](_MOST_WELCOMES)
        """For keys that only a change can invalidate: valid while facts and keyspace are the same objects."""
        self._welcome_of = self._welcomes.get
        self.counted = TwoGenerations[tuple[str, str], None](_REMEMBERED_USES // 2)
        """(key id, request id) pairs that a rate limit has counted: one `request_id` counts once."""

    def check(
        self,
        secret: str | None,
        keyspace: Keyspace,
        use: Use,
        organization_id: str | None,
        request_id: str | None,
    ) -> Verdict:
        """The verdict on a use without a cost. `organization_id` is the one that the caller is bound to."""
        try:
            # A text that is too long for a secret is not even hashed.
            digest = sha256(secret.encode()).digest() if secret and len(secret) <= MAX_SECRET_LENGTH else b""
        except UnicodeEncodeError:
            digest = b""
        known = self._welcome_of(digest)
        if known is not None:
            facts, shown_to, welcome = known
            if (
                self._kept(digest) is facts
                and shown_to is keyspace
                and self._boottime_ns() < self._standing.owner_until_ns
                and (organization_id is None or facts.organization_id == organization_id)
                and (use is NO_USE or judge_use(facts, use) is VALID)
            ):
                self._seen(facts.key_id, self._now())
                return welcome
        found = self.find(secret, keyspace, organization_id, digest)
        if isinstance(found, Verdict):
            return found
        return self._judged(found, digest, keyspace, use, request_id)

    def _judged(
        self, found: KeyFacts, digest: bytes, keyspace: Keyspace, use: Use, request_id: str | None
    ) -> Verdict:
        counts = request_id is None or (found.key_id, request_id) not in self.counted
        verdict = self._verifier.judge(found, use, counts=counts)
        assert verdict is not None, "a verifier without a ledger to ask always decides"
        if verdict.code != VALID:
            return self._denied(verdict, found, request_id)
        if found.require_balance and (refusal := self._balance(found, use)) is not None:
            if counts and found.rate_limits:
                self._limiter.give_back(found.key_id, found.rate_limits, use.provider)
            short = Shortfall(refusal.code, found, refusal=refusal)
            return self._denied(short, found, request_id)
        if request_id is not None and counts and found.rate_limits:
            self.counted.put((found.key_id, request_id), None)
        self._seen(found.key_id, self._facts.at)
        if digest and is_easy(found):
            self._welcomes.put(digest, _Welcome(found, keyspace, Verdict(VALID, found)))
        return verdict

    def find(
        self,
        secret: str | None,
        keyspace: Keyspace,
        organization_id: str | None,
        digest: bytes = b"",
    ) -> KeyFacts | Verdict:
        """The facts of a secret, or the verdict that there are none; `digest`: the secret's, if known."""
        found = self._verifier.find(secret or "", view_of_keyspace(keyspace), digest)
        if not isinstance(found, KeyFacts):
            if found is None or found.code != NOT_FOUND:
                # Only the owner may answer even without a look-up: keyspaces may have changed.
                self._ledger.must_own()
            assert found is not None, "the owner has all the facts"
            return found
        foreign = organization_id is not None and found.organization_id != organization_id
        return _NOT_FOUND if foreign or keyspace.builtin else found

    def was_counted(self, secret: str | None, request_id: str) -> bool:
        """Whether a rate limit has counted this request id for the secret's key before."""
        facts = self._find(sha256((secret or "").encode("utf-8", "replace")).digest())
        return facts is not None and bool(facts.rate_limits) and self._was_counted(facts.key_id, request_id)

    def _was_counted(self, key_id: str, request_id: str | None) -> bool:
        return request_id is not None and (key_id, request_id) in self.counted

    def _balance(self, facts: KeyFacts, use: Use) -> Refusal | None:
        books = self._books
        return balance_refusal(books, books.keys[facts.key_id], use.project_id, self._facts.at)

    def _denied(self, verdict: Verdict, facts: KeyFacts, request_id: str | None) -> Verdict:
        if request_id is not None and self._redactor.holds_secret(request_id):
            request_id = None
        self._ledger.denied(facts.key_id, verdict.code, request_id)
        return verdict


_VIEWS = BoundedCache[int, tuple[Keyspace, KeyspaceView]](_MOST_VIEWS)
_view_of = _VIEWS.get


def view_of_keyspace(keyspace: Keyspace) -> KeyspaceView:
    """What reading and answering forwarded requests needs of a keyspace; made once for each state of it."""
    known = _view_of(id(keyspace))
    if known is not None and known[0] is keyspace:
        return known[1]
    view = KeyspaceView(
        keyspace_id=keyspace.id,
        name=keyspace.name,
        shape=keyspace.shape,
        credential_locations=keyspace.credential_locations,
        tenant_locations=keyspace.tenant_locations,
        denial_status=keyspace.denial_status,
        require_balance=keyspace.require_balance,
        required_dimensions=keyspace.required_dimensions,
    )
    _VIEWS.put(id(keyspace), (keyspace, view))
    return view
