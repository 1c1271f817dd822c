"""`keyledger keys`: everything about keys and their secrets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from services.cli.amounts import quota_of, rate_limit_of, seconds_of, time_of
from services.cli.audit_lines import tell_changes
from services.cli.faults import REFUSED, WRONG_USAGE, CommandError
from services.cli.http import path_part
from services.cli.key_facts import facts_of, fence_facts, row_of
from services.cli.key_imports import import_keys
from services.cli.main import examples
from services.cli.metadata import metadata_of, metadata_option
from services.cli.session import (
    Session,
    each_once,
    given,
    not_together,
    read_with,
    reason_option,
    talking,
    yes_option,
)
from services.cli.usage import read_usage, usage_options, usage_table
from services.cli.words import DIMENSIONS

ROOT_KEYSPACE: Final = "ks_00000000000000000000000000"
_QUOTA: Final = read_with(quota_of)
_RATE_LIMIT: Final = read_with(rate_limit_of)
_ENDED: Final = {
    None: "revoked",
    "key_revoked": "was revoked already",
    "not_found": "not found",
    "permission_denied": "not revoked: your root key may not act on it",
}


def scope_of(text: str) -> tuple[str, str | list[str]]:
    """`models=gpt-5,claude` or `models=*` as the API takes it."""
    dimension, equals, allowed = text.partition("=")
    if not equals or dimension not in DIMENSIONS or not allowed:
        raise ValueError(f"{text} is not a scope such as models=gpt-5,claude or models=*")
    return dimension, "*" if allowed == "*" else [one.strip() for one in allowed.split(",") if one.strip()]


@click.group
def keys() -> None:
    """Keys: the lasting identity behind secrets. A secret is shown once, when it is created."""


def _what_a_key_has(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed((
        click.option("--owner", "owner_id", help="Its owner, by your own id."),
        click.option("--environment", help="Its environment, such as production."),
        click.option("--plan", help="Its plan, by name or id."),
        click.option("--quota", "quotas", multiple=True, type=_QUOTA,
                     help="Such as money/month=25.00; may be repeated."),
        click.option("--rate-limit", "rate_limits", multiple=True, type=_RATE_LIMIT,
                     help="Such as 100/60s; may be repeated."),
        click.option("--allow-ip", "allowed_ips", multiple=True, help="A network that it may be used from."),
        click.option("--expires", type=read_with(time_of),
                     help="When it expires: a time, a date, or 30d from now."),
        click.option("--tag", "tags", multiple=True, help="A tag; may be repeated."),
        metadata_option,
    )):  # fmt: skip
        function = option(function)
    return function


@keys.command(
    "create",
    **examples(
        "keyledger keys create Checkout --org Acme",
        "keyledger keys create Checkout --org Acme --quota money/month=25.00@80,100 --rate-limit 100/60s",
        "keyledger keys create Batch --org Acme --scope models=gpt-5 --expires 30d --tag nightly",
        "keyledger keys create gateway --root --permission verify --permission charges:write",
    ),
)
@click.argument("name")
@click.option("--org", "organization", help="The organization that owns it: id, name or external id.")
@click.option("--keyspace", help="Its keyspace, by name or id; not needed if there is only one.")
@click.option("--kind", type=click.Choice(["solo", "client", "platform"]), help="solo if not given.")
@click.option("--scope", "scopes", multiple=True, type=read_with(scope_of), metavar="DIMENSION=A,B",
              help="What it may be used for: permissions, projects, models, tenants.")  # fmt: skip
@click.option("--root", is_flag=True, help="Create a root key, which manages the ledger; see --permission.")
@click.option(
    "--permission", "permissions", multiple=True, help="For a root key: a permission such as keys:read."
)
@click.option("--bound-to", metavar="KEYSPACE", help="For a root key: the only keyspace that it may act on.")
@_what_a_key_has
@talking
def create(
    session: Session,
    /,
    name: str,
    organization: str | None,
    keyspace: str | None,
    kind: str | None,
    scopes: tuple[tuple[str, Any], ...],
    root: bool,
    permissions: tuple[str, ...],
    bound_to: str | None,
    plan: str | None,
    expires: str | None,
    metadata: tuple[tuple[str, Any], ...],
    **fields: Any,
) -> None:
    """Create a key and show its secret. It is shown only once."""
    if root:
        meant_for_uses = {"--kind": kind, "--plan": plan, "--scope": scopes}
        meant_for_uses |= {"--quota": fields["quotas"], "--rate-limit": fields["rate_limits"]}
        _check_root(permissions, keyspace, meant_for_uses)
    elif bound_to is not None:
        raise _usage("Only a root key is bound: give --root, or --keyspace for the keyspace of the key.")
    allowed = each_once(scopes, "--scope")
    not_together({"--permission": permissions, "--scope permissions=": "permissions" in allowed})
    if permissions:
        allowed["permissions"] = [*permissions]
    body = given(
        name=name,
        organization_id=session.organization(organization) if organization else None,
        keyspace_id=ROOT_KEYSPACE if root else session.keyspace(keyspace),
        kind=kind,
        scopes=allowed,
        plan_id=session.plan(plan) if plan else None,
        expires_at=expires,
        metadata=metadata_of(metadata),
        bound_keyspace_id=session.keyspace(bound_to) if bound_to else None,
        **_lists(fields),
    )
    made = session.ledger.post("/v1/keys", body)
    session.show(made, lambda: session.show_secret(made["key"], made["secret"]))


@keys.command(
    "list",
    **examples(
        "keyledger keys list --org Acme",
        "keyledger keys list --status active --tag nightly --sort -last_used_at",
        "keyledger keys list --q checkout --json",
    ),
)
@click.option("--org", "organization", help="Only of this organization.")
@click.option("--keyspace", help="Only of this keyspace.")
@click.option("--project", "project_id", help="Only keys that may be used in this project (its id).")
@click.option("--owner", "owner_id", help="Only of this owner.")
@click.option("--environment", help="Only of this environment.")
@click.option("--tag", help="Only with this tag.")
@click.option("--status", type=click.Choice(["active", "disabled", "revoked", "expired"]))
@click.option("--q", help="Search in name, id, hint and owner.")
@click.option("--include-revoked", is_flag=True, help="Include revoked keys.")
@click.option("--sort", help="created_at, name, last_used_at or expires_at; with - in front, descending.")
@click.option("--limit", default=100, show_default=True, help="How many at most.")
@talking
def list_keys(
    session: Session,
    /,
    organization: str | None,
    keyspace: str | None,
    include_revoked: bool,
    limit: int,
    **filters: str | None,
) -> None:
    """List keys, newest first; revoked ones only when asked for."""
    items = list(
        session.ledger.pages(
            "/v1/keys",
            limit=limit,
            organization_id=session.organization(organization) if organization else None,
            keyspace_id=session.keyspace(keyspace) if keyspace else None,
            include_revoked=True if include_revoked or filters["status"] == "revoked" else None,
            **filters,
        )
    )
    columns = ("id", "name", "secret", "status", "?organization", "?last used (UTC)")
    session.show({"items": items}, lambda: session.table(columns, map(row_of, items), empty="No keys."))


@keys.command("show", **examples("keyledger keys show key_01JD0000000000000000000000"))
@click.argument("key")
@click.option("--include-deleted", is_flag=True, help="Show it even if it is deleted.")
@talking
def show(session: Session, key: str, include_deleted: bool) -> None:
    """Show one key."""
    found = session.ledger.get(f"/v1/keys/{path_part(key)}", include_deleted=include_deleted or None)
    session.show(found, lambda: session.facts(facts_of(found)))


@keys.command(
    "update",
    **examples(
        "keyledger keys update KEY --name 'Checkout 2' --tag web",
        "keyledger keys update KEY --quota money/month=50.00 --no-rate-limits",
        "keyledger keys update KEY --never-expires",
    ),
)
@click.argument("key")
@click.option("--name", help="A new name.")
@click.option("--no-quotas", is_flag=True, help="Remove all quotas.")
@click.option("--no-rate-limits", is_flag=True, help="Remove all rate limits.")
@click.option("--any-ip", is_flag=True, help="Remove the list of networks.")
@click.option("--no-plan", is_flag=True, help="Remove the plan.")
@click.option("--never-expires", is_flag=True, help="Remove the expiry.")
@_what_a_key_has
@talking
def update(
    session: Session,
    /,
    key: str,
    name: str | None,
    no_quotas: bool,
    no_rate_limits: bool,
    any_ip: bool,
    no_plan: bool,
    never_expires: bool,
    plan: str | None,
    expires: str | None,
    metadata: tuple[tuple[str, Any], ...],
    **fields: Any,
) -> None:
    """Change a key. Options that are not given change nothing; a list that is given replaces the old one."""
    not_together({"--quota": fields["quotas"], "--no-quotas": no_quotas})
    not_together({"--rate-limit": fields["rate_limits"], "--no-rate-limits": no_rate_limits})
    not_together({"--allow-ip": fields["allowed_ips"], "--any-ip": any_ip})
    not_together({"--plan": plan, "--no-plan": no_plan})
    not_together({"--expires": expires, "--never-expires": never_expires})
    body = given(
        name=name,
        plan_id=session.plan(plan) if plan else None,
        expires_at=expires,
        metadata=metadata_of(metadata),
        **_lists(fields),
    )
    lifted = {"quotas": no_quotas, "rate_limits": no_rate_limits, "allowed_ips": any_ip}
    body |= {name: [] for name, lift in lifted.items() if lift}
    body |= {name: None for name, lift in {"plan_id": no_plan, "expires_at": never_expires}.items() if lift}
    changed = session.ledger.patch(f"/v1/keys/{path_part(key)}", body)
    session.show(changed, lambda: session.facts([*facts_of(changed), *fence_facts(changed)]))


@keys.command(
    "scopes",
    **examples(
        "keyledger keys scopes KEY models=gpt-5,claude",
        "keyledger keys scopes KEY models='*' projects=prj_01JD0000000000000000000000",
    ),
)
@click.argument("key")
@click.argument("scopes", nargs=-1, required=True, type=read_with(scope_of), metavar="DIMENSION=A,B...")
@talking
def scopes(session: Session, key: str, scopes: tuple[tuple[str, Any], ...]) -> None:
    """Change what a key may be used for; its secret stays the same. Dimensions left out are not changed."""
    edited = each_once(scopes, "The command")
    changed = session.ledger.patch(f"/v1/keys/{path_part(key)}/scopes", edited)
    session.show(changed, lambda: session.facts([*facts_of(changed), *fence_facts(changed)]))


@keys.command(
    "rotate",
    **examples("keyledger keys rotate KEY --overlap 24h", "keyledger keys rotate KEY --yes --reason leaked"),
)
@click.argument("key")
@click.option(
    "--overlap", default="0", type=read_with(seconds_of), help="How long the old secret stays valid."
)
@reason_option
@yes_option
@talking
def rotate(session: Session, key: str, overlap: int, reason: str | None, yes: bool) -> None:
    """Give a key its next secret. Without --overlap the old ones stop working at once."""
    if overlap == 0:
        session.confirm(f"Rotate {key}? Its current secret stops working at once.", yes=yes)
    made = session.ledger.post(
        f"/v1/keys/{path_part(key)}/rotate", given(overlap_seconds=overlap, reason=reason)
    )

    def people() -> None:
        session.show_secret(made["key"], made["secret"], replaces=True)
        session.facts(fence_facts(made))

    session.show(made, people)


@keys.command(
    "disable",
    **examples("keyledger keys disable KEY --reason 'looks odd'", "keyledger keys disable KEY --yes"),
)
@click.argument("key")
@reason_option
@yes_option
@talking
def disable(session: Session, key: str, reason: str | None, yes: bool) -> None:
    """Disable a key; `enable` lets it work again."""
    session.confirm(f"Disable {key}? It stops working at once, until it is enabled.", yes=yes)
    _act(session, key, "disable", reason)


@keys.command("enable", **examples("keyledger keys enable KEY"))
@click.argument("key")
@reason_option
@talking
def enable(session: Session, key: str, reason: str | None) -> None:
    """Let a disabled key work again."""
    _act(session, key, "enable", reason)


@keys.command(
    "revoke",
    **examples("keyledger keys revoke KEY --reason leaked", "keyledger keys revoke KEY KEY KEY --yes"),
)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@reason_option
@yes_option
@talking
def revoke(session: Session, keys: tuple[str, ...], reason: str | None, yes: bool) -> None:
    """Revoke keys for good, everywhere: answers when no edge can accept them any more."""
    session.confirm(f"Revoke {' '.join(keys)}? That cannot be undone.", yes=yes)
    if len(keys) == 1:
        _act(session, keys[0], "revoke", reason)
        return
    done = session.ledger.post("/v1/keys/revoke", given(key_ids=[*keys], reason=reason))

    def people() -> None:
        for one in done["results"]:
            session.say(f"{one['key_id']}: {_ENDED.get(one.get('code'), one.get('code'))}")
        session.facts(fence_facts(done))

    session.show(done, people)
    if not all(one["revoked"] for one in done["results"]):
        raise click.exceptions.Exit(REFUSED)


@keys.command("delete", **examples("keyledger keys delete KEY"))
@click.argument("key")
@yes_option
@talking
def delete(session: Session, key: str, yes: bool) -> None:
    """Revoke a key and hide it; its history, usage and charges are kept."""
    session.confirm(f"Delete {key}? It is revoked for good, and hidden.", yes=yes)
    done = session.ledger.delete(f"/v1/keys/{path_part(key)}")

    def people() -> None:
        session.say(f"{key} is revoked and hidden.")
        session.facts(fence_facts(done))

    session.show(done, people)


@keys.command(
    "usage",
    **examples("keyledger keys usage KEY --from -7d --by model", "keyledger keys usage KEY --bucket hour"),
)
@click.argument("key")
@usage_options
@talking
def usage(session: Session, /, key: str, **query: str | None) -> None:
    """Show a key's usage, by time and by a dimension of your choice."""
    found = read_usage(session, f"/v1/keys/{path_part(key)}/usage", query)
    session.show(found, lambda: usage_table(session, found))


