"""`POST /v1/verify` and `/v1/verify/batch`: check secrets against uses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from domain.accounts import Wallet
from domain.commands import ChargeUsage, ReserveCredits
from domain.decisions.charging import UseOutcome
from domain.errors import InvalidError
from domain.ids import format_position
from domain.keyspaces import Keyspace
from domain.quotas import QuotaState, Refusal, levels_of, states_of
from keyledger_edge import rate_limit_headers
from keyledger_language import STATUS_OF_CODE, VALID, KeyFacts, RateState, Use, Verdict
from keyledger_language.bounded_dicts import BoundedCache
from keyledger_language.events import UsageCharged
from keyledger_language.instants import to_text
from services.api.answering.answers import Answer, encode, json_answer, lines_of, results_answer
from services.api.answering.money import charge_view, rate_views, reserved_view
from services.api.answering.problems import ProblemError
from services.api.answering.quotas import quota_figures, refusal_view
from services.api.answering.verdicts import VerdictsView, VerdictView
from services.api.asking.call import Call
from services.api.asking.callers import Caller
from services.api.asking.uses import VerifyBatchBody, VerifyBody, use_of
from services.api.operations import OWN_KEY, operation
from services.api.resources.checking import Checker, Shortfall
from services.api.resources.metering import MeteringCalls, asked
from services.ledger.errors import RefusedLatelyError
from services.ledger.ledger import Ledger

_FORGET_AT = 50_000
_VALID, _NO = b'{"valid":true,"code":"valid",', b'{"valid":false,"code":'
_NOBODY = {code: b'%b"%b"' % (_NO, code.encode()) for code in STATUS_OF_CODE}
_MAY_SPEND = frozenset({"verify", "charges:write"})
_COST = "A use with a cost needs `verify` or `charges:write`."
_EXAMPLE = {"secret": "acme_live_...", "keyspace_id": "ks_01JD0000000000000000000000", "model": "gpt-5"}


class Verify:
    """Answers with verdicts; 200 whenever the request was well formed.

    `verify` is enough for a use with a cost: the caller holds the customer's secret, and could
    spend with it anyway. (`charges:write` also charges by key id, without any secret.) An edge calls
    with `edges:connect`, and needs one of the two if money moves.
    """

    def __init__(self, ledger: Ledger, checker: Checker, metering: MeteringCalls) -> None:
        self._ledger = ledger
        self._books, self._time = ledger.books, ledger.time
        self._checker = checker
        self._metering = metering
        self._described = BoundedCache[int, tuple[KeyFacts, bytes]](_FORGET_AT)
        self._described_as = self._described.get
        self._written = (-1, b"")
        ledger.at_new_epoch(self._forget_position)

    def one(self, call: Call[Any, VerifyBody]) -> Answer | Awaitable[Answer]:
        """One verdict; only a use with a cost has to wait."""
        caller, body = call.caller, call.body
        use = use_of(body, body.permissions, body.ip)
        keyspace = self._metering.keyspace_of(caller, body.keyspace_id)
        if body.cost_micros is not None or body.reserve_micros is not None:
            return self._one_with_cost(body, use, keyspace, caller)
        verdict = self._checker.check(body.secret, keyspace, use, caller.organization_id, body.request_id)
        told = json_answer(200, self._said(verdict, use), self._books.head, verdict.code)
        if verdict.rate_limits:
            told.more = lines_of(rate_limit_headers(verdict.rate_limits))
        return told

    async def _one_with_cost(self, body: VerifyBody, use: Use, keyspace: Keyspace, caller: Caller) -> Answer:
        outcome, position = await self._with_cost(body, use, keyspace, caller)
        told = encode(verdict_of(outcome, position, self._ledger.position_prefix))
        answer = json_answer(200, told, position, outcome.code)
        if outcome.rates:
            answer.more = lines_of(rate_limit_headers(outcome.rates))
        return answer

    async def batch(self, call: Call[Any, list[VerifyBody | ProblemError]]) -> Answer:
        """Many verdicts in order, each on its own."""
        results = await asyncio.gather(*(self._item(call, index) for index in range(len(call.body))))
        return results_answer(call, results)

    async def _item(self, call: Call[Any, list[VerifyBody | ProblemError]], index: int) -> bytes:
        body, caller = call.body[index], call.caller
        try:
            if isinstance(body, ProblemError):
                raise body  # noqa: TRY301  # it is answered as if it had been sent alone
            use = use_of(body, permissions=body.permissions, ip=body.ip)
            keyspace = self._metering.keyspace_of(caller, body.keyspace_id)
            if body.cost_micros is None and body.reserve_micros is None:
                organization_id = caller.organization_id
                verdict = self._checker.check(body.secret, keyspace, use, organization_id, body.request_id)
                return self._said(verdict, use)
            outcome, position = await self._with_cost(body, use, keyspace, caller)
            return encode(verdict_of(outcome, position, self._ledger.position_prefix))
        except RefusedLatelyError:
            raise  # The whole batch is sent once more; its granted items are replays then.
        except Exception as error:  # noqa: BLE001  # each item on its own: its error is its answer
            return call.api.refusals.answer(error, f"{call.request_id}.{index}").body

    # -- without a cost

    def _said(self, verdict: Verdict, use: Use) -> bytes:
        """A verdict as JSON. A key's description does not change from use to use, so it is cached."""
        facts, code = verdict.facts, verdict.code
        if facts is None:
            return _NOBODY[code] + self._position()
        known = self._described_as(id(facts))
        described = known[1] if known is not None and known[0] is facts else self._describe(facts)
        said = _VALID if code == VALID else b'%b"%b",' % (_NO, code.encode())
        head, position = self._written
        if head != self._books.head:
            position = self._position()
        return b"".join((said, described, self._figures(facts, verdict, use), position))

    def _position(self) -> bytes:
        """The answer's position, as its last JSON member; the same until something is written."""
        head = self._books.head
        if head != self._written[0]:
            text = format_position(self._ledger.position_prefix, head)
            self._written = head, b',"position":"%b"}' % text.encode()
        return self._written[1]

    def _forget_position(self) -> None:
        self._written = (-1, b"")

    def _figures(self, facts: KeyFacts, verdict: Verdict, use: Use) -> bytes:
        """What is left of every limit of the key, as further JSON members."""
        books = self._books
        told, organization_id = b"", facts.organization_id or ""
        wallet = books.wallets.get(organization_id)
        if wallet is not None:
            told = b',"wallet_available_micros":%d' % (wallet.balance - wallet.reserved)
        key, organization = books.keys[facts.key_id], books.organizations.get(organization_id)
        # Most keys have no quota and none above them, and this check is quick.
        if key.quotas or use.project_id is not None or (organization is not None and organization.quotas):
            levels = levels_of(books, key, use.project_id)
            if levels:
                quotas = states_of(books, levels, self._time.now())
                told = b',"quotas":%b%b' % (encode(quota_figures(quotas)), told)
        if verdict.rate_limits:
            told += b',"rate_limits":' + encode(rate_views(verdict.rate_limits))
        if isinstance(verdict, Shortfall):
            told += b',"refusal":' + encode(refusal_view(verdict.refusal))
        return told

    def _describe(self, facts: KeyFacts) -> bytes:
        text = encode(describe(facts))[1:-1]
        self._described.put(id(facts), (facts, text))
        return text

    # -- with a cost

    async def _with_cost(
        self, body: VerifyBody, use: Use, keyspace: Keyspace, caller: Caller
    ) -> tuple[UseOutcome, int]:
        if body.cost_micros is not None and body.reserve_micros is not None:
            raise InvalidError("reserve_micros", "a use is either charged or reserved, not both")
        if not caller.permissions & _MAY_SPEND:
            raise ProblemError(
                "permission_denied",
                "A use with a cost needs a root key with verify or charges:write.",
                permission="charges:write",
            )
        return await self.meter(
            body.secret,
            use,
            keyspace,
            caller,
            cost_micros=body.cost_micros,
            reserve_micros=body.reserve_micros,
            request_id=body.request_id,
            metadata=body.metadata,
        )

    async def meter(
        self,
        secret: str | None,
        use: Use,
        keyspace: Keyspace,
        caller: Caller,
        *,
        cost_micros: int | None,
        reserve_micros: int | None,
        request_id: str | None,
        metadata: dict[str, Any] | None = None,
        field: str = "request_id",
    ) -> tuple[UseOutcome, int]:
        """Check and charge (or reserve) in one decision."""
        if request_id is None:
            raise InvalidError(field, "is required if money moves")
        amount = cost_micros if cost_micros is not None else reserve_micros
        assert amount is not None, "asked only with a cost"
        ask = asked(
            request_id=request_id,
            base_micros=amount,
            use=use,
            metadata=metadata,
            count_rate=not self._checker.was_counted(secret, request_id),
        )
        command = ChargeUsage if cost_micros is not None else ReserveCredits
        outcome, position = await self._metering.ask(command, ask, secret, keyspace, caller.asking)
        if outcome.rates and outcome.code == VALID and outcome.key is not None:
            self._checker.counted.put((outcome.key.id, request_id), None)
        return outcome, position


