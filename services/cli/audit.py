"""`keyledger audit`: who did what, when, from where, with before and after."""

from __future__ import annotations

from typing import Any, Final

import click

from services.cli.amounts import time_of
from services.cli.audit_lines import tell_changes
from services.cli.faults import WRONG_USAGE, CommandError
from services.cli.main import ListsByDefault, examples
from services.cli.session import Session, read_with, talking

_AT_ONCE: Final = 500


@click.group(cls=ListsByDefault)
def audit() -> None:
    """Who did what, when, from where, and what it was before. Without a command it lists."""


@audit.command(
    "list",
    **examples(
        "keyledger audit list --org Acme --from -7d",
        "keyledger audit list --action KeyRevoked --json",
        "keyledger audit list --actor key_01JD0000000000000000000000 --format csv --limit 10000 > audit.csv",
    ),
)
@click.option("--org", "organization", help="What was done in this organization: id, name or external id.")
@click.option("--key", "key_id", help="What was done to this key.")
@click.option("--actor", help="Who did it: the id of a root key or of the key itself, or system.")
@click.option("--action", help="What was done, such as KeyRevoked.")
@click.option("--from", "from_", type=read_with(time_of), help="From this time on: a time, or -7d.")
@click.option("--to", type=read_with(time_of), help="Until this time.")
@click.option("--request-id", help="What one HTTP request did, by its X-Request-Id.")
@click.option("--oldest-first", is_flag=True, help="List the oldest entries first.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@click.option(
    "--format", "form", type=click.Choice(["text", "json", "ndjson", "csv"]), help="text if not given."
)
@talking
def list_audit(
    session: Session,
    /,
    organization: str | None,
    from_: str | None,
    oldest_first: bool,
    limit: int,
    form: str | None,
    **filters: str | None,
) -> None:
    """List what was done, newest first."""
    if session.as_json and form not in {None, "json"}:
        raise CommandError(f"Give --json or --format {form}, not both.", code="usage", exit_code=WRONG_USAGE)
    query: dict[str, Any] = filters | {
        "organization_id": session.organization(organization) if organization else None,
        "from": from_,
        "sort": "at" if oldest_first else None,
    }
    if form in {"ndjson", "csv"}:
        _as_lines(session, query, form, limit)
        return
    items = session.ledger.pages("/v1/audit", limit=limit, **query)
    if session.as_json or form == "json":
        session.print_json({"items": list(items)})
        return
    tell_changes(session, items, of=True, empty="No matching entries.")


def _as_lines(session: Session, query: dict[str, Any], form: str, limit: int) -> None:
    """Print page by page, as the ledger writes them; the first one has the heading."""
    cursor: str | None = None
    while limit > 0:
        at_once = min(limit, _AT_ONCE)
        text, cursor = session.ledger.text("/v1/audit", **query, format=form, limit=at_once, cursor=cursor)
        click.echo(text.encode(), nl=False)
        limit -= at_once
        if cursor is None:
            return
