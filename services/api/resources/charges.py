"""`POST /v1/charges`, `/v1/charges/batch` and `/v1/charges/{id}/refund`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from domain.commands import ChargeUsage, RefundCharge
from domain.decisions.charging import UseOutcome
from domain.decisions.wallets import RefundOutcome
from domain.errors import InvalidError, NotFoundError
from domain.events import UsageCharged
from domain.ids import format_position, is_id
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.quotas import QuotaState, Refusal, quota_states
from keyledger_edge import STATUS_OF_CODE, VALID, RateState, Use
from services.api.answering.answers import (
    Answer,
    Headers,
    Later,
    awaited,
    encode,
    json_answer,
    problem_answer,
    raw_answer,
)
from services.api.answering.money import (
    ChargeAnswer,
    charge_view,
    quota_views,
    refund_view,
    refusal_view,
    view_of_charge,
    wallet_view,
)
from services.api.answering.problems import TABLE, problem_body
from services.api.asking.callers import Caller, Callers
from services.api.asking.requests import HotRequest
from services.api.asking.uses import (
    ChargeBody,
    MeteringBody,
    read_charge,
    read_charge_batch,
    read_refund,
    use_of,
)
from services.api.resources.metering import Metering, shown_to
from services.ledger.errors import RefusedLatelyError
from services.ledger.jobs import Done
from services.ledger.ledger import Ledger

PERMISSION = "charges:write"
_CREATED = 201
_UNAUTHORIZED, _FORBIDDEN = 401, 403


class Charges:
    """Spends money, and gives it back."""

    def __init__(self, ledger: Ledger, callers: Callers, metering: Metering) -> None:
        self._ledger = ledger
        self._callers = callers
        self._metering = metering

    def one(self, request: HotRequest) -> Answer | Later:
        """One charge."""
        caller = self._callers.authenticate(request.authorization, PERMISSION, request.peer)
        return self._charge(read_charge(request.body), caller, request.request_id)

    async def batch(self, request: HotRequest) -> Answer:
        """Many charges, in order, each on its own."""
        caller = self._callers.authenticate(request.authorization, PERMISSION, request.peer)
        items = read_charge_batch(request.body)
        results = await asyncio.gather(
            *(self._item(one, index, caller, request.request_id) for index, one in enumerate(items))
        )
        position = format_position(self._ledger.position_prefix, self._ledger.state.head)
        return raw_answer(
            200, b'{"results":[' + b",".join(results) + b'],"position":' + encode(position) + b"}"
        )

    async def _item(self, body: ChargeBody | Exception, index: int, caller: Caller, request_id: str) -> bytes:
        """An item's answer, with the status that it would have had alone."""
        name = f"{request_id}.{index}"
        try:
            if isinstance(body, Exception):
                raise body  # noqa: TRY301  # it is answered as if it had been raised alone
            answer = await awaited(self._charge(body, caller, name))
        except RefusedLatelyError:
            raise  # The whole batch is sent once more; what was granted of it is a replay then.
        except Exception as error:  # noqa: BLE001  # each item on its own: its error is its answer
            return self._metering.watch.error_answer(error, name).body
        return answer.body if answer.code != "ok" else b'{"status":%d,%s' % (answer.status, answer.body[1:])

    def _charge(self, body: ChargeBody, caller: Caller, request_id: str) -> Answer | Later:
        metering = self._metering
        keyspace, use = check_metering(metering, body, caller)
        metering.watch.refuse_in(use, body.request_id, body.metadata)
        shown = None if keyspace is None else shown_to(keyspace, body.secret)
        if isinstance(shown, UseOutcome):
            return self.refused(shown, keyspace, request_id, self._ledger.state.head)
        command = ChargeUsage(
            key_id=body.key_id,
            fingerprint=shown,
            keyspace_id=None if keyspace is None else keyspace.id,
            request_id=body.request_id,
            base_micros=body.amount_micros,
            use=use,
            metadata=body.metadata,
        )
        future = metering.submit(command, caller.asking)
        return Later(future, partial(self._charged, command, keyspace, request_id))

    def _charged(
        self, command: ChargeUsage, keyspace: Keyspace | None, request_id: str, done: Done
    ) -> Answer:
        outcome, position = self._metering.outcome_of(command, done)
        if outcome.code != VALID:
            return self.refused(outcome, keyspace, request_id, position)
        event = outcome.event
        assert isinstance(event, UsageCharged), "a charge records a charge"
        charge = view_of_charge(event, position, self._ledger.position_prefix)
        quotas = quota_views(outcome.quotas) if outcome.quotas else []
        told = ChargeAnswer(charge, charge.position, outcome.replayed, quotas, wallet_view(outcome.wallet))
        return json_answer(_CREATED, told)

    def refused(
        self, outcome: UseOutcome, keyspace: Keyspace | None, request_id: str, position: int
    ) -> Answer:
        """A refused use as a problem, with the position on which it was decided."""
        if keyspace is None and outcome.key is not None:
            keyspace = self._ledger.state.keyspaces.get(outcome.key.keyspace_id)
        answer = refused(outcome.code, keyspace, request_id, outcome.refusal, outcome.rates)
        return placed(answer, self._ledger.position_prefix, position)

    # -- refunds

    async def refund(self, request: HotRequest, charge_id: str) -> Answer:
        """Give back a charge, in part or whole."""
        caller = self._callers.authenticate(request.authorization, PERMISSION, request.peer)
        body = read_refund(request.body)
        self._metering.watch.refuse(body.request_id, "request_id")
        if not is_id("chg", charge_id):
            raise NotFoundError("charge", charge_id)
        command = RefundCharge(
            charge_id=charge_id, request_id=body.request_id, amount_micros=body.amount_micros
        )
        done = await self._ledger.execute(command, caller.asking)
        outcome: RefundOutcome = done.result
        return json_answer(_CREATED, self._refunded(outcome))

    def _refunded(self, outcome: RefundOutcome) -> dict[str, Any]:
        prefix = self._ledger.position_prefix
        key = self._ledger.state.keys.get(outcome.event.key_id)
        charge = charge_view(outcome.charge, 0, prefix)
        del charge["position"]
        charge["refunded_micros"] = outcome.event.refunded_micros
        return {
            "refund": refund_view(outcome.event, outcome.position, prefix),
            "charge": charge,
            "position": format_position(prefix, outcome.position),
            "replayed": outcome.replayed,
            "quotas": quota_views(quotas_of(self._ledger, key, outcome.event.project_id)),
            "wallet": wallet_view(outcome.wallet),
        }