def describe(facts: KeyFacts) -> dict[str, Any]:
    """What a verdict contains about a key, whatever the use."""
    told: dict[str, Any] = {
        "key_id": facts.key_id,
        "organization_id": facts.organization_id,
        "name": facts.name,
        "kind": facts.kind,
        "owner_id": facts.owner_id,
        "environment": facts.environment,
        "plan_id": facts.plan_id,
        "scopes": facts.scopes,
        "metadata": facts.metadata,
        "expires_at": None if facts.expires_at is None else to_text(facts.expires_at),
    }
    return {name: value for name, value in told.items() if value is not None}


def verdict_of(outcome: UseOutcome, position: int, prefix: str) -> dict[str, Any]:
    """The verdict on a use with a cost."""
    answer: dict[str, Any] = {"valid": outcome.code == VALID, "code": outcome.code}
    if outcome.facts is not None:
        answer.update(describe(outcome.facts))
    _add_figures(answer, outcome.quotas, outcome.wallet, outcome.rates, outcome.refusal)
    event = outcome.event
    if event is not None:
        if isinstance(event, UsageCharged):
            answer["charge"] = charge_view(event, format_position(prefix, outcome.position))
        else:
            answer["reservation"] = reserved_view(event, outcome.position, prefix)
        answer["replayed"] = outcome.replayed
    answer["position"] = format_position(prefix, position)
    return answer


