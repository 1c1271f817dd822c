"""Projects as JSON."""

from __future__ import annotations

from typing import Literal

from domain.ids import format_position
from domain.organizations import Project
from domain.state import Books
from keyledger_language.instants import Instant
from services.api.answering.quotas import QuotaView, quotas_of
from services.api.answering.times import to_text
from services.api.answering.views import Position, Time, View


class ProjectView(View, frozen=True, kw_only=True):
    """What a key may be scoped to inside an organization."""

    id: str
    """The project's id."""
    organization_id: str
    """The customer that it belongs to."""
    name: str
    """What people call the project."""
    status: Literal["active", "archived"]
    """`archived`: every use that names it is refused."""
    quotas: list[QuotaView]
    """What all uses that name it may use together, and what is left of it."""
    created_at: Time
    """When it was created."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


def project_view(project: Project, books: Books, now: Instant, prefix: str) -> ProjectView:
    """A project, and what is left of its quotas."""
    return ProjectView(
        id=project.id,
        organization_id=project.organization_id,
        name=project.name,
        status="archived" if project.archived else "active",
        quotas=quotas_of(books, "project", project.id, project.quotas, now),
        created_at=to_text(project.created_at),
        version=project.version,
        position=format_position(prefix, project.position),
    )
