"""`keyledger explain`: why a use would be allowed or refused, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from services.cli.amounts import clock_time, micros_of, money
from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, given, not_together, read_with, talking
from services.cli.uses import use_of, use_options
from services.cli.words import words


@click.command(
    "explain",
    **examples(
        "keyledger explain --key key_01JD0000000000000000000000 --model gpt-5 --cost 0.25",
        'printf %s "$SECRET" | keyledger explain -',
    ),
)
@click.argument("secret", required=False)
@click.option("--key", "key_id", help="The key by its id, instead of a secret.")
@use_options
@click.option("--cost", type=read_with(micros_of), help="What the use costs, such as 0.25.")
@talking
def explain(
    session: Session, /, secret: str | None, key_id: str | None, cost: int | None, **use: Any
) -> None:
    """Explain why a use would be allowed or refused now: each rule with its figures. Nothing is consumed."""
    not_together({"a secret": secret, "--key": key_id})
    not_together({"--key": key_id, "--keyspace": use["keyspace"]}, "the key's id determines the keyspace")
    body = use_of(use) | given(cost_micros=cost)
    if key_id is not None:
        answer = session.ledger.post("/v1/explain", body | {"key_id": key_id}, named=False)
    else:
        body["secret"] = session.read_secret(secret)
        answer = session.in_keyspace(
            use["keyspace"], lambda place: session.ledger.post("/v1/explain", body | place, named=False)
        )

    def people() -> None:
        session.say(f"{'Allowed' if answer['valid'] else 'Refused'}: {answer['code']}.\n")
        rows = [(one["code"], _OUTCOMES[one["outcome"]], why(one["figures"])) for one in answer["rules"]]
        session.table(("rule", "result", "because"), rows, empty="No rules.", width=session.width)

    session.show(answer, people)


_OUTCOMES: Final = {"passes": "ok", "refuses": "REFUSES", "not_asked": "-", "unknown": "?"}


def why(figures: Document) -> str:
    """The figures that a rule compared, in words."""
    told = ((name, _SAID.get(name, _as_it_is(name))(value)) for name, value in figures.items())
    return "; ".join(said for _, said in told if said)


def _as_it_is(name: str) -> Callable[[Any], str]:
    return lambda value: f"{name.removesuffix('_micros').replace('_', ' ')}: {words(value, name)}"


def _either(true: str, false: str) -> Callable[[Any], str]:
    return lambda value: true if value else false


def _allowed(by: str) -> Callable[[Any], str]:
    def said(value: Any) -> str:
        if value is None:
            return ""
        return f"{by} allows {'everything' if value == '*' else words(value)}"

    return said


def _rates(limits: list[Document]) -> str:
    return "; ".join(
        f"{one['remaining']:,} of {one['limit']:,} left for {one['reset_seconds']} s ({one['name']})"
        for one in limits
    )


def _quotas(quotas: list[Document]) -> str:
    return "; ".join(_quota(one) for one in quotas)


def _quota(one: Document) -> str:
    written = money if one["unit"] == "micros" else words
    window = "in total" if one["window"] == "total" else f"this {one['window']}"
    of = "" if one["unit"] == "micros" else " requests"
    fits = "it fits" if one["fits"] else "it does not fit"
    spent = f"{written(one['spent'])} of {written(one['limit'])}{of} spent {window}"
    resets = f", resets at {clock_time(one['resets_at'])}" if one.get("resets_at") else ""
    return f"{spent}, {written(one['asked'])} asked: {fits}{resets}"


def _asked(use: Document) -> str:
    told = [f"{_NAMES.get(name, name)} {words(value)}" for name, value in use.items()]
    return f"asked for {', '.join(told)}"


_NAMES: Final = {"project_id": "project", "permissions": "permission"}

_SAID: Final[dict[str, Callable[[Any], str]]] = {
    "shape": lambda shape: f"expected {shape}",
    "length": lambda length: f"it has {length} characters",
    "reason": str,
    "revoked": _either("it is revoked", "it is not revoked"),
    "expires_at": lambda at: f"it expires {clock_time(at)}" if at else "it never expires",
    "secret_ends_at": lambda at: f"the secret ends {clock_time(at)}" if at else "the secret has no end",
    "now": lambda _: "",
    "disabled": _either("it is disabled", "it is not disabled"),
    "organization_suspended": _either("the organization is suspended", "the organization is active"),
    "allowed_ips": lambda ips: f"from {words(ips)} only" if ips else "from any address",
    "scope": _allowed("the key"),
    "plan_models": _allowed("its plan"),
    "open_projects": lambda count: f"{count:,} open projects",
    "required_dimensions": lambda names: f"a use must name its {words(names)}" if names else "",
    "kind": lambda kind: f"a {kind} key",
    "asked": _asked,
    "rate_limits": _rates,
    "counted_by": lambda by: f"counted by {by}",
    "quotas": _quotas,
    "require_balance": _either("a balance is required", ""),
    "base_micros": lambda micros: f"the price is {money(micros)}",
    "price_multiplier": lambda factor: "" if factor in {None, "1"} else f"times {factor}",
    "amount_micros": lambda micros: f"{money(micros)} asked",
    "balance_micros": lambda micros: f"balance {money(micros)}",
    "reserved_micros": lambda micros: f"{money(micros)} held" if micros else "",
    "available_micros": lambda micros: f"{money(micros)} available",
    "credit_limit_micros": lambda micros: "" if micros == 0 else f"credit limit: {money(micros)}",
}
