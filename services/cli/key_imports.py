"""`keyledger keys import`: adopt keys that exist elsewhere, by SHA-256."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Final

import click

from services.cli.batches import send_in_batches
from services.cli.faults import REFUSED, WRONG_USAGE, CommandError
from services.cli.files import read_entries
from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, given, not_together, talking

_MOST_SHOWN: Final = 50
_PREFIX: Final = re.compile(r"(?:[a-z]{1,10}[_-]){1,3}")
"""Words only: never a part that must stay secret, such as the halves of a UUID."""


@click.command(
    "import",
    **examples(
        "keyledger keys import keys.csv --org Acme          # columns: name, sha256, hint, tags...",
        "keyledger keys import keys.ndjson --org Acme       # a line: {name, sha256, hint, quotas...}",
        'printf %s "$OLD_SECRET" | keyledger keys import --name Legacy --org Acme --secret-stdin',
    ),
)
@click.argument(
    "file", required=False, type=click.Path(path_type=Path, allow_dash=True, exists=True, dir_okay=False)
)
@click.option("--org", "organization", help="The organization that owns them, if the file does not name it.")
@click.option("--keyspace", help="Their keyspace, if the file does not name it.")
@click.option("--name", help="To import one key: its name.")
@click.option("--sha256", help="To import one key: the SHA-256 of its secret, hex or base64.")
@click.option("--hint", help="How its secret begins and ends: old_...x7Qd.")
@click.option(
    "--secret-stdin",
    is_flag=True,
    help="Read its secret from standard input; only its SHA-256 and hint are sent.",
)
@talking
def import_keys(
    session: Session,
    file: Path | None,
    organization: str | None,
    keyspace: str | None,
    name: str | None,
    sha256: str | None,
    hint: str | None,
    secret_stdin: bool,
) -> int:
    """Adopt keys that exist elsewhere: one, or many from CSV, JSON lines or a JSON list (- for stdin).

    Exit code 1 if one is refused. A key that an earlier run adopted is refused as existing, and not changed.
    """
    of_one = {"--name": name, "--sha256": sha256, "--hint": hint, "--secret-stdin": secret_stdin}
    for option, value in of_one.items():
        not_together({"a file": file, option: value})
    if file is not None:
        entries = read_entries(file)
    elif name is not None:
        entries = [_one_entry(name, sha256, hint, secret_stdin=secret_stdin)]
    else:
        raise CommandError("Give a file, or --name.", code="usage", exit_code=WRONG_USAGE)
    common = given(
        organization_id=session.organization(organization) if organization else None,
        keyspace_id=session.keyspace(keyspace)
        if keyspace or any("keyspace_id" not in one for one in entries)
        else None,
    )
    items = [common | entry for entry in entries]
    results = send_in_batches(session, "/v1/keys/import", items, what="Importing", unit="keys", named=True)
    failed = sum(1 for one in results if one.get("key") is None)
    session.show(
        {"results": results, "imported": len(results) - failed, "failed": failed},
        lambda: _tell(session, entries, results),
    )
    return REFUSED if failed else 0


def _tell(session: Session, entries: list[Document], results: list[Document]) -> None:
    """Print every key of a short list; of a long one only those that were refused."""
    refused = [pair for pair in zip(entries, results, strict=True) if pair[1].get("key") is None]
    shown = refused if len(results) > _MOST_SHOWN else list(zip(entries, results, strict=True))
    rows = [
        (str(entry.get("name") or "-"), one["code"], (one["key"] or {}).get("id", "-"), one["detail"] or "")
        for entry, one in shown[:_MOST_SHOWN]
    ]
    if rows or not results:
        session.table(("name", "outcome", "key", "why"), rows, empty="Nothing to import.")
    if len(shown) > _MOST_SHOWN:
        session.say(f"... and {len(shown) - _MOST_SHOWN:,} more; --json lists all.")
    session.say(f"{len(results) - len(refused):,} imported, {len(refused):,} not.")


def _one_entry(name: str, sha256: str | None, hint: str | None, *, secret_stdin: bool) -> Document:
    not_together({"--sha256": sha256, "--secret-stdin": secret_stdin})
    if secret_stdin:
        secret = sys.stdin.read().strip()
        if not secret:
            raise CommandError("No secret on standard input.", code="usage", exit_code=WRONG_USAGE)
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return {"name": name, "sha256": digest, "hint": hint or _hint_of(secret)}
    if sha256 is None:
        raise CommandError(
            "Give --sha256, or --secret-stdin and the secret.", code="usage", exit_code=WRONG_USAGE
        )
    return {"name": name, "sha256": sha256, **given(hint=hint)}


def _hint_of(secret: str) -> str:
    """The secret's prefix, if it begins with words such as `old_live_`, and its last four characters."""
    prefix = _PREFIX.match(secret)
    return f"{prefix[0] if prefix else ''}...{secret[-4:]}"
