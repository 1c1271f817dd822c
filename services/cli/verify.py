"""`keyledger verify`: check whether a secret is good for a use."""

from __future__ import annotations

import uuid
from typing import Any

import click

from services.cli.amounts import micros_of, money
from services.cli.faults import REFUSED, WRONG_USAGE, CommandError
from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, given, read_with, talking
from services.cli.uses import use_of, use_options
from services.cli.words import quota_text


@click.command(
    "verify",
    **examples(
        'printf %s "$SECRET" | keyledger verify - --model gpt-5',
        "keyledger verify                      # asks for the secret, and does not show it",
        'printf %s "$SECRET" | keyledger verify - --cost 0.25 --request-id order-7   # charges too',
    ),
)
@click.argument("secret", required=False)
@use_options
@click.option("--cost", type=read_with(micros_of), help="What the use costs, such as 0.25.")
@click.option("--request-id", help="With --cost: your own name for the charge; the same id is charged once.")
@talking
def verify(
    session: Session, /, secret: str | None, cost: int | None, request_id: str | None, **use: Any
) -> int:
    """Check whether a secret is good for a use. Exit code 0 if it is. SECRET: - for standard input."""
    if request_id is not None and cost is None:
        raise CommandError(
            "--request-id names a charge: also give --cost.", code="usage", exit_code=WRONG_USAGE
        )
    body = use_of(use) | given(secret=session.read_secret(secret), cost_micros=cost)
    if cost is not None:
        body["request_id"] = request_id or f"cli-{uuid.uuid4()}"
    verdict = session.in_keyspace(
        use["keyspace"], lambda place: session.ledger.post("/v1/verify", body | place, named=False)
    )
    session.show(verdict, lambda: _verdict(session, verdict))
    return 0 if verdict["valid"] else REFUSED


def _verdict(session: Session, verdict: Document) -> None:
    session.headline(verdict["code"], good=verdict["valid"])
    charge = verdict.get("charge") or {}
    wallet = verdict.get("wallet_available_micros")
    name, key_id = verdict.get("name"), str(verdict.get("key_id") or "-")
    session.facts(
        [
            ("key", f"{name} ({key_id})" if name else key_id),
            ("organization", str(verdict.get("organization_id") or "-")),
            *refusal_facts(verdict.get("refusal") or {}),
            ("charged", f"{money(charge['amount_micros'])} ({charge['id']})" if charge else "-"),
            ("quotas", "; ".join(quota_text(one) for one in verdict.get("quotas") or [])),
            ("wallet", "-" if wallet is None else f"{money(wallet)} left"),
        ]
    )


def refusal_facts(refusal: Document) -> list[tuple[str, str]]:
    """Which limit refused the use, and how much is left of it."""
    if not refusal:
        return []
    left = refusal["remaining"]
    limit = f": {quota_text(refusal)}" if refusal.get("window") else ""
    return [
        ("refused by", f"the {refusal['level']}{limit}"),
        ("left", money(left) if refusal["unit"] == "micros" else f"{left:,} requests"),
        ("resets", str(refusal.get("resets_at") or "-")),
    ]
