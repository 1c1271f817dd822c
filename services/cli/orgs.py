"""`keyledger orgs` and `projects`."""

from __future__ import annotations

from typing import Any

import click

from services.cli.amounts import clock_time, quota_of
from services.cli.http import Document
from services.cli.main import examples
from services.cli.metadata import metadata_of, metadata_option
from services.cli.session import (
    Session,
    given,
    not_together,
    read_with,
    reason_option,
    talking,
    yes_option,
)
from services.cli.usage import read_usage, usage_options, usage_table
from services.cli.words import quota_text, words


@click.group
def orgs() -> None:
    """Organizations: the customers, which own projects, keys and one wallet."""


@orgs.command(
    "create",
    **examples(
        "keyledger orgs create Acme --external-id cus_42",
        "keyledger orgs create Acme --quota money/month=500.00",
    ),
)
@click.argument("name")
@click.option("--external-id", help="Your own id for this customer.")
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    type=read_with(quota_of),
    help="Such as money/month=500.00; may be repeated.",
)
@metadata_option
@talking
def create(
    session: Session,
    name: str,
    external_id: str | None,
    quotas: tuple[Document, ...],
    metadata: tuple[tuple[str, Any], ...],
) -> None:
    """Create an organization."""
    made = session.ledger.post(
        "/v1/organizations",
        given(name=name, external_id=external_id, quotas=[*quotas], metadata=metadata_of(metadata)),
    )
    session.show(made, lambda: _facts(session, made))


@orgs.command("list", **examples("keyledger orgs list --limit 20", "keyledger orgs list --json"))
@click.option("--limit", default=100, show_default=True, help="How many at most.")
@talking
def list_orgs(session: Session, limit: int) -> None:
    """List the organizations."""
    items = list(session.ledger.pages("/v1/organizations", limit=limit))
    rows = [
        (
            one["id"],
            one["name"],
            str(one.get("external_id") or "-"),
            one["status"],
            clock_time(one["created_at"]),
        )
        for one in items
    ]
    columns = ("id", "name", "external id", "status", "created (UTC)")
    session.show({"items": items}, lambda: session.table(columns, rows, empty="No organizations."))


@orgs.command("show", **examples("keyledger orgs show Acme"))
@click.argument("organization")
@talking
def show(session: Session, organization: str) -> None:
    """Show one organization, by id, name or external id."""
    found = session.ledger.get(f"/v1/organizations/{session.organization(organization)}")
    session.show(found, lambda: _facts(session, found))


@orgs.command("update", **examples("keyledger orgs update Acme --quota money/month=900.00"))
@click.argument("organization")
@click.option("--name", help="A new name.")
@click.option("--external-id", help="Your own id for this customer.")
@click.option("--quota", "quotas", multiple=True, type=read_with(quota_of), help="Replaces all quotas.")
@click.option("--no-quotas", is_flag=True, help="Remove all quotas.")
@metadata_option
@talking
def update(
    session: Session,
    organization: str,
    name: str | None,
    external_id: str | None,
    quotas: tuple[Document, ...],
    no_quotas: bool,
    metadata: tuple[tuple[str, Any], ...],
) -> None:
    """Change an organization. Options that are not given change nothing."""
    not_together({"--quota": quotas, "--no-quotas": no_quotas})
    body = given(name=name, external_id=external_id, quotas=[*quotas], metadata=metadata_of(metadata))
    body |= {"quotas": []} if no_quotas else {}
    changed = session.ledger.patch(f"/v1/organizations/{session.organization(organization)}", body)
    session.show(changed, lambda: _facts(session, changed))


@orgs.command("usage", **examples("keyledger orgs usage Acme --from -30d --by key"))
@click.argument("organization")
@usage_options
@talking
def usage(session: Session, /, organization: str, **query: str | None) -> None:
    """Show the usage of an organization's keys, by time and by a dimension of your choice."""
    found = read_usage(session, f"/v1/organizations/{session.organization(organization)}/usage", query)
    session.show(found, lambda: usage_table(session, found))


@orgs.command("suspend", **examples("keyledger orgs suspend Acme --reason 'unpaid since May'"))
@click.argument("organization")
@reason_option
@yes_option
@talking
def suspend(session: Session, organization: str, reason: str | None, yes: bool) -> None:
    """Suspend an organization: none of its keys works until it is resumed."""
    identity = session.organization(organization)
    session.confirm(f"Stop all keys of {organization}?", yes=yes)
    changed = session.ledger.post(f"/v1/organizations/{identity}/suspend", given(reason=reason))
    session.show(changed, lambda: session.say(f"{organization} is suspended: none of its keys works."))


