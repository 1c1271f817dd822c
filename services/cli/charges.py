"""`keyledger charges`: charge a use or many, show a charge, refund it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from services.cli.amounts import clock_time, micros_of, money
from services.cli.batches import send_in_batches
from services.cli.faults import REFUSED, WRONG_USAGE, CommandError, LedgerProblemError
from services.cli.files import read_entries
from services.cli.http import Document, path_part
from services.cli.main import examples
from services.cli.metadata import metadata_of, metadata_option
from services.cli.requests import tenant_text
from services.cli.session import Session, given, not_together, read_with, talking
from services.cli.uses import KEYSPACE_HELP, use_of, use_options
from services.cli.words import quota_text, words

_MOST_SHOWN: Final = 50
_CREATED: Final = 201


@click.group
def charges() -> None:
    """Charges: metered uses that cost money. A request id counts once, forever."""


@charges.command(
    "create",
    **examples(
        "keyledger charges create --key key_01JD0000000000000000000000 --amount 0.25 --request-id order-7",
        'printf %s "$SECRET" | keyledger charges create - --amount 0.25 --request-id order-7 --model gpt-5',
    ),
)
@click.argument("secret", required=False)
@click.option("--key", "key_id", help="The key by its id, instead of a secret.")
@click.option("--amount", type=read_with(micros_of), required=True, help="What it costs, such as 0.25.")
@click.option(
    "--request-id", help="Your own name for it: the same id is charged once; generated if not given."
)
@use_options
@metadata_option
@talking
def create(
    session: Session,
    /,
    secret: str | None,
    key_id: str | None,
    amount: int,
    request_id: str | None,
    metadata: tuple[tuple[str, Any], ...],
    **use: Any,
) -> None:
    """Charge one use. SECRET: - for standard input."""
    not_together({"a secret": secret, "--key": key_id})
    not_together({"--key": key_id, "--keyspace": use["keyspace"]}, "the key's id determines the keyspace")
    body = use_of(use) | given(metadata=metadata_of(metadata))
    body |= {"amount_micros": amount, "request_id": request_id or f"cli-{uuid.uuid4()}"}
    if key_id is not None:
        made = session.ledger.post("/v1/charges", body | {"key_id": key_id}, named=False)
    else:
        body["secret"] = session.read_secret(secret)
        made = session.in_keyspace(
            use["keyspace"], lambda place: session.ledger.post("/v1/charges", body | place, named=False)
        )

    def people() -> None:
        session.facts([*_facts(made["charge"]), *_left(made)])
        if made["replayed"]:
            session.say("It was charged before, and is not charged again.")

    session.show(made, people)


@charges.command(
    "batch",
    **examples(
        "keyledger charges batch uses.ndjson        # a line: {key_id, request_id, amount_micros, model...}",
        "keyledger charges batch - --json < uses.ndjson",
    ),
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False))
@click.option("--keyspace", help=KEYSPACE_HELP)
@talking
def batch(session: Session, file: Path, keyspace: str | None) -> int:
    """Charge many uses from a file, each on its own: JSON lines, a JSON list, or CSV; - for standard input.

    Exit code 1 if one is refused. Sending the same file again charges nothing twice.
    """
    entries = [_with_whole_numbers(one) for one in read_entries(file)]
    unnamed = sum(1 for one in entries if not one.get("request_id"))
    if unnamed:
        # Sent again after a broken connection, they would be charged twice.
        raise CommandError(
            f"{unnamed:,} of {len(entries):,} uses have no request_id: give each its own.",
            code="usage",
            exit_code=WRONG_USAGE,
        )
    if any("secret" in one and "keyspace_id" not in one for one in entries):
        entries = _in_keyspace(session, entries, keyspace)
    results = send_in_batches(
        session, "/v1/charges/batch", entries, what="Charging", unit="uses", named=False
    )
    refused = [one for one in zip(entries, results, strict=True) if one[1]["status"] != _CREATED]
    charged = sum(one["charge"]["amount_micros"] for one in results if one["status"] == _CREATED)
    document = {
        "results": results,
        "charged": len(results) - len(refused),
        "refused": len(refused),
        "replayed": sum(1 for one in results if one.get("replayed")),
        "amount_micros": charged,
    }

    def people() -> None:
        rows = [(str(sent["request_id"]), one["code"], one["detail"]) for sent, one in refused[:_MOST_SHOWN]]
        if rows:
            session.table(("request", "refused as", "why"), rows, empty="")
        if len(refused) > _MOST_SHOWN:
            session.say(f"... and {len(refused) - _MOST_SHOWN:,} more; --json lists all.")
        again = f", {document['replayed']:,} of them earlier" if document["replayed"] else ""
        session.say(
            f"{document['charged']:,} charged{again}, {money(charged)} in total; {len(refused):,} refused."
        )

    session.show(document, people)
    return REFUSED if refused else 0


@charges.command("show", **examples("keyledger charges show chg_01JD0000000000000000000000"))
@click.argument("charge")
@talking
def show(session: Session, charge: str) -> None:
    """Show one charge, with its refunds."""
    found = session.ledger.get(f"/v1/charges/{path_part(charge)}")

    def people() -> None:
        session.facts(_facts(found["charge"]))
        rows = [
            (clock_time(one["refunded_at"]), one["request_id"], money(one["amount_micros"]))
            for one in found["refunds"]
        ]
        if rows:
            session.say("")
            session.table(("refunded at (UTC)", "request", "+amount"), rows, empty="")

    session.show(found, people)


@charges.command(
    "refund",
    **examples(
        "keyledger charges refund chg_01JD0000000000000000000000 --request-id order-7-back",
        "keyledger charges refund chg_01JD0000000000000000000000 --amount 0.10 --request-id order-7-part",
    ),
)
@click.argument("charge")
@click.option("--amount", type=read_with(micros_of), help="How much of it; all that is left if not given.")
@click.option("--request-id", help="Your own name for it: the same id counts once; generated if not given.")
@talking
def refund(session: Session, charge: str, amount: int | None, request_id: str | None) -> None:
    """Refund a charge, in part or whole, to the wallet and the quotas."""
    body = given(request_id=request_id or f"cli-{uuid.uuid4()}", amount_micros=amount)
    done = session.ledger.post(f"/v1/charges/{path_part(charge)}/refund", body, named=False)

    def people() -> None:
        given_back = done["refund"]
        session.facts(
            [
                ("refunded", money(given_back["amount_micros"])),
                ("of charge", str(given_back["charge_id"])),
                ("in total", money(given_back["refunded_micros"])),
                *_left(done),
            ]
        )
        if done["replayed"]:
            session.say("It was refunded before, and is not refunded again.")

    session.show(done, people)


def _in_keyspace(session: Session, entries: list[Document], named: str | None) -> list[Document]:
    """The uses, each secret without a keyspace given one."""
    try:
        place = {"keyspace_id": session.keyspace(named)}
    except LedgerProblemError:
        if named is not None:
            raise
        return entries  # the root key may not be allowed to list keyspaces: the ledger says what is missing
    return [place | one if "secret" in one else one for one in entries]


def _with_whole_numbers(entry: Document) -> Document:
    """The use with its amount as a number: in CSV it is text."""
    amount = entry.get("amount_micros")
    return entry | {"amount_micros": int(amount)} if isinstance(amount, str) and amount.isdecimal() else entry


def _facts(charge: Document) -> Iterator[tuple[str, str]]:
    yield "charge", str(charge["id"])
    yield "amount", money(charge["amount_micros"])
    if charge["price_multiplier"] != "1":
        yield "price", f"{money(charge['base_micros'])} times {charge['price_multiplier']}"
    yield "request", str(charge["request_id"])
    yield "at", clock_time(charge["charged_at"])
    yield "key", str(charge["key_id"])
    yield "organization", str(charge.get("organization_id") or "-")
    yield "model", str(charge.get("model") or "-")
    yield "provider", str(charge.get("provider") or "-")
    yield "project", str(charge.get("project_id") or "-")
    yield "tenant", tenant_text(charge.get("tenant"))
    yield "reservation", str(charge.get("reservation_id") or "-")
    yield "uncovered", money(charge["uncovered_micros"]) if charge.get("uncovered_micros") else "-"
    yield "refunded", money(charge["refunded_micros"]) if charge.get("refunded_micros") else "-"
    yield "metadata", words(charge["metadata"]) if charge.get("metadata") else "-"


def _left(done: Document) -> Iterator[tuple[str, str]]:
    yield "quotas", "; ".join(quota_text(one) for one in done["quotas"])
    wallet = done.get("wallet")
    yield "wallet", "-" if wallet is None else f"{money(wallet['available_micros'])} left"
