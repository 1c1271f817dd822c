"""Organizations: the customers, which own projects, keys and one wallet."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from domain.commands import (
    UNSET,
    ChangeOrganization,
    Command,
    OpenOrganization,
    ResumeOrganization,
    SuspendOrganization,
    UnsetType,
)
from domain.decisions.access import find_organization
from domain.organizations import Organization
from domain.state import Books
from projections.directory import list_organizations
from services.api.answering.organizations import OrganizationView, organization_view
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body, ForeignId, Metadata, Name, Quotas, quotas_of
from services.api.lists import Filter, Paging, Search, asked_of, listed
from services.api.operations import Reply, operation
from services.api.writing import Because, Fencing, carry_out, expected_version
from services.ledger.fence_results import FenceResult

_TAG: Final = "Organizations"
_READ: Final = ("organizations:read",)
_WRITE: Final = ("organizations:write",)


class NewOrganization(Body, frozen=True, kw_only=True):
    """An organization to be created."""

    name: Name
    """What people call the customer."""
    external_id: ForeignId | None = None
    """Your own id of the customer."""
    quotas: Quotas = ()
    """What all its keys together may use; one quota for each unit and window."""
    metadata: Metadata = msgspec.field(default_factory=dict)
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=16, pattern="^[A-Za-z0-9_-]+$")] = "USD"
    """The wallet's currency, or the name of a credit unit."""


class OrganizationChanges(Body, frozen=True, kw_only=True):
    """Fields to be set; those left out stay as they are."""

    name: Name | UnsetType = UNSET
    """What people call the customer."""
    external_id: ForeignId | UnsetType | None = UNSET
    """Your own id of the customer; null removes it."""
    quotas: Quotas | UnsetType = UNSET
    """All quotas that it should have; what was spent stays spent."""
    metadata: Metadata | UnsetType = UNSET


class ListOrganizations(Paging, frozen=True, kw_only=True):
    """Which organizations, in which order."""

    external_id: Filter | None = None
    """Only the one with this external id."""
    q: Search | None = None
    """Searched for in names and ids."""
    sort: Literal["created_at", "-created_at", "name", "-name"] = "-created_at"
    """The order; a minus reverses it."""


class ChangedOrganizationView(OrganizationView, frozen=True, kw_only=True):
    """An organization after a change."""

    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away."""


class OrganizationPageView(View, frozen=True, kw_only=True):
    """A page of organizations."""

    items: list[OrganizationView]
    """The page, in the requested order."""
    next_cursor: str | None
    """Send it as `cursor` for the next page; null: this is the last one."""
    position: Position


def _show(call: Call[Any, Any], organization: Organization, books: Books) -> OrganizationView:
    return organization_view(organization, books, call.now, call.prefix)


async def _changed(call: Call[Any, Any], command: Command, *, status: int = 200) -> Reply:
    def show(organization: Organization, books: Books, _: int) -> View:
        return _show(call, organization, books)

    return await carry_out(call, command, show, status=status)


@operation(
    "POST",
    "/v1/organizations",
    tag=_TAG,
    summary="Create an organization",
    permissions=_WRITE,
    body=NewOrganization,
    status=201,
    shown_at="/v1/organizations/{organization_id}",
    answer=OrganizationView,
    codes=("platform_only", "idempotency_conflict"),
    idempotent=True,
    example={"name": "Acme", "external_id": "crm-4711", "metadata": {"tier": "gold"}},
)
async def create_organization(call: Call[Any, NewOrganization]) -> Reply:
    """Create an organization with an empty wallet."""
    body = call.body
    command = OpenOrganization(
        name=body.name,
        external_id=body.external_id,
        quotas=quotas_of(body.quotas),
        metadata=body.metadata,
        currency=body.currency,
    )
    return await _changed(call, command, status=201)


@operation(
    "GET",
    "/v1/organizations",
    operation_id="listOrganizations",
    tag=_TAG,
    summary="List organizations",
    permissions=_READ,
    query=ListOrganizations,
    answer=OrganizationPageView,
    projected=True,
)
async def get_organizations(call: Call[ListOrganizations, Any]) -> Reply:
    """One page of organizations; a bound root key sees only its own."""
    filters = asked_of(call)
    page = list_organizations(call.reader.queries, organization_id=call.asking.organization_id, **filters)
    books = call.books

    def show(organization_id: str) -> OrganizationView | None:
        organization = books.organizations.find(organization_id)
        return None if organization is None else _show(call, organization, books)

    return await listed(call, page, show)


@operation(
    "GET",
    "/v1/organizations/{organization_id}",
    tag=_TAG,
    summary="Show an organization",
    permissions=_READ,
    answer=OrganizationView,
    codes=("not_found",),
)
async def get_organization(call: Call[Any, Any]) -> Reply:
    """One organization, as of now."""
    organization = find_organization(call.desk, call.path["organization_id"])
    return Reply(_show(call, organization, call.books), version=organization.version)


@operation(
    "PATCH",
    "/v1/organizations/{organization_id}",
    tag=_TAG,
    summary="Change an organization",
    permissions=_WRITE,
    query=Fencing,
    body=OrganizationChanges,
    answer=ChangedOrganizationView,
    codes=("not_found", "platform_only", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"quotas": [{"unit": "micros", "window": "month", "limit": 500_000_000}]},
)
async def update_organization(call: Call[Fencing, OrganizationChanges]) -> Reply:
    """Set fields of an organization."""
    body = call.body
    command = ChangeOrganization(
        organization_id=call.path["organization_id"],
        expected_version=expected_version(call),
        name=body.name,
        external_id=body.external_id,
        quotas=UNSET if body.quotas is UNSET else quotas_of(body.quotas),
        metadata=body.metadata,
    )
    return await _changed(call, command)


@operation(
    "POST",
    "/v1/organizations/{organization_id}/suspend",
    tag=_TAG,
    summary="Suspend an organization",
    description="None of its keys works until it is resumed.",
    permissions=_WRITE,
    query=Fencing,
    body=Because,
    answer=ChangedOrganizationView,
    codes=("not_found", "platform_only", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"reason": "invoice overdue"},
)
async def suspend_organization(call: Call[Fencing, Because]) -> Reply:
    """Suspend an organization: none of its keys works."""
    command = SuspendOrganization(
        organization_id=call.path["organization_id"],
        reason=call.body.reason,
        expected_version=expected_version(call),
    )
    return await _changed(call, command)


@operation(
    "POST",
    "/v1/organizations/{organization_id}/resume",
    tag=_TAG,
    summary="Resume an organization",
    description="Its keys work again.",
    permissions=_WRITE,
    body=Because,
    answer=OrganizationView,
    codes=("not_found", "platform_only", "version_conflict", "idempotency_conflict"),
    conditional=True,
    idempotent=True,
    example={"reason": "invoice paid"},
)
async def resume_organization(call: Call[Any, Because]) -> Reply:
    """Resume an organization: its keys work again."""
    command = ResumeOrganization(
        organization_id=call.path["organization_id"],
        reason=call.body.reason,
        expected_version=expected_version(call),
    )
    return await _changed(call, command)


ROUTES = [
    create_organization,
    get_organizations,
    get_organization,
    update_organization,
    suspend_organization,
    resume_organization,
]