def quotas_of(ledger: Ledger, key: Key | None, project_id: str | None) -> tuple[QuotaState, ...]:
    """Where the quotas of a key stand in committed state."""
    if key is None:
        return ()
    state = ledger.state
    return quota_states(state, key, max(ledger.clock.now(), state.at), project_id)


def check_metering(metering: Metering, body: MeteringBody, caller: Caller) -> tuple[Keyspace | None, Use]:
    """The keyspace of the secret (None: the key is named by its id) and the use."""
    use = use_of(body, permissions=body.permissions, ip=body.ip)
    if body.secret is None:
        if body.key_id is None:
            raise InvalidError("secret", "secret or key_id is required")
        return None, use
    if body.key_id is not None:
        raise InvalidError("key_id", "secret or key_id, not both")
    return metering.keyspace_of(caller, body.keyspace_id), use


def refused(
    code: str,
    keyspace: Keyspace | None,
    request_id: str,
    refusal: Refusal | None = None,
    rates: tuple[RateState, ...] = (),
) -> Answer:
    """A verdict as a problem: forward-auth's status, but 403 in place of 401 (that is the caller's own)."""
    mapped = keyspace.denial_status.get(code) if keyspace is not None else None
    status = mapped or STATUS_OF_CODE[code]
    if status == _UNAUTHORIZED:
        status = _FORBIDDEN
    body = problem_body(
        code, _detail(code, refusal), request_id, status=status, refusal=refusal_view(refusal)
    )
    headers: Headers = []
    if rates:
        headers.append((b"retry-after", b"%d" % max(1, *(one.reset_seconds for one in rates))))
    return problem_answer(body, status, code, headers)


def placed(answer: Answer, prefix: str, position: int) -> Answer:
    """A refusal says, too, on which state it was decided. What was written since is not in it."""
    answer.headers.append((b"x-keyledger-position", format_position(prefix, position).encode()))
    return answer


def _detail(code: str, refusal: Refusal | None) -> str:
    title = TABLE[code].title if code != "not_found" else "There is no such secret"
    if refusal is None:
        return f"{title}."
    window = f" per {refusal.window}" if refusal.window not in (None, "total") else ""
    # A wallet's limit is its credit limit: what is left is no part of that.
    limit = "" if refusal.level == "wallet" else f" of {refusal.limit}"
    return f"{title}: {refusal.remaining}{limit} {refusal.unit}{window} are left."
