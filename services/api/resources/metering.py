"""Uses that cost money: from a body to a command, through the command queue, to an outcome."""

from __future__ import annotations

from typing import Any

from domain.commands import Asking, ChargeUsage, ReserveCredits
from domain.decisions.charging import UseOutcome
from domain.errors import InvalidError, NotFoundError
from domain.keyspaces import Keyspace
from domain.money import ONE
from keyledger_language import MALFORMED, MISSING, VALID, Use, fingerprint
from services.api.answering.problems import ProblemError
from services.api.answering.refusals import use_refused
from services.api.asking.callers import Caller
from services.api.asking.uses import MAX_SECRET_LENGTH
from services.ledger.jobs import Done
from services.ledger.ledger import Ledger
from services.ledger.sightings import Refused

_MISSING = UseOutcome(code=MISSING)
_MALFORMED = UseOutcome(code=MALFORMED)


class MeteringCalls:
    """Tells the ledger to charge or to reserve."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._books = ledger.books

    def keyspace_of(self, caller: Caller, keyspace_id: str | None) -> Keyspace:
        """The keyspace in which a secret is looked up: the caller's own, or the one that it names."""
        bound = caller.keyspace_id
        if keyspace_id is None:
            if bound is None:
                raise InvalidError("keyspace_id", "is required: the root key is bound to no keyspace")
            keyspace_id = bound
        keyspace = self._books.keyspaces.get(keyspace_id)
        if keyspace is None or keyspace.archived or (bound is not None and bound != keyspace_id):
            raise NotFoundError("keyspace", keyspace_id, field="keyspace_id")
        return keyspace

    async def ask(
        self,
        command: type[ChargeUsage | ReserveCredits],
        ask: dict[str, Any],
        secret: str | None,
        keyspace: Keyspace | None,
        asking: Asking,
    ) -> tuple[UseOutcome, int]:
        """Charge one use, or hold money for it; returns the outcome and its position.

        With a keyspace the key is found by its secret; otherwise `ask` names it.
        """
        if keyspace is not None:
            shown = shown_to(keyspace, secret)
            if isinstance(shown, UseOutcome):
                return shown, self._books.head
            ask["fingerprint"] = shown
            ask["keyspace_id"] = keyspace.id
        asks = command(**ask)
        return self.outcome_of(asks, await self.ledger.execute(asks, asking))

    def outcome_of(self, command: ChargeUsage | ReserveCredits, done: Done) -> tuple[UseOutcome, int]:
        """The outcome and its position; a refusal is recorded."""
        outcome: UseOutcome = done.result
        if outcome.code == VALID:
            return outcome, outcome.position
        if outcome.key is not None:
            plan = self._books.plans.get(outcome.key.plan_id or "")
            asked_for = Refused(
                command.request_id,
                command.base_micros,
                ONE if plan is None else plan.price_multiplier,
                command.use,
                command.metadata,
            )
            self.ledger.denied(outcome.key.id, outcome.code, asked_for)
        return outcome, done.position

    def refused(self, outcome: UseOutcome, keyspace: Keyspace | None, position: int) -> ProblemError:
        """A refused use as a problem, with the position on which it was decided."""
        if keyspace is None and outcome.key is not None:
            keyspace = self._books.keyspaces.get(outcome.key.keyspace_id)
        return use_refused(outcome.code, keyspace, outcome.refusal, outcome.rates, position=position)


def shown_to(keyspace: Keyspace, secret: str | None) -> bytes | UseOutcome:
    """The secret's fingerprint; or the outcome that shape and checksum give without a look-up."""
    if not secret:
        return _MISSING
    if len(secret) > MAX_SECRET_LENGTH or not keyspace.shape.recognises(secret):
        return _MALFORMED
    return fingerprint(secret)


def asked(
    *, request_id: str, base_micros: int, use: Use, metadata: dict[str, Any] | None, count_rate: bool = False
) -> dict[str, Any]:
    """The fields that charging and reserving have in common."""
    return {
        "request_id": request_id,
        "base_micros": base_micros,
        "use": use,
        "metadata": metadata,
        "count_rate": count_rate,
    }
