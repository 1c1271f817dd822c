"""Projects: what a key may be scoped to inside an organization."""

from __future__ import annotations

from typing import Any, Final, Literal

from domain.commands import UNSET, ArchiveProject, ChangeProject, Command, OpenProject, UnsetType
from domain.decisions.access import find_organization, find_project
from domain.organizations import Project
from domain.state import Books
from projections.directory import list_projects
from services.api.answering.projects import ProjectView, project_view
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body, Name, Quotas, quotas_of
from services.api.lists import Paging, Search, cursor_of, listed
from services.api.operations import Reply, operation
from services.api.writing import Because, Fencing, carry_out, expected_version
from services.ledger.fence_results import FenceResult

_TAG: Final = "Projects"
_PATH: Final = "/v1/organizations/{organization_id}/projects"
_READ: Final = ("organizations:read",)
_WRITE: Final = ("organizations:write",)


class NewProject(Body, frozen=True, kw_only=True):
    """A project to be created."""

    name: Name
    """What people call the project."""
    quotas: Quotas = ()
    """What all uses that name it may use together; one quota for each unit and window."""


class ProjectChanges(Body, frozen=True, kw_only=True):
    """Fields to be set; those left out stay as they are."""

    name: Name | UnsetType = UNSET
    """What people call the project."""
    quotas: Quotas | UnsetType = UNSET
    """All quotas that it should have; what was spent stays spent."""


class ListProjects(Paging, frozen=True, kw_only=True):
    """Which projects, in which order."""

    include_archived: bool = False
    """Include archived ones."""
    q: Search | None = None
    """Searched for in names and ids."""
    sort: Literal["created_at", "-created_at", "name", "-name"] = "-created_at"
    """The order; a minus reverses it."""


class ChangedProjectView(ProjectView, frozen=True, kw_only=True):
    """A project after a change."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away."""


class ProjectPageView(View, frozen=True, kw_only=True):
    """A page of projects."""

    items: list[ProjectView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


def _show(call: Call[Any, Any], project: Project, books: Books) -> ProjectView:
    return project_view(project, books, call.now, call.prefix)


async def _changed(call: Call[Any, Any], command: Command, *, status: int = 200) -> Reply:
    def show(project: Project, books: Books, _: int) -> View:
        return _show(call, project, books)

    return await carry_out(call, command, show, status=status)


@operation(
    "POST",
    _PATH,
    tag=_TAG,
    summary="Create a project",
    permissions=_WRITE,
    body=NewProject,
    status=201,
    shown_at=f"{_PATH}/{{project_id}}",
    answer=ProjectView,
    codes=("not_found", "idempotency_conflict"),
    idempotent=True,
    example={"name": "Chat", "quotas": [{"unit": "requests", "window": "day", "limit": 10_000}]},
)
async def create_project(call: Call[Any, NewProject]) -> Reply:
    """Create a project in an organization."""
    command = OpenProject(
        organization_id=call.path["organization_id"],
        name=call.body.name,
        quotas=quotas_of(call.body.quotas),
    )
    return await _changed(call, command, status=201)


@operation(
    "GET",
    _PATH,
    operation_id="listProjects",
    tag=_TAG,
    summary="List projects",
    permissions=_READ,
    query=ListProjects,
    answer=ProjectPageView,
    codes=("not_found",),
    projected=True,
)
async def get_projects(call: Call[ListProjects, Any]) -> Reply:
    """One page of an organization's projects."""
    organization = find_organization(call.desk, call.path["organization_id"])
    query, books = call.query, call.books
    page = list_projects(
        call.reader.queries,
        organization_id=organization.id,
        include_archived=query.include_archived,
        q=query.q,
        sort=query.sort,
        limit=query.limit,
        cursor=cursor_of(call),
    )

    def show(project_id: str) -> ProjectView | None:
        project = books.projects.find(project_id)
        if project is None or (project.archived and not query.include_archived):
            return None
        return _show(call, project, books)

    return await listed(call, page, show)


@operation(
    "GET",
    f"{_PATH}/{{project_id}}",
    tag=_TAG,
    summary="Show a project",
    permissions=_READ,
    answer=ProjectView,
    codes=("not_found",),
)
async def get_project(call: Call[Any, Any]) -> Reply:
    """One project, as of now."""
    project = find_project(call.desk, call.path["organization_id"], call.path["project_id"])
    return Reply(_show(call, project, call.books), version=project.version)


@operation(
    "PATCH",
    f"{_PATH}/{{project_id}}",
    tag=_TAG,
    summary="Change a project",
    permissions=_WRITE,
    query=Fencing,
    body=ProjectChanges,
    answer=ChangedProjectView,
    codes=("not_found", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"name": "Chat (EU)"},
)
async def update_project(call: Call[Fencing, ProjectChanges]) -> Reply:
    """Set fields of a project."""
    body = call.body
    command = ChangeProject(
        organization_id=call.path["organization_id"],
        project_id=call.path["project_id"],
        expected_version=expected_version(call),
        name=body.name,
        quotas=UNSET if body.quotas is UNSET else quotas_of(body.quotas),
    )
    return await _changed(call, command)


@operation(
    "POST",
    f"{_PATH}/{{project_id}}/archive",
    tag=_TAG,
    summary="Archive a project",
    description="Every use that names it is refused from then on.",
    permissions=_WRITE,
    query=Fencing,
    body=Because,
    answer=ChangedProjectView,
    codes=("not_found", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"reason": "wound up"},
)
async def archive_project(call: Call[Fencing, Because]) -> Reply:
    """Archive a project: every use that names it is refused from then on."""
    command = ArchiveProject(
        organization_id=call.path["organization_id"],
        project_id=call.path["project_id"],
        reason=call.body.reason,
        expected_version=expected_version(call),
    )
    return await _changed(call, command)


ROUTES = [create_project, get_projects, get_project, update_project, archive_project]
