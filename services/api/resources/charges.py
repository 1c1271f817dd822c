"""`POST /v1/charges`, `/v1/charges/batch` and `/v1/charges/{id}/refund`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Final

from domain.commands import ChargeUsage, RefundCharge
from domain.decisions.charging import UseOutcome
from domain.decisions.wallets import RefundOutcome
from domain.errors import InvalidError, NotFoundError
from domain.ids import format_position, is_id
from domain.keyspaces import Keyspace
from domain.quotas import QuotaState, quota_states
from keyledger_language import VALID, Use
from keyledger_language.events import UsageCharged
from services.api.answering.answers import (
    Answer,
    Later,
    awaited,
    encode,
    json_answer,
    place_line,
    results_answer,
)
from services.api.answering.money import (
    ChargedView,
    RefundedView,
    charge_view,
    refund_view,
    refunded_charge_view,
    wallet_figures,
)
from services.api.answering.problems import ProblemError
from services.api.answering.quotas import quota_figures
from services.api.answering.refusals import use_refused
from services.api.answering.verdicts import ChargesView
from services.api.asking.call import Call
from services.api.asking.callers import Caller
from services.api.asking.uses import ChargeBatchBody, ChargeBody, MeteringBody, RefundBody, use_of
from services.api.operations import OWN_KEY, Reply, operation
from services.api.resources.metering import MeteringCalls, shown_to
from services.api.resources.verdicts import MONEY, VERDICTS
from services.ledger.errors import RefusedLatelyError
from services.ledger.jobs import Done

PERMISSION: Final = "charges:write"
_CREATED: Final = 201
_EXAMPLE: Final = {
    "key_id": "key_01JD0000000000000000000000",
    "request_id": "r-1",
    "amount_micros": 1_500,
}


@operation(
    "POST",
    "/v1/charges",
    operation_id="createCharge",
    tag="Charges",
    summary="Charge one use",
    description="A `request_id` counts once, for ever: a repeated request gets the first outcome.",
    permissions=(PERMISSION,),
    quick=True,
    body=ChargeBody,
    status=_CREATED,
    shown_at="/v1/charges/{charge_id}",
    answer=ChargedView,
    codes=(*VERDICTS, *MONEY),
    instead_of_a_key=OWN_KEY,
    example=_EXAMPLE,
)
def charge(call: Call[Any, ChargeBody]) -> Later:
    """One charge."""
    return _charge(call, call.body)


@operation(
    "POST",
    "/v1/charges/batch",
    operation_id="createCharges",
    tag="Charges",
    summary="Charge many uses, each on its own",
    permissions=(PERMISSION,),
    quick=True,
    body=ChargeBatchBody,
    items=ChargeBody,
    answer=ChargesView,
    instead_of_a_key=OWN_KEY,
    example={"items": [_EXAMPLE]},
)
async def charge_many(call: Call[Any, list[ChargeBody | ProblemError]]) -> Answer:
    """Many charges, in order, each on its own."""
    results = await asyncio.gather(*(_item(call, index) for index in range(len(call.body))))
    return results_answer(call, results)


async def _item(call: Call[Any, list[ChargeBody | ProblemError]], index: int) -> bytes:
    """An item's answer, with the status that it would have if it were sent alone."""
    body = call.body[index]
    try:
        if isinstance(body, ProblemError):
            raise body  # noqa: TRY301  # it is answered as if it had been sent alone
        answer = await awaited(_charge(call, body))
    except RefusedLatelyError:
        raise  # The whole batch is sent once more; its granted items are replays then.
    except Exception as error:  # noqa: BLE001  # each item on its own: its error is its answer
        return call.api.refusals.answer(error, f"{call.request_id}.{index}").body
    return b'{"status":%d,%b' % (answer.status, answer.body[1:])


