"""`keyledger keyspaces`: the keys of one gateway."""

from __future__ import annotations

import click
import msgspec

from services.cli.http import Document
from services.cli.main import examples
from services.cli.session import Session, each_once, given, reason_option, talking, yes_option

_PRESETS = ("default", "leanmcp", "mindproxy", "leapter", "leadmagic", "allmcp")


@click.group
def keyspaces() -> None:
    """The keys of one gateway: shape of the secret, where a request carries it, statuses of denials."""


@keyspaces.command(
    "create",
    **examples(
        "keyledger keyspaces create acme --prefix acme_live_",
        "keyledger keyspaces create leadmagic --preset leadmagic",
        "keyledger keyspaces create shop --prefix shop_ --location header:X-Shop-Key --denial not_found=404",
    ),
)
@click.argument("name")
@click.option("--preset", type=click.Choice(_PRESETS), help="Start from the conventions of a known gateway.")
@click.option("--prefix", help="What every secret begins with.")
@click.option(
    "--location", "locations", multiple=True, help="Where a request may carry the secret, most likely first."
)
@click.option(
    "--denial", "denials", multiple=True, metavar="CODE=STATUS", help="The HTTP status of a denial."
)
@click.option("--require-balance/--no-require-balance", default=None, help="Refuse uses at zero balance.")
@click.option(
    "--require", "dimensions", multiple=True, help="What each use must name: project, model, tenant."
)
@talking
def create(
    session: Session,
    name: str,
    preset: str | None,
    prefix: str | None,
    locations: tuple[str, ...],
    denials: tuple[str, ...],
    require_balance: bool | None,
    dimensions: tuple[str, ...],
) -> None:
    """Define a keyspace."""
    body = given(
        name=name,
        preset=preset,
        prefix=prefix,
        credential_locations=[*locations],
        denial_status=each_once((_denial(one) for one in denials), "--denial"),
        require_balance=require_balance,
        required_dimensions=[*dimensions],
    )
    made = session.ledger.post("/v1/keyspaces", body)
    session.show(made, lambda: _facts(session, _inner(made, "keyspace")))


@keyspaces.command("list", **examples("keyledger keyspaces list"))
@click.option("--include-archived", is_flag=True, help="Include archived keyspaces.")
@talking
def list_keyspaces(session: Session, include_archived: bool) -> None:
    """List the keyspaces."""
    items = list(
        session.ledger.pages("/v1/keyspaces", limit=1_000, include_archived=include_archived or None)
    )
    rows = [
        (one["id"], one["name"], one["prefix"], str(one.get("preset") or "-"), _places(one)) for one in items
    ]
    session.show(
        {"items": items},
        lambda: session.table(
            ("id", "name", "prefix", "?preset", "?secret carried in"), rows, empty="No keyspaces."
        ),
    )


@keyspaces.command("show", **examples("keyledger keyspaces show leadmagic"))
@click.argument("keyspace")
@talking
def show(session: Session, keyspace: str) -> None:
    """Show one keyspace, by name or id."""
    found = session.ledger.get(f"/v1/keyspaces/{session.keyspace(keyspace)}")
    session.show(found, lambda: _facts(session, found))


@keyspaces.command(
    "archive", **examples("keyledger keyspaces archive shop", "keyledger keyspaces archive shop --yes")
)
@click.argument("keyspace")
@reason_option
@yes_option
@talking
def archive(session: Session, keyspace: str, reason: str | None, yes: bool) -> None:
    """Archive a keyspace that never had a key: its prefix is free again."""
    identity = session.keyspace(keyspace)
    session.confirm(f"Archive the keyspace {keyspace}? That cannot be undone.", yes=yes)
    archived = session.ledger.post(f"/v1/keyspaces/{identity}/archive", given(reason=reason))
    session.show(archived, lambda: session.say(f"{keyspace} is archived, and its prefix is free again."))


def _facts(session: Session, one: Document) -> None:
    session.facts([
        ("keyspace", f"{one['name']} ({one['id']})"),
        ("secret", str(one.get("secret_shape") or one["prefix"])),
        ("carried in", _places(one)),
        ("tenant from", ", ".join(f"{k}={v}" for k, v in one.get("tenant_locations", {}).items())),
        ("denials", ", ".join(f"{k}={v}" for k, v in one.get("denial_status", {}).items())),
        ("needs", ", ".join(one.get("required_dimensions", []))),
        ("balance", "must not be at zero" if one.get("require_balance") else ""),
    ])  # fmt: skip


def _places(one: Document) -> str:
    return ", ".join(one.get("credential_locations", [])) or "-"


def _denial(text: str) -> tuple[str, int]:
    code, equals, status = text.partition("=")
    if not equals or not status.isdecimal():
        raise click.BadParameter(
            f"{text} is not a denial such as billing_shortfall=403", param_hint="--denial"
        )
    return code, int(status)


def _inner(document: Document, name: str) -> Document:
    return msgspec.convert(document.get(name, document), dict)