def _add_figures(
    answer: dict[str, Any],
    quotas: tuple[QuotaState, ...],
    wallet: Wallet | None,
    rates: tuple[RateState, ...],
    refusal: Refusal | None,
) -> None:
    if quotas:
        answer["quotas"] = quota_figures(quotas)
    if wallet is not None:
        answer["wallet_available_micros"] = wallet.balance - wallet.reserved
    if rates:
        answer["rate_limits"] = rate_views(rates)
    if refusal is not None:
        answer["refusal"] = refusal_view(refusal)


@operation(
    "POST",
    "/v1/verify",
    operation_id="verifySecret",
    headers=("RateLimit", "RateLimit-Policy"),
    tag="Verify",
    summary="Check a secret against a use",
    description="200 whenever the request was well formed: `valid` and `code` are the verdict. " + _COST,
    permissions=("verify", "edges:connect"),
    quick=True,
    body=VerifyBody,
    answer=VerdictView,
    codes=("not_found",),
    instead_of_a_key=OWN_KEY,
    example=_EXAMPLE,
)
def verify(call: Call[Any, VerifyBody]) -> Answer | Awaitable[Answer]:
    """One verdict."""
    return call.api.verify.one(call)


@operation(
    "POST",
    "/v1/verify/batch",
    operation_id="verifySecrets",
    tag="Verify",
    summary="Check many secrets against uses",
    description="Each item on its own, in order. " + _COST,
    permissions=("verify", "edges:connect"),
    quick=True,
    body=VerifyBatchBody,
    items=VerifyBody,
    answer=VerdictsView,
    instead_of_a_key=OWN_KEY,
    example={"items": [_EXAMPLE]},
)
def verify_many(call: Call[Any, Any]) -> Awaitable[Answer]:
    """Many verdicts."""
    return call.api.verify.batch(call)


ROUTES = [verify, verify_many]
