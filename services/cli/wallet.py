"""`keyledger wallet`: an organization's prepaid balance."""

from __future__ import annotations

import click

from services.cli.amounts import clock_time, micros_of, money
from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, given, not_together, read_with, talking, yes_option


@click.group
def wallet() -> None:
    """An organization's prepaid balance, shared by all its keys."""


@wallet.command("show", **examples("keyledger wallet show Acme"))
@click.argument("organization")
@talking
def show(session: Session, organization: str) -> None:
    """Show the balance, what is reserved, and what is available."""
    found = session.ledger.get(f"/v1/organizations/{session.organization(organization)}/wallet")
    session.show(found, lambda: session.facts(_facts(found)))


@wallet.command(
    "credit",
    **examples(
        "keyledger wallet credit Acme 25.00 --reference invoice-7",
        "keyledger wallet credit Acme -- -3.50 --reference correction-7 --yes",
    ),
)
@click.argument("organization")
@click.argument("amount", type=read_with(micros_of))
@click.option("--reference", required=True, help="Your own name for this; the same reference counts once.")
@click.option("--reason", help="The reason; it is kept in the statement.")
@yes_option
@talking
def credit(
    session: Session, organization: str, amount: int, reference: str, reason: str | None, yes: bool
) -> None:
    """Top up a wallet; a negative amount takes money back."""
    identity = session.organization(organization)
    if amount < 0:
        session.confirm(f"Take {money(-amount)} from the wallet of {organization}?", yes=yes)
    done = session.ledger.post(
        f"/v1/organizations/{identity}/wallet/credits",
        given(amount_micros=amount, reference=reference, reason=reason),
    )
    session.show(done, lambda: session.facts(_facts(done.get("wallet", done))))


@wallet.command(
    "terms",
    **examples(
        "keyledger wallet terms Acme --credit-limit 100.00 --alert-below 5.00",
        "keyledger wallet terms Acme --postpaid",
        "keyledger wallet terms Acme --prepaid --no-alert",
    ),
)
@click.argument("organization")
@click.option("--credit-limit", type=read_with(micros_of), help="How far below zero it may go.")
@click.option("--postpaid", is_flag=True, help="No limit at all.")
@click.option("--prepaid", is_flag=True, help="A limit of 0: never below zero.")
@click.option("--alert-below", type=read_with(micros_of), help="Raise an alert when less than this is left.")
@click.option("--no-alert", is_flag=True, help="Raise no alert.")
@talking
def terms(
    session: Session,
    organization: str,
    credit_limit: int | None,
    postpaid: bool,
    prepaid: bool,
    alert_below: int | None,
    no_alert: bool,
) -> None:
    """Set how far a wallet may go below zero, and when to raise an alert."""
    not_together({"--credit-limit": credit_limit, "--postpaid": postpaid, "--prepaid": prepaid})
    not_together({"--alert-below": alert_below, "--no-alert": no_alert})
    body = given(credit_limit_micros=0 if prepaid else credit_limit, alert_below_micros=alert_below)
    body |= {"credit_limit_micros": None} if postpaid else {}
    body |= {"alert_below_micros": None} if no_alert else {}
    path = f"/v1/organizations/{session.organization(organization)}/wallet"
    changed = session.ledger.patch(path, body)
    session.show(changed, lambda: session.facts(_facts(changed)))


@wallet.command("statement", **examples("keyledger wallet statement Acme --limit 20"))
@click.argument("organization")
@click.option("--limit", default=50, show_default=True, help="How many lines at most.")
@talking
def statement(session: Session, organization: str, limit: int) -> None:
    """List every entry that moved money, with the balance after it."""
    path = f"/v1/organizations/{session.organization(organization)}/wallet/statement"
    items = list(session.ledger.pages(path, limit=limit))
    columns = ("position", "at (UTC)", "what", "+amount", "+balance", "reference")
    session.show(
        {"items": items},
        lambda: session.table(columns, map(_line, items), empty="No entries yet."),
    )


def _line(one: Document) -> tuple[str, ...]:
    return (
        one["position"],
        clock_time(one["at"]),
        one["kind"],
        money(one["amount_micros"]),
        money(one["balance_micros"]),
        str(one["reference"] or one["request_id"] or "-"),
    )


def _facts(one: Document) -> list[tuple[str, str]]:
    alert = one.get("alert_below_micros")
    return [
        ("available", f"{money(one['available_micros'])} {one.get('currency', '')}".strip()),
        ("balance", money(one["balance_micros"])),
        ("reserved", money(one["reserved_micros"])),
        ("credit limit", money(one.get("credit_limit_micros"))),
        ("alert below", "-" if alert is None else money(alert)),
    ]
