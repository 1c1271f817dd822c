"""`keyledger leak` and `fence`: respond to a leaked secret, and see whether a change is fenced."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from services.cli.amounts import clock_time, money, time_of
from services.cli.faults import LedgerProblemError
from services.cli.http import Document
from services.cli.key_facts import fence_facts
from services.cli.main import examples
from services.cli.session import Session, given, not_together, read_with, talking, yes_option

_MOST_LINES = 1_000_000


@click.command(
    "leak",
    **examples(
        'printf %s "$SECRET" | keyledger leak - --since 2026-11-20T08:00Z --refund --evidence leak.json',
        "keyledger leak - --source pastebin --where https://paste.example/x < leaked.txt",
    ),
)
@click.argument("secret", required=False)
@click.option("--sha256", help="The secret's SHA-256, hex or base64, instead of the secret.")
@click.option("--keyspace", help="Look only in this keyspace; in all if not given.")
@click.option("--source", default="operator", show_default=True, help="Who found it.")
@click.option("--where", help="Where it was found.")
@click.option("--since", type=read_with(time_of), help="List its uses since this time: a time, or -7d.")
@click.option("--refund", is_flag=True, help="Refund every listed charge.")
@click.option(
    "--evidence", type=click.Path(path_type=Path, dir_okay=False), help="Write all of it to this file (JSON)."
)
@yes_option
@talking
def leak(
    session: Session,
    secret: str | None,
    sha256: str | None,
    keyspace: str | None,
    source: str,
    where: str | None,
    since: str | None,
    refund: bool,
    evidence: Path | None,
    yes: bool,
) -> None:
    """Revoke the key of a leaked secret behind the fence, list its uses, refund them, save the evidence.

    The secret itself is stored nowhere. SECRET: - for standard input.
    """
    not_together({"a secret": secret, "--sha256": sha256})
    found = {"sha256": sha256} if sha256 is not None else {"secret": session.read_secret(secret)}
    # The ledger looks for the secret in all keyspaces: naming one only narrows the search.
    body = given(**found, keyspace_id=session.keyspace(keyspace) if keyspace else None)
    session.confirm("Revoke the key of this secret, with all its generations, for good?", yes=yes)
    reported = session.ledger.post("/v1/leaks", body | given(source=source, where=where))
    key: Document | None = reported["key"]
    uses = _uses(session, key, since) if key is not None else []
    refunds = [done for use in uses if (done := _refund(session, use)) is not None] if refund else []
    report = {
        "reported_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "leak": reported,
        "since": since,
        "uses": uses,
        "refunds": refunds,
    }
    if evidence is not None:
        _write(evidence, report)
    session.show(report, lambda: _tell(session, report, key, evidence))


@click.command("fence", **examples("keyledger fence 0-1042"))
@click.argument("position")
@talking
def fence(session: Session, position: str) -> None:
    """Show whether the change at this position has taken effect at every edge."""
    found = session.ledger.get(f"/v1/fences/{position}")
    session.show(found, lambda: session.facts(fence_facts({"fence": found})))


def _uses(session: Session, key: Document, since: str | None) -> list[Document]:
    """The key's charges, newest first."""
    organization = key.get("organization_id")
    if organization is None:
        return []
    found: list[Document] = []
    path = f"/v1/organizations/{organization}/wallet/statement"
    for line in session.ledger.pages(path, limit=_MOST_LINES):
        if since is not None and _moment(line["at"]) < _moment(since):
            break
        if line["key_id"] == key["id"] and line["kind"] in {"charge", "capture"}:
            found.append(line)
    return found


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _refund(session: Session, use: Document) -> Document | None:
    """Refund what is left of a charge; None if it was refunded before."""
    try:
        return session.ledger.post(
            f"/v1/charges/{use['charge_id']}/refund", {"request_id": f"leak-{use['charge_id']}"}, named=False
        )
    except LedgerProblemError as error:
        if error.code == "refund_exceeds_charge":
            return None
        raise


def _write(file: Path, report: dict[str, Any]) -> None:
    data = msgspec.json.format(msgspec.json.encode(report), indent=2)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as opened:
        opened.write(data + b"\n")


def _tell(session: Session, report: dict[str, Any], key: Document | None, evidence: Path | None) -> None:
    if key is None:
        session.say("No key of this ledger has that secret.")
        return
    session.say(f"{key['name']} ({key['id']}) is revoked, with all its generations.")
    session.facts(fence_facts(report["leak"]))
    uses: list[Document] = report["uses"]
    rows = [
        (clock_time(one["at"]), str(one["request_id"] or "-"), money(-one["amount_micros"])) for one in uses
    ]
    session.table(("used at (UTC)", "request", "+amount"), rows, empty="It was charged nothing in that time.")
    if report["refunds"]:
        session.say(f"{len(report['refunds'])} charges were refunded.")
    if evidence is not None:
        session.say(f"The evidence is in {evidence}.")
