"""Decisions about organizations and projects."""

from __future__ import annotations

from typing import Any

import msgspec

from domain.commands import (
    UNSET,
    ArchiveProject,
    ChangeOrganization,
    ChangeProject,
    OpenOrganization,
    OpenProject,
    ResumeOrganization,
    SuspendOrganization,
)
from domain.decisions.access import (
    expect_version,
    find_organization,
    find_project,
    platform_only,
    require,
)
from domain.decisions.limits import check_metadata, check_quotas, lifts
from domain.desk import Desk
from domain.organizations import Organization, Project
from keyledger_language import events as e


def open_organization(desk: Desk, command: OpenOrganization) -> Organization:
    """Create an organization, with an empty wallet."""
    require(desk, "organizations:write")
    platform_only(desk, "Creating an organization")
    check_quotas(command.quotas)
    check_metadata(command.metadata)
    organization_id = desk.new_id("org")
    desk.record(
        e.OrganizationOpened(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=organization_id,
            private=desk.private(
                name=command.name, external_id=command.external_id, metadata=command.metadata
            ),
            quotas=command.quotas,
            currency=command.currency,
        )
    )
    return desk.draft.organizations[organization_id]


def change_organization(desk: Desk, command: ChangeOrganization) -> Organization:
    """Set fields of an organization; only the platform may lift its quotas."""
    require(desk, "organizations:write")
    organization = find_organization(desk, command.organization_id)
    expect_version(f"Organization {organization.id}", organization.version, command.expected_version)
    if command.metadata is not UNSET:
        check_metadata(command.metadata)
    if command.quotas is not UNSET and command.quotas != organization.quotas:
        check_quotas(command.quotas)
        if lifts(organization.quotas, command.quotas):
            platform_only(desk, "Lifting an organization's quotas")
        desk.record(
            e.OrganizationQuotasSet(
                at=desk.now,
                actor=desk.asking.actor,
                organization_id=organization.id,
                private=desk.private(),
                quotas=command.quotas,
                before=organization.quotas,
            )
        )
    _change_details(desk, organization, command)
    return desk.draft.organizations.find(organization.id) or organization


def _change_details(desk: Desk, organization: Organization, command: ChangeOrganization) -> None:
    after: dict[str, Any] = {}
    for name in ("name", "external_id", "metadata"):
        given = getattr(command, name)
        if given is not UNSET and given != getattr(organization, name):
            after[name] = given
    if after:
        before = {name: getattr(organization, name) for name in after}
        desk.record(
            e.OrganizationChanged(
                at=desk.now,
                actor=desk.asking.actor,
                organization_id=organization.id,
                private=desk.private(before=msgspec.to_builtins(before), after=after),
            )
        )


def suspend_organization(desk: Desk, command: SuspendOrganization) -> Organization:
    """Stop all keys of an organization; doing it twice is harmless."""
    require(desk, "organizations:write")
    platform_only(desk, "Suspending an organization")
    organization = find_organization(desk, command.organization_id)
    expect_version(f"Organization {organization.id}", organization.version, command.expected_version)
    if organization.suspended:
        return organization
    desk.record(
        e.OrganizationSuspended(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=organization.id,
            private=desk.private(reason=command.reason),
        )
    )
    return desk.draft.organizations[organization.id]


def resume_organization(desk: Desk, command: ResumeOrganization) -> Organization:
    """Let the keys of an organization work again; doing it twice is harmless."""
    require(desk, "organizations:write")
    platform_only(desk, "Resuming an organization")
    organization = find_organization(desk, command.organization_id)
    expect_version(f"Organization {organization.id}", organization.version, command.expected_version)
    if not organization.suspended:
        return organization
    desk.record(
        e.OrganizationResumed(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=organization.id,
            private=desk.private(reason=command.reason),
        )
    )
    return desk.draft.organizations[organization.id]


def open_project(desk: Desk, command: OpenProject) -> Project:
    """Make a project in an organization."""
    require(desk, "organizations:write")
    find_organization(desk, command.organization_id)
    check_quotas(command.quotas)
    project_id = desk.new_id("prj")
    desk.record(
        e.ProjectOpened(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=command.organization_id,
            private=desk.private(name=command.name),
            project_id=project_id,
            quotas=command.quotas,
        )
    )
    return desk.draft.projects[project_id]


def change_project(desk: Desk, command: ChangeProject) -> Project:
    """Set fields of a project."""
    require(desk, "organizations:write")
    project = find_project(desk, command.organization_id, command.project_id)
    expect_version(f"Project {project.id}", project.version, command.expected_version)
    if command.quotas is not UNSET:
        check_quotas(command.quotas)
    if command.name is not UNSET and command.name != project.name:
        desk.record(
            e.ProjectRenamed(
                at=desk.now,
                actor=desk.asking.actor,
                organization_id=project.organization_id,
                private=desk.private(name=command.name, before={"name": project.name}),
                project_id=project.id,
            )
        )
    if command.quotas is not UNSET and command.quotas != project.quotas:
        desk.record(
            e.ProjectQuotasSet(
                at=desk.now,
                actor=desk.asking.actor,
                organization_id=project.organization_id,
                private=desk.private(),
                project_id=project.id,
                quotas=command.quotas,
                before=project.quotas,
            )
        )
    return desk.draft.projects.find(project.id) or project


def archive_project(desk: Desk, command: ArchiveProject) -> Project:
    """Refuse all uses that name a project; doing it twice is harmless."""
    require(desk, "organizations:write")
    project = find_project(desk, command.organization_id, command.project_id)
    expect_version(f"Project {project.id}", project.version, command.expected_version)
    if project.archived:
        return project
    desk.record(
        e.ProjectArchived(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=project.organization_id,
            private=desk.private(reason=command.reason),
            project_id=project.id,
        )
    )
    return desk.draft.projects[project.id]
