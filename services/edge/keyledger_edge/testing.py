"""For your own tests: a ledger in memory that you fill by hand, and real verifiers in front of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count
from typing import Any

from msgspec.structs import replace

from keyledger_edge._leased_cache import UNKNOWN, Unknown
from keyledger_edge._verifier import Verifier
from keyledger_edge.errors import LedgerUnreachableError
from keyledger_language import codes
from keyledger_language.facts import KeyFacts
from keyledger_language.judging import judge
from keyledger_language.messages import FillAnswer, KeyspaceView, VerifyRequest
from keyledger_language.rate_limits import RateLimiter
from keyledger_language.scopes import Scopes
from keyledger_language.secrets import SecretFormat, SecretShape, fingerprint
from keyledger_language.uses import Use
from keyledger_language.verdicts import Verdict, VerifyAnswer


class FakeLedger:
    """Keys that exist only in your test.

    ```python
    ledger = FakeLedger()
    secret = ledger.add_key(scopes=Scopes(models=("small",)))
    app = KeyledgerMiddleware(your_app, ledger.verifier())
    ```
    """

    def __init__(self, *, keyspace: KeyspaceView | None = None, now: Callable[[], float] = time.time) -> None:
        shape = SecretShape(prefix="kl_test_", format=SecretFormat(checksum="crc32"))
        self.keyspace = keyspace or KeyspaceView(keyspace_id="ks_test", name="test", shape=shape)
        self.reachable = True
        """If you set it to False, every use is `ledger_unreachable`."""
        self.charges: dict[str, int] = {}
        """The charges, in micros, by request id."""
        self.at = 0
        self._now = now
        self._facts: dict[bytes, KeyFacts] = {}
        self._numbers = count(1)

    def verifier(self) -> Verifier:
        """A real verifier in front of this ledger. It need not be connected."""
        return Verifier(
            self,
            {self.keyspace.keyspace_id: self.keyspace},
            limiter=RateLimiter(self._now),
            ledger=self,
            memory=self,
        )

    # -- filling it -------------------------------------------------------------------------

    def add_key(self, secret: str | None = None, **facts: Any) -> str:
        """Add a key with these facts (see `KeyFacts`); returns its secret."""
        secret = secret or self.keyspace.shape.generate()
        known: dict[str, Any] = {
            "key_id": f"key_{next(self._numbers)}",
            "keyspace_id": self.keyspace.keyspace_id,
            "organization_id": "org_test",
            "kind": "solo",
            "generation": 1,
            "scopes": Scopes(),
        }
        self._facts[fingerprint(secret)] = KeyFacts(**{**known, **facts})
        return secret

    def change(self, secret: str, **facts: Any) -> None:
        """Change facts of a key, such as `disabled=True`."""
        digest = fingerprint(secret)
        self._facts[digest] = replace(self._facts[digest], **facts)

    def revoke(self, secret: str) -> None:
        """Revoke the key, at once and everywhere."""
        self.change(secret, revoked=True)

    # -- what a verifier asks ---------------------------------------------------------------

    @property
    def has_lease(self) -> bool:
        """Whether the ledger is reachable."""
        return self.reachable

    def now_utc(self) -> int:
        """The time of day, microseconds."""
        return int(self._now() * 1_000_000)

    def facts_of(self, digest: bytes, /) -> KeyFacts | Unknown | None:
        """The facts that were added."""
        self.at = self.now_utc()
        return self._facts.get(digest) if self.reachable else UNKNOWN

    def believes(self, _answer: FillAnswer, /) -> bool:
        """Always true: this ledger has no newer facts."""
        return True

    def filled(self, _digest: bytes, _answer: FillAnswer, /) -> bool:
        """Always true: this ledger has everything in memory already."""
        return True

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:  # noqa: ARG002 - there is only one
        """The facts, as the ledger answers them."""
        self._must_be_reachable()
        return FillAnswer(
            facts=self._facts.get(digest), as_of=0, partition=0, epoch=0, utc=self.now_utc(), lineage=b""
        )

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        """A use with a cost: charged once per request id, without any limit."""
        self._must_be_reachable()
        facts = self._facts.get(fingerprint(request.secret))
        if facts is None:
            return VerifyAnswer(valid=False, code=codes.NOT_FOUND)
        use = Use(
            permissions=request.permissions,
            project_id=request.project_id,
            model=request.model,
            provider=request.provider,
            tenant=request.tenant,
            ip=request.ip,
        )
        code = judge(facts, use, self.now_utc())
        if code == codes.VALID and request.cost_micros is not None:
            name = request.request_id or f"request-{next(self._numbers)}"
            self.charges.setdefault(name, request.cost_micros)
        return Verdict(code, facts).as_answer()

    def _must_be_reachable(self) -> None:
        if not self.reachable:
            raise LedgerUnreachableError("This fake ledger was made unreachable.")