@keys.command("history", **examples("keyledger keys history KEY --limit 20"))
@click.argument("key")
@click.option("--limit", default=50, show_default=True, help="How many events at most.")
@talking
def history(session: Session, key: str, limit: int) -> None:
    """Show what happened to a key: who did what, when, and what it was before."""
    items = list(session.ledger.pages(f"/v1/keys/{path_part(key)}/history", limit=limit))
    session.show(
        {"items": items}, lambda: tell_changes(session, items, of=False, empty="Nothing happened yet.")
    )


keys.add_command(import_keys)


def _check_root(permissions: tuple[str, ...], keyspace: str | None, of_uses: dict[str, Any]) -> None:
    """Refuse options that a root key cannot have, rather than ignore them."""
    if keyspace is not None:
        raise _usage("A root key is in the keyspace of root keys: --bound-to names the one that it acts on.")
    if not permissions:
        raise _usage("A root key needs --permission.")
    if found := [option for option, value in of_uses.items() if value]:
        raise _usage(
            f"A root key is not charged or metered, and is limited by --permission: leave out {found[0]}."
        )


def _usage(sentence: str) -> CommandError:
    return CommandError(sentence, code="usage", exit_code=WRONG_USAGE)


def _act(session: Session, key: str, action: str, reason: str | None) -> None:
    done = session.ledger.post(f"/v1/keys/{path_part(key)}/{action}", given(reason=reason))

    def people() -> None:
        shown = done.get("key", done)
        session.say(f"{shown['name']} ({shown['id']}) is {shown['status']}.")
        session.facts(fence_facts(done))

    session.show(done, people)


def _lists(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: [*value] if isinstance(value, tuple) else value for name, value in fields.items()}
