"""Uses that cost money: a body to a command, through the bus, to an outcome."""

from __future__ import annotations

from typing import Any

from domain.commands import Asking, ChargeUsage, ReserveCredits
from domain.decisions.charging import UseOutcome
from domain.errors import InvalidError, NotFoundError
from domain.keyspaces import Keyspace, shape_of
from keyledger_edge import MALFORMED, MISSING, VALID, Use, fingerprint
from services.api.hot.bodies import MAX_SECRET_LENGTH
from services.api.hot.callers import Caller
from services.api.hot.secret_watch import SecretWatch
from services.ledger.ledger import Ledger

_MISSING = UseOutcome(code=MISSING)
_MALFORMED = UseOutcome(code=MALFORMED)


class Metering:
    """Asks the ledger to charge or to reserve."""

    def __init__(self, ledger: Ledger, watch: SecretWatch) -> None:
        self._ledger = ledger
        self.watch = watch

    def keyspace_of(self, caller: Caller, keyspace_id: str | None) -> Keyspace:
        """The keyspace that a secret is looked for in: the caller's own, or the one it names."""
        bound = caller.keyspace_id
        if keyspace_id is None:
            if bound is None:
                raise InvalidError("keyspace_id", "is required: the root key is bound to no keyspace")
            keyspace_id = bound
        keyspace = self._ledger.state.keyspaces.get(keyspace_id)
        if keyspace is None or (bound is not None and bound != keyspace_id):
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
        """Charge one use, or hold money for it; (what became of it, the position).

        With a keyspace the key is found by its secret, else `ask` names it.
        """
        self.watch.refuse_in(ask["use"], ask["request_id"], ask["metadata"])
        if keyspace is not None:
            # Shape and checksum say no without a look-up.
            if not secret:
                return _MISSING, self._ledger.state.head
            if len(secret) > MAX_SECRET_LENGTH or not shape_of(keyspace).recognises(secret):
                return _MALFORMED, self._ledger.state.head
            ask["fingerprint"] = fingerprint(secret)
            ask["keyspace_id"] = keyspace.id
        self._ledger.must_own()
        done = await self._ledger.bus.submit(command(**ask), asking)
        outcome: UseOutcome = done.result
        if outcome.code == VALID:
            return outcome, outcome.position
        if outcome.key is not None:
            self._ledger.denied(outcome.key.id, outcome.code, ask["request_id"], ask["base_micros"])
        return outcome, done.position


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
