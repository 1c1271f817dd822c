"""`POST /v1/explain`: why a use would be allowed or refused now, rule by rule, with its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from domain.decisions.access import is_root
from domain.errors import InvalidError, NotFoundError
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.money import ONE, price
from domain.quotas import (
    CODE_OF_LEVEL,
    QuotaState,
    levels_of,
    states_of,
    wallet_refusal,
)
from keyledger_language import STATUS_OF_CODE, VALID, KeyFacts, RateState, Scopes, Use, Verdict, judge
from keyledger_language.instants import to_text
from services.api.answering.explanations import (
    AskedQuotaView,
    AskedView,
    ExplanationView,
    FiguresView,
    Outcome,
    Rule,
)
from services.api.answering.money import rate_views
from services.api.asking.call import Call
from services.api.asking.uses import MAX_SECRET_LENGTH, ExplainBody, use_of
from services.api.operations import Reply, operation


@operation(
    "POST",
    "/v1/explain",
    operation_id="explainUse",
    tag="Verify",
    summary="Explain why a use would be allowed or refused",
    description="Each rule with its figures. Consumes nothing and counts against no limit.",
    permissions=("verify", "keys:read"),
    body=ExplainBody,
    answer=ExplanationView,
    codes=("not_found",),
    example={"key_id": "key_01JD0000000000000000000000", "model": "gpt-5", "cost_micros": 1_500},
)
async def explain(call: Call[Any, ExplainBody]) -> Reply:
    """Every rule with its figures; the verdict is the first that refuses."""
    body, ledger = call.body, call.ledger
    _check(body)
    if not ledger.confirmed:
        ledger.must_own()
    use = use_of(body, permissions=body.permissions, ip=body.ip)
    facts, rules = _found(call)
    if facts is not None:
        rules += [*_rules_of_facts(facts, use, call.now), *_limits(call, facts, use, _cost(body))]
    else:
        rules += [Rule(code=code, outcome="unknown") for code in _AFTER_LOOK_UP]
    code = next((rule.code for rule in rules if rule.outcome == "refuses"), VALID)
    view = ExplanationView(
        valid=code == VALID,
        code=code,
        status=STATUS_OF_CODE[code],
        key_id=facts.key_id if facts else None,
        organization_id=facts.organization_id if facts else None,
        rules=rules,
        at=to_text(call.now),
        position=call.place(ledger.head),
    )
    return Reply(view)


# -- which key -----------------------------------------------------------------------------------


def _found(call: Call[Any, ExplainBody]) -> tuple[KeyFacts | None, list[Rule]]:
    body, caller, api = call.body, call.caller, call.api
    if body.secret is None:
        facts = call.desk.facts_of(_key(call, body.key_id or ""), None)
        return facts, [Rule(code=code, outcome="not_asked") for code in ("malformed", "not_found")]
    keyspace = api.metering.keyspace_of(caller, body.keyspace_id)
    found = api.checker.find(body.secret, keyspace, caller.organization_id)
    expected: dict[str, Any] = {"shape": keyspace.shape.describe(), "length": len(body.secret)}
    if not isinstance(found, Verdict):
        return found, [
            Rule(code="malformed", outcome="passes", figures=FiguresView(**expected)),
            Rule(code="not_found", outcome="passes"),
        ]
    malformed = found.code != "not_found"
    figures = expected | _why_malformed(body.secret, keyspace) if malformed else expected
    return None, [
        Rule(code="malformed", outcome="refuses" if malformed else "passes", figures=FiguresView(**figures)),
        Rule(code="not_found", outcome="unknown" if malformed else "refuses"),
    ]


def _key(call: Call[Any, Any], key_id: str) -> Key:
    caller, key = call.caller, call.books.keys.get(key_id)
    if (
        key is None
        or is_root(key)
        or caller.organization_id not in (None, key.organization_id)
        or caller.keyspace_id not in (None, key.keyspace_id)
    ):
        raise NotFoundError("key", key_id, field="key_id")
    return key


# -- rules whose figures change ------------------------------------------------------------------


def _limits(call: Call[Any, Any], facts: KeyFacts, use: Use, cost: int | None) -> Iterator[Rule]:
    books, now = call.books, call.now
    key = books.keys[facts.key_id]
    yield _rate_rule(call.ledger.limiter.peek(facts.key_id, facts.rate_limits, use.provider))
    plan = books.plans.get(key.plan_id or "")
    multiplier = ONE if plan is None else plan.price_multiplier
    amount = None if cost is None else price(cost, multiplier)
    levels = states_of(books, levels_of(books, key, use.project_id), now)
    for level, code in CODE_OF_LEVEL.items():
        own = [one for one in levels if one.level == level]
        yield _quota_rule(code, own, amount, require_balance=facts.require_balance)
    wallet = books.wallets.get(key.organization_id or "")
    asked = amount or (1 if facts.require_balance else 0)
    short = wallet_refusal(books, key.organization_id, asked)
    figures: dict[str, Any] = {"require_balance": facts.require_balance}
    if cost is not None:
        figures |= {"base_micros": cost, "price_multiplier": multiplier, "amount_micros": amount}
    if wallet is not None:
        figures |= {
            "balance_micros": wallet.balance,
            "reserved_micros": wallet.reserved,
            "available_micros": wallet.balance - wallet.reserved,
            "credit_limit_micros": wallet.credit_limit,
        }
    outcome: Outcome = "refuses" if short else "passes" if asked else "not_asked"
    yield Rule(code="billing_shortfall", outcome=outcome, figures=FiguresView(**figures))


def _check(body: ExplainBody) -> None:
    if body.as_of is not None:
        raise InvalidError("as_of", "is reserved: only a use as of now can be explained so far")
    if (body.secret is None) == (body.key_id is None):
        raise InvalidError("secret", "exactly one of secret and key_id is required")
    if body.cost_micros is not None and body.reserve_micros is not None:
        raise InvalidError("reserve_micros", "a use is either charged or reserved, not both")


def _cost(body: ExplainBody) -> int | None:
    return body.cost_micros if body.cost_micros is not None else body.reserve_micros


def _why_malformed(secret: str, keyspace: Keyspace) -> dict[str, Any]:
    shape = keyspace.shape
    if len(secret) <= MAX_SECRET_LENGTH and shape.looks_right(secret):
        return {"reason": "its checksum is wrong: it was mistyped or cut off"}
    if not secret.startswith(shape.prefix):
        return {"reason": f"it does not begin with {shape.prefix}"}
    return {"reason": "its length or its characters do not fit"}


# `judge` itself decides each rule, on facts with which every other rule passes: so an explanation
# cannot differ from the verdict that it explains.
_Only = Callable[[KeyFacts], dict[str, Any]]

_ONE_BY_ONE: dict[str, _Only] = {
    "revoked": lambda f: {"revoked": f.revoked},
    "expired": lambda f: {"expires_at": f.expires_at},
    "rotated": lambda f: {"secret_ends_at": f.secret_ends_at},
    "disabled": lambda f: {"disabled": f.disabled},
    "organization_suspended": lambda f: {"organization_suspended": f.organization_suspended},
    "ip_denied": lambda f: {"allowed_ips": f.allowed_ips},
    "permission_denied": lambda f: {
        "scopes": Scopes(permissions=f.scopes.permissions),
        "required_dimensions": _required(f, "permission"),
    },
    "project_denied": lambda f: {
        "scopes": Scopes(projects=f.scopes.projects),
        "projects": f.projects,
        "required_dimensions": _required(f, "project"),
    },
    "model_denied": lambda f: {
        "scopes": Scopes(models=f.scopes.models),
        "plan_models": f.plan_models,
        "required_dimensions": _required(f, "model"),
    },
    "tenant_denied": lambda f: {
        "kind": f.kind,
        "scopes": Scopes(tenants=f.scopes.tenants),
        "required_dimensions": _required(f, "tenant"),
    },
}

_USE_OF: dict[str, Callable[[Use], Use]] = {
    "ip_denied": lambda u: Use(ip=u.ip),
    "permission_denied": lambda u: Use(permissions=u.permissions),
    "project_denied": lambda u: Use(project_id=u.project_id),
    "model_denied": lambda u: Use(model=u.model),
    "tenant_denied": lambda u: Use(tenant=u.tenant),
}

_AFTER_LOOK_UP = (*_ONE_BY_ONE, "rate_limited", *CODE_OF_LEVEL.values(), "billing_shortfall")


def _required(facts: KeyFacts, dimension: str) -> tuple[str, ...]:
    return tuple(one for one in facts.required_dimensions if one == dimension)


def _rules_of_facts(facts: KeyFacts, use: Use, now: int) -> Iterator[Rule]:
    for code, only in _ONE_BY_ONE.items():
        fields = only(facts)
        alone = msgspec.structs.replace(_open(facts), **fields)
        asked = _USE_OF[code](use) if code in _USE_OF else Use()
        refused = judge(alone, asked, now) == code
        figures = FiguresView(**_figures(fields, asked, now))
        yield Rule(code=code, outcome="refuses" if refused else "passes", figures=figures)


def _open(facts: KeyFacts) -> KeyFacts:
    """Facts of the key with which every rule passes."""
    return KeyFacts(
        key_id=facts.key_id,
        keyspace_id=facts.keyspace_id,
        organization_id=facts.organization_id,
        kind="solo",
        generation=facts.generation,
        scopes=Scopes(),
        projects=facts.projects,
    )


def _figures(fields: dict[str, Any], asked: Use, now: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ("expires_at", "secret_ends_at"):
            told[name] = None if value is None else to_text(value)
            told["now"] = to_text(now)
        elif isinstance(value, Scopes):
            told["scope"] = next((one for one in msgspec.structs.astuple(value) if one != "*"), "*")
        elif isinstance(value, frozenset):
            told["open_projects"] = len(value)
        elif value != () or name == "allowed_ips":
            told[name] = value
    said = {name: getattr(asked, name) for name in asked.__struct_fields__}
    if any(value not in (None, ()) for value in said.values()):
        told["asked"] = AskedView(**{name: value for name, value in said.items() if value not in (None, ())})
    return told


def _rate_rule(rates: list[RateState]) -> Rule:
    if not rates:
        return Rule(code="rate_limited", outcome="not_asked")
    used_up = any(one.remaining == 0 for one in rates)
    figures = FiguresView(rate_limits=rate_views(rates), counted_by="verify and forward-auth, not by charges")
    return Rule(code="rate_limited", outcome="refuses" if used_up else "passes", figures=figures)


def _quota_rule(code: str, quotas: list[QuotaState], amount: int | None, *, require_balance: bool) -> Rule:
    if not quotas:
        return Rule(code=code, outcome="not_asked")
    refused = False
    told: list[AskedQuotaView] = []
    for one in quotas:
        asked = _asked_of(one, amount)
        broken = one.spent + asked > one.limit
        if not amount and require_balance:
            broken = broken or one.spent >= one.limit
        refused = refused or broken
        told.append(
            AskedQuotaView(
                unit=one.unit,
                window=one.window,
                limit=one.limit,
                spent=one.spent,
                remaining=one.remaining,
                asked=asked,
                fits=not broken,
                resets_at=None if one.resets_at is None else to_text(one.resets_at),
            )
        )
    return Rule(code=code, outcome="refuses" if refused else "passes", figures=FiguresView(quotas=told))


def _asked_of(quota: QuotaState, amount: int | None) -> int:
    """A use without a cost takes nothing; one with a cost is one request."""
    if amount is None:
        return 0
    return amount if quota.unit == "micros" else 1


ROUTES = [explain]