@orgs.command("resume", **examples("keyledger orgs resume Acme"))
@click.argument("organization")
@reason_option
@talking
def resume(session: Session, organization: str, reason: str | None) -> None:
    """Let a suspended organization's keys work again."""
    changed = session.ledger.post(
        f"/v1/organizations/{session.organization(organization)}/resume", given(reason=reason)
    )
    session.show(changed, lambda: session.say(f"{organization} is active again."))


@click.group
def projects() -> None:
    """Projects: what a key may be scoped to inside an organization."""


@projects.command("create", **examples("keyledger projects create Acme search --quota requests/day=10000"))
@click.argument("organization")
@click.argument("name")
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    type=read_with(quota_of),
    help="Such as money/month=500.00; may be repeated.",
)
@talking
def create_project(session: Session, organization: str, name: str, quotas: tuple[Document, ...]) -> None:
    """Create a project."""
    made = session.ledger.post(
        f"/v1/organizations/{session.organization(organization)}/projects", given(name=name, quotas=[*quotas])
    )
    session.show(made, lambda: session.facts(_project_facts(made)))


@projects.command("list", **examples("keyledger projects list Acme"))
@click.argument("organization")
@talking
def list_projects(session: Session, organization: str) -> None:
    """List an organization's projects."""
    path = f"/v1/organizations/{session.organization(organization)}/projects"
    items = list(session.ledger.pages(path, limit=1_000))
    rows = [(one["id"], one["name"], one["status"], quotas_line(one)) for one in items]
    session.show(
        {"items": items},
        lambda: session.table(("id", "name", "status", "quotas"), rows, empty="No projects."),
    )


@projects.command("update", **examples("keyledger projects update Acme search --quota requests/day=500"))
@click.argument("organization")
@click.argument("project")
@click.option("--name", help="A new name.")
@click.option("--quota", "quotas", multiple=True, type=read_with(quota_of), help="Replaces all quotas.")
@click.option("--no-quotas", is_flag=True, help="Remove all quotas.")
@talking
def update_project(
    session: Session,
    organization: str,
    project: str,
    name: str | None,
    quotas: tuple[Document, ...],
    no_quotas: bool,
) -> None:
    """Change a project. Options that are not given change nothing."""
    not_together({"--quota": quotas, "--no-quotas": no_quotas})
    owner = session.organization(organization)
    body = given(name=name, quotas=[*quotas]) | ({"quotas": []} if no_quotas else {})
    changed = session.ledger.patch(
        f"/v1/organizations/{owner}/projects/{session.project(owner, project)}", body
    )
    session.show(changed, lambda: session.facts(_project_facts(changed)))


@projects.command("archive", **examples("keyledger projects archive Acme search"))
@click.argument("organization")
@click.argument("project")
@reason_option
@yes_option
@talking
def archive_project(session: Session, organization: str, project: str, reason: str | None, yes: bool) -> None:
    """Archive a project: all uses that name it are refused, for good."""
    owner = session.organization(organization)
    identity = session.project(owner, project)
    session.confirm(f"Archive {project}? Uses that name it are refused, for good.", yes=yes)
    changed = session.ledger.post(
        f"/v1/organizations/{owner}/projects/{identity}/archive", given(reason=reason)
    )
    session.show(changed, lambda: session.say(f"{project} is archived."))


def quotas_line(one: Document) -> str:
    """The quotas of an organization or a project, in one line."""
    return "; ".join(quota_text(quota) for quota in one.get("quotas", [])) or "-"


def _facts(session: Session, one: Document) -> None:
    session.facts(
        [
            ("organization", f"{one['name']} ({one['id']})"),
            ("status", one["status"]),
            ("external id", str(one.get("external_id") or "-")),
            ("quotas", quotas_line(one)),
            ("metadata", words(one.get("metadata") or "-")),
            ("created", clock_time(one.get("created_at"))),
        ]
    )


def _project_facts(one: Document) -> list[tuple[str, str]]:
    return [
        ("project", f"{one['name']} ({one['id']})"),
        ("status", one["status"]),
        ("quotas", quotas_line(one)),
    ]
