"""`keyledger requests`: what became of each charge, reservation and refused use."""

from __future__ import annotations

from collections.abc import Iterator

import click

from services.cli.amounts import clock_time, money, time_of
from services.cli.http import Document, path_part
from services.cli.main import ListsByDefault, examples
from services.cli.session import Session, read_with, talking
from services.cli.words import words


@click.group(cls=ListsByDefault)
def requests() -> None:
    """Charges, reservations and refused uses, by request id. Without a command it lists."""


@requests.command(
    "list",
    **examples(
        "keyledger requests list --org Acme --from -1d",
        "keyledger requests list --key key_01JD0000000000000000000000 --code billing_shortfall",
    ),
)
@click.option("--org", "organization", help="Only of this organization: id, name or external id.")
@click.option("--key", "key_id", help="Only of this key, which may be deleted.")
@click.option("--code", help="Only those refused with this code, such as billing_shortfall.")
@click.option("--from", "from_", type=read_with(time_of), help="From this time on: a time, or -7d.")
@click.option("--to", type=read_with(time_of), help="Until this time.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@talking
def list_requests(
    session: Session,
    organization: str | None,
    key_id: str | None,
    code: str | None,
    from_: str | None,
    to: str | None,
    limit: int,
) -> None:
    """List uses and what became of them, newest first."""
    query = {
        "organization_id": session.organization(organization) if organization else None,
        "key_id": key_id,
        "code": code,
        "from": from_,
        "to": to,
    }
    items = list(session.ledger.pages("/v1/requests", limit=limit, **query))
    columns = ("at (UTC)", "what", "request", "+amount", "outcome", "?key", "?model")
    session.show({"items": items}, lambda: session.table(columns, map(_row, items), empty="No requests."))


@requests.command(
    "show", **examples("keyledger requests show order-7", "keyledger requests show order-7 --org Acme")
)
@click.argument("request_id")
@click.option("--org", "organization", help="Only of this organization; needed if there are more than 1,000.")
@talking
def show(session: Session, request_id: str, organization: str | None) -> None:
    """Show everything with one request id, also of deleted keys, oldest first."""
    found = session.ledger.get(
        f"/v1/requests/{path_part(request_id)}",
        organization_id=session.organization(organization) if organization else None,
    )

    def people() -> None:
        for number, one in enumerate(found["items"]):
            if number:
                session.say("")
            session.facts(_facts(one))

    session.show(found, people)


def _row(one: Document) -> tuple[str, ...]:
    return (
        clock_time(one["at"]),
        str(one["kind"]),
        str(one["request_id"] or "-"),
        "-" if one["amount_micros"] is None else money(one["amount_micros"]),
        str(one["code"] or one["status"] or "-"),
        str(one["key_id"]),
        str(one["model"] or "-"),
    )


def _facts(one: Document) -> Iterator[tuple[str, str]]:
    yield str(one["kind"]), str(one["request_id"] or "-")
    yield "at", clock_time(one["at"])
    yield "position", str(one["position"])
    yield "organization", str(one["organization_id"] or "-")
    yield "key", str(one["key_id"])
    yield "charge", str(one["charge_id"] or "-")
    yield "reservation", str(one["reservation_id"] or "-")
    yield "status", str(one["status"] or "-")
    yield "refused as", str(one["code"] or "-")
    yield from _money(one)
    for name in ("model", "provider"):
        yield name, str(one[name] or "-")
    yield "project", str(one["project_id"] or "-")
    yield "tenant", tenant_text(one.get("tenant"))
    yield "metadata", words(one["metadata"]) if one["metadata"] else "-"
    yield "expires", clock_time(one["expires_at"])


def _money(one: Document) -> Iterator[tuple[str, str]]:
    if one["base_micros"] is not None and one["price_multiplier"] not in {None, "1"}:
        yield "price", f"{money(one['base_micros'])} times {one['price_multiplier']}"
    for name in ("amount", "held", "captured", "uncovered", "refunded"):
        micros = one.get(f"{name}_micros")
        yield name, money(micros) if micros or (name == "amount" and micros is not None) else "-"


def tenant_text(tenant: Document | None) -> str:
    """The tenant of a use, in one line."""
    named = [str(one) for one in (tenant or {}).values() if one]
    return " / ".join(named) or "-"