def _charge(call: Call[Any, Any], body: ChargeBody) -> Later:
    metering, caller = call.api.metering, call.caller
    keyspace, use = check_metering(metering, body, caller)
    shown = None if keyspace is None else shown_to(keyspace, body.secret)
    if isinstance(shown, UseOutcome):
        raise use_refused(shown.code, keyspace, position=call.ledger.head)
    command = ChargeUsage(
        key_id=body.key_id,
        fingerprint=shown,
        keyspace_id=None if keyspace is None else keyspace.id,
        request_id=body.request_id,
        base_micros=body.amount_micros,
        use=use,
        metadata=body.metadata,
    )
    return Later(call.ledger.execute(command, caller.asking), partial(_charged, metering, command, keyspace))


def _charged(metering: MeteringCalls, command: ChargeUsage, keyspace: Keyspace | None, done: Done) -> Answer:
    outcome, position = metering.outcome_of(command, done)
    if outcome.code != VALID:
        raise metering.refused(outcome, keyspace, position)
    event, place = outcome.event, format_position(metering.ledger.position_prefix, position)
    assert isinstance(event, UsageCharged), "a charge records a charge"
    told = ChargedView(
        charge=charge_view(event, place),
        position=place,
        replayed=outcome.replayed,
        quotas=quota_figures(outcome.quotas) if outcome.quotas else [],
        wallet=wallet_figures(outcome.wallet),
    )
    answer = json_answer(_CREATED, encode(told), position)
    answer.place = place_line(place)
    answer.more = b"location: /v1/charges/" + event.charge_id.encode() + b"\r\n"
    return answer


@operation(
    "POST",
    "/v1/charges/{charge_id}/refund",
    operation_id="refundCharge",
    tag="Charges",
    summary="Refund a charge, in part or whole",
    permissions=(PERMISSION,),
    body=RefundBody,
    status=_CREATED,
    answer=RefundedView,
    codes=("not_found", "refund_exceeds_charge", "idempotency_conflict"),
    instead_of_a_key=OWN_KEY,
    example={"request_id": "refund-1", "amount_micros": 500},
)
async def refund(call: Call[Any, RefundBody]) -> Reply:
    """Refund a charge, in part or whole."""
    charge_id, body, ledger = call.path["charge_id"], call.body, call.ledger
    if not is_id("chg", charge_id):
        raise NotFoundError("charge", charge_id)
    command = RefundCharge(charge_id=charge_id, request_id=body.request_id, amount_micros=body.amount_micros)
    done = await ledger.execute(command, call.caller.asking)
    outcome: RefundOutcome = done.result
    event, prefix = outcome.event, ledger.position_prefix
    view = RefundedView(
        refund=refund_view(event, outcome.position, prefix),
        charge=refunded_charge_view(outcome.charge, event.refunded_micros),
        position=format_position(prefix, outcome.position),
        replayed=outcome.replayed,
        quotas=quota_figures(quotas_of(call, event.key_id, event.project_id)),
        wallet=wallet_figures(outcome.wallet),
    )
    return Reply(view, _CREATED, position=outcome.position)


def quotas_of(call: Call[Any, Any], key_id: str, project_id: str | None) -> tuple[QuotaState, ...]:
    """The quotas of a key and what is left of them, in committed state."""
    key = call.books.keys.get(key_id)
    return () if key is None else quota_states(call.books, key, call.now, project_id)


def check_metering(
    metering: MeteringCalls, body: MeteringBody, caller: Caller
) -> tuple[Keyspace | None, Use]:
    """The keyspace of the secret (None: the key is named by its id) and the use."""
    use = use_of(body, permissions=body.permissions, ip=body.ip)
    if body.secret is None:
        if body.key_id is None:
            raise InvalidError("secret", "secret or key_id is required")
        return None, use
    if body.key_id is not None:
        raise InvalidError("key_id", "either secret or key_id, not both")
    return metering.keyspace_of(caller, body.keyspace_id), use


ROUTES = [charge, charge_many, refund]
