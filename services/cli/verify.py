"""`keyledger verify` and `explain`: is a secret good for a use, and why?"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import click

from services.cli.amounts import micros_of, money
from services.cli.faults import REFUSED, WRONG_USAGE, CommandError
from services.cli.http import Document
from services.cli.main import examples
from services.cli.orgs import quota_text
from services.cli.session import Session, given, read_with, talking


def _use_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--keyspace", help="Whose secret it is; not needed where there is one keyspace."),
            click.option("--permission", "permissions", multiple=True, help="What the use needs."),
            click.option("--project", "project_id", help="The project, by id."),
            click.option("--model", help="The model."),
            click.option("--provider", help="Who serves it; for rate limits."),
            click.option("--tenant-org", help="The tenant's organization."),
            click.option("--tenant-user", help="The tenant's user."),
            click.option("--ip", help="Where the use comes from."),
            click.option("--cost", type=read_with(micros_of), help="What the use costs, such as 0.25."),
        )
    ):
        function = option(function)
    return function


@click.command(
    "verify",
    **examples(
        'printf %s "$SECRET" | keyledger verify - --model gpt-5',
        "keyledger verify                      # asks for the secret, unseen",
        'printf %s "$SECRET" | keyledger verify - --cost 0.25 --request-id order-7   # charges too',
    ),
)
@click.argument("secret", required=False)
@_use_options
@click.option("--request-id", help="With --cost: names this charge; the same one is charged once.")
@talking
def verify(
    session: Session, /, secret: str | None, cost: int | None, request_id: str | None, **use: Any
) -> int:
    """Is this secret good for this use? Exit code 0 if it is. SECRET: - for standard input."""
    shown = session.read_secret(secret)
    body = _use(session, use) | given(secret=shown, cost_micros=cost)
    if cost is not None:
        body["request_id"] = request_id or f"cli-{uuid.uuid4()}"
    verdict = session.ledger.post("/v1/verify", body, named=False)
    session.show(verdict, lambda: _verdict(session, verdict))
    return 0 if verdict["valid"] else REFUSED


@click.command(
    "explain",
    **examples(
        "keyledger explain --key key_01JD0000000000000000000000 --model gpt-5 --cost 0.25",
        'printf %s "$SECRET" | keyledger explain -',
    ),
)
@click.argument("secret", required=False)
@click.option("--key", "key_id", help="The key by its id, instead of a secret.")
@_use_options
@talking
def explain(
    session: Session, /, secret: str | None, key_id: str | None, cost: int | None, **use: Any
) -> None:
    """Why would a use be allowed or refused now? Each rule with its figures; nothing is consumed."""
    if key_id is not None and secret is not None:
        raise CommandError("Give a secret or --key, not both.", code="usage", exit_code=WRONG_USAGE)
    if key_id is not None:
        body = _use(session, use | {"keyspace": None}, by_id=True) | {"key_id": key_id}
    else:
        body = _use(session, use) | {"secret": session.read_secret(secret)}
    answer = session.ledger.post("/v1/explain", body | given(cost_micros=cost), named=False)

    def people() -> None:
        session.say(f"{'Allowed' if answer['valid'] else 'Refused'}: {answer['code']}.\n")
        rows = [(one["code"], _OUTCOMES[one["outcome"]], _figures(one)) for one in answer["rules"]]
        session.table(("rule", "says", "because"), rows, empty="No rules.")  # fmt: skip

    session.show(answer, people)


_OUTCOMES: dict[str, str] = {"passes": "ok", "refuses": "REFUSES", "not_asked": "-", "unknown": "?"}


def _use(session: Session, use: dict[str, Any], *, by_id: bool = False) -> Document:
    tenant = given(org_id=use.pop("tenant_org"), user_id=use.pop("tenant_user"))
    keyspace = use.pop("keyspace")
    permissions = [*use.pop("permissions")]
    return given(
        keyspace_id=None if by_id else session.keyspace(keyspace),
        tenant=tenant,
        permissions=permissions,
        **use,
    )


def _verdict(session: Session, verdict: Document) -> None:
    click.secho(verdict["code"], fg="green" if verdict["valid"] else "red", bold=True)
    charge = verdict.get("charge") or {}
    wallet = verdict.get("wallet_available_micros")
    name, key_id = verdict.get("name"), str(verdict.get("key_id") or "-")
    session.facts(
        [
            ("key", f"{name} ({key_id})" if name else key_id),
            ("organization", str(verdict.get("organization_id") or "-")),
            *_refusal(verdict.get("refusal") or {}),
            ("charged", f"{money(charge['amount_micros'])} ({charge['id']})" if charge else "-"),
            ("quotas", "; ".join(quota_text(one) for one in verdict.get("quotas") or [])),
            ("wallet", "-" if wallet is None else f"{money(wallet)} left"),
        ]
    )


def _refusal(refusal: Document) -> list[tuple[str, str]]:
    if not refusal:
        return []
    left = refusal["remaining"]
    limit = f": {quota_text(refusal)}" if refusal.get("window") else ""
    return [
        ("refused by", f"the {refusal['level']}{limit}"),
        ("left", money(left) if refusal["unit"] == "micros" else f"{left:,} requests"),
        ("resets", str(refusal.get("resets_at") or "-")),
    ]


def _figures(rule: Document) -> str:
    return ", ".join(f"{name}={_figure(value)}" for name, value in (rule.get("figures") or {}).items())


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(_figure(one) for one in value)
    if isinstance(value, dict):
        return " ".join(f"{name}:{_figure(one)}" for name, one in value.items() if one is not None)
    return str(value)
