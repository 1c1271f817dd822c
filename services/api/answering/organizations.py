"""Organizations as JSON."""

from __future__ import annotations

from typing import Any, Literal

from domain.ids import format_position
from domain.organizations import Organization
from domain.state import Books
from keyledger_language.instants import Instant
from services.api.answering.quotas import QuotaView, quotas_of
from services.api.answering.times import to_text
from services.api.answering.views import Position, Time, View


class OrganizationView(View, frozen=True, kw_only=True):
    """A customer: owns projects, keys, one wallet."""

    id: str
    """The organization's id."""
    name: str
    """What people call the organization."""
    external_id: str | None
    """Your own id of the customer; null if none was given."""
    status: Literal["active", "suspended"]
    """`suspended`: none of its keys works."""
    quotas: list[QuotaView]
    """What all its keys together may use, and what is left of it."""
    metadata: dict[str, Any]
    """Your own JSON, as it was given."""
    created_at: Time
    """When it was created."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


def organization_view(
    organization: Organization, books: Books, now: Instant, prefix: str
) -> OrganizationView:
    """An organization, and what is left of its quotas."""
    return OrganizationView(
        id=organization.id,
        name=organization.name,
        external_id=organization.external_id,
        status="suspended" if organization.suspended else "active",
        quotas=quotas_of(books, "organization", organization.id, organization.quotas, now),
        metadata=organization.metadata,
        created_at=to_text(organization.created_at),
        version=organization.version,
        position=format_position(prefix, organization.position),
    )
