"""The result of a check: the verdict, and its form as JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec

from keyledger_language import codes
from keyledger_language.facts import KeyFacts
from keyledger_language.rate_limits import RateState
from keyledger_language.scopes import Scopes

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class VerifyAnswer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A verdict as JSON, from the ledger and from a sidecar alike."""

    valid: bool
    code: str
    key_id: str | None = None
    organization_id: str | None = None
    name: str | None = None
    kind: Literal["solo", "client", "platform"] | None = None
    owner_id: str | None = None
    environment: str | None = None
    plan_id: str | None = None
    scopes: Scopes | None = None
    metadata: dict[str, Any] | None = None
    expires_at: str | None = None
    quotas: list[dict[str, Any]] | None = None
    wallet_available_micros: int | None = None
    rate_limits: list[RateLimitAnswer] | None = None
    charge: dict[str, Any] | None = None
    reservation: dict[str, Any] | None = None
    refusal: dict[str, Any] | None = None
    replayed: bool | None = None
    position: str | None = None

    def rate_states(self) -> tuple[RateState, ...]:
        """The states of the rate limits."""
        return tuple(
            RateState(one.name, one.limit, one.window_seconds, one.remaining, one.reset_seconds)
            for one in self.rate_limits or ()
        )


class RateLimitAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one rate limit after the check."""

    name: str
    """The limit's name."""
    limit: int
    """The most requests in a window."""
    window_seconds: int
    """How long a window is."""
    remaining: int
    """How many requests are left now."""
    reset_seconds: int
    """Seconds until the window ends, rounded up."""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """Whether a secret is valid for a use, and if not, why not."""

    code: str
    facts: KeyFacts | None = None
    """What is known of the key; None if it was not looked up or does not exist."""
    rate_limits: tuple[RateState, ...] = ()
    answer: VerifyAnswer | None = None
    """The ledger's own answer, if the ledger was asked (uses with a cost)."""
    prefix: str = "0-"
    """The prefix of the log's positions in the epoch that the facts are from."""

    @property
    def valid(self) -> bool:
        """Whether the use is granted."""
        return self.code == codes.VALID

    @property
    def key_id(self) -> str | None:
        """The key's id, if the secret is known."""
        return self.facts.key_id if self.facts else self.answer.key_id if self.answer else None

    @property
    def organization_id(self) -> str | None:
        """The id of the organization that owns the key."""
        if self.facts:
            return self.facts.organization_id
        return self.answer.organization_id if self.answer else None

    @property
    def plan_id(self) -> str | None:
        """The id of the key's plan."""
        return self.facts.plan_id if self.facts else self.answer.plan_id if self.answer else None

    @property
    def position(self) -> str | None:
        """The log position up to which the verdict's facts are known to be true."""
        if self.facts:
            return f"{self.prefix}{self.facts.as_of}"
        return self.answer.position if self.answer else None

    def as_answer(self) -> VerifyAnswer:
        """The verdict in its form as JSON."""
        return self.answer or _answer(self)


UNREACHABLE = Verdict(codes.LEDGER_UNREACHABLE)
MISSING = Verdict(codes.MISSING)
MALFORMED = Verdict(codes.MALFORMED)
NOT_FOUND = Verdict(codes.NOT_FOUND)


def _answer(verdict: Verdict) -> VerifyAnswer:
    answer = VerifyAnswer(valid=verdict.valid, code=verdict.code, position=verdict.position)
    if verdict.rate_limits:
        answer.rate_limits = [RateLimitAnswer(**one._asdict()) for one in verdict.rate_limits]
    if verdict.facts is not None:
        _describe(answer, verdict.facts)
    return answer


def _describe(answer: VerifyAnswer, facts: KeyFacts) -> None:
    answer.key_id = facts.key_id
    answer.organization_id = facts.organization_id
    answer.name = facts.name
    answer.kind = facts.kind
    answer.owner_id = facts.owner_id
    answer.environment = facts.environment
    answer.plan_id = facts.plan_id
    answer.scopes = facts.scopes
    answer.metadata = facts.metadata
    answer.expires_at = None if facts.expires_at is None else _to_text(facts.expires_at)


def _to_text(at: int) -> str:
    moment = _EPOCH + timedelta(microseconds=at)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
