"""The management API's things as JSON: keys, organizations, projects, plans, keyspaces, wallets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from domain.accounts import Wallet
from domain.events import Quota
from domain.ids import format_position
from domain.instants import Instant
from domain.keys import Key, Secret
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from domain.organizations import Organization, Plan, Project
from domain.quotas import Level, QuotaState, states_of
from domain.state import Books
from keyledger_edge import AcceptedFormat, Allowed, RateLimit, Scopes, SecretFormat
from services.api.answering.times import time_of, to_text

Time = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""RFC 3339 in UTC."""
Position = Annotated[
    str, msgspec.Meta(description="An event's place in its log; opaque.", examples=["0-1042"])
]
Micros = Annotated[int, msgspec.Meta(description="Millionths of the currency unit.", examples=[2_500_000])]


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Something as JSON."""


class RefusalView(View, frozen=True, gc=False):
    """Which limit said no, what is left of it, and when it begins anew."""

    level: Literal["key", "project", "organization", "wallet"]
    unit: Literal["micros", "requests"]
    window: Literal["day", "week", "month", "total"] | None
    limit: int | None
    remaining: int
    resets_at: Time | None


class ResultsView(View, frozen=True, kw_only=True):
    """Outcomes in the order of the items."""

    results: list[dict[str, Any]]
    position: Position


class QuotaView(View, frozen=True, gc=False):
    """A quota and where it stands."""

    level: Literal["key", "project", "organization"]
    subject_id: str
    """The key, project or organization that has it."""
    unit: Literal["micros", "requests"]
    window: Literal["day", "week", "month", "total"]
    limit: int
    alert_percents: tuple[int, ...]
    spent: int
    remaining: int
    resets_at: Time | None


class SecretView(View, frozen=True, kw_only=True):
    """One generation of a key's secret, for people: never the secret, never its fingerprint."""

    generation: int
    hint: str
    ends_at: Time | None
    """From then on it is `rotated`; null for the newest."""


class KeyView(View, frozen=True, kw_only=True):
    """A key."""

    id: str
    keyspace_id: str
    organization_id: str | None
    name: str
    hint: str
    generation: int
    kind: Literal["solo", "client", "platform"]
    owner_id: str | None
    environment: str | None
    plan_id: str | None
    status: Literal["active", "disabled", "revoked", "expired"]
    scopes: Scopes
    quotas: list[QuotaView]
    rate_limits: tuple[RateLimit, ...]
    allowed_ips: tuple[str, ...]
    expires_at: Time | None
    created_at: Time
    created_by: str
    imported: bool
    last_used_at: Time | None
    rotated_at: Time | None
    revoked_at: Time | None
    deleted: bool
    bound_keyspace_id: str | None
    """Of a root key: the one keyspace that it acts on."""
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    secrets: list[SecretView]
    """The generations, oldest first."""
    version: int
    position: Position


class OrganizationView(View, frozen=True, kw_only=True):
    """A customer: owns projects, keys, one wallet."""

    id: str
    name: str
    external_id: str | None
    status: Literal["active", "suspended"]
    quotas: list[QuotaView]
    metadata: dict[str, Any]
    created_at: Time
    version: int
    position: Position


class ProjectView(View, frozen=True, kw_only=True):
    """What a key may be scoped to inside an organization."""

    id: str
    organization_id: str
    name: str
    status: Literal["active", "archived"]
    quotas: list[QuotaView]
    created_at: Time
    version: int
    position: Position


class PlanView(View, frozen=True, kw_only=True):
    """What the platform gives to a key: models and a price multiplier."""

    id: str
    name: str
    models: Allowed
    price_multiplier: str
    created_at: Time
    version: int
    position: Position


class ShownKeyspace(View, frozen=True, kw_only=True):
    """The keys of one gateway: their shape and their manners."""

    id: str
    name: str
    preset: str | None
    prefix: str
    secret_format: SecretFormat
    secret_shape: str
    """The shape in a line for people."""
    accepted_formats: tuple[AcceptedFormat, ...]
    credential_locations: tuple[str, ...]
    tenant_locations: dict[str, str]
    denial_status: dict[str, int]
    require_balance: bool
    required_dimensions: tuple[str, ...]
    builtin: bool
    status: Literal["active", "archived"]
    created_at: Time
    version: int
    position: Position


class WalletView(View, frozen=True, gc=False):
    """An organization's prepaid balance, shared by all its keys."""

    organization_id: str
    currency: str
    balance_micros: Micros
    reserved_micros: Micros
    available_micros: Micros
    credit_limit_micros: Micros | None
    """How far below zero it may go; 0: prepaid; null: postpaid without end."""
    alert_below_micros: Micros | None
    position: Position | UnsetType = UNSET
    """As of which it was read; where something was done with it, that answer's own."""


def key_view(key: Key, books: Books, now: Instant, last_used: Instant | None, prefix: str) -> KeyView:
    """A key and where its own quotas stand."""
    return KeyView(
        id=key.id,
        keyspace_id=key.keyspace_id,
        organization_id=key.organization_id,
        name=key.name,
        hint=key.newest.hint,
        generation=key.generation,
        kind=key.kind,
        owner_id=key.owner_id,
        environment=key.environment,
        plan_id=key.plan_id,
        status=key.status(now),
        scopes=key.scopes,
        quotas=_quotas_of(books, "key", key.id, key.quotas, now),
        rate_limits=key.rate_limits,
        allowed_ips=key.allowed_ips,
        expires_at=time_of(key.expires_at),
        created_at=to_text(key.created_at),
        created_by=key.created_by,
        imported=key.imported,
        last_used_at=time_of(last_used),
        rotated_at=time_of(key.rotated_at),
        revoked_at=time_of(key.revoked_at),
        deleted=key.deleted,
        bound_keyspace_id=key.bound_keyspace_id,
        tags=key.tags,
        metadata=key.metadata,
        secrets=[_secret_view(secret) for secret in key.secrets],
        version=key.version,
        position=format_position(prefix, key.position),
    )


def _secret_view(secret: Secret) -> SecretView:
    return SecretView(generation=secret.generation, hint=secret.hint, ends_at=time_of(secret.ends_at))


def quota_figures(states: Sequence[QuotaState]) -> list[QuotaView]:
    """Every quota that a use was checked against, or that a subject has, and what is left of it."""
    return [
        QuotaView(
            one.level,
            one.subject_id,
            one.unit,
            one.window,
            one.limit,
            one.alert_percents,
            one.spent,
            one.remaining,
            time_of(one.resets_at),
        )
        for one in states
    ]


def _quotas_of(
    books: Books, level: Level, subject: str, quotas: tuple[Quota, ...], now: Instant
) -> list[QuotaView]:
    """The quotas of one subject and where they stand."""
    return quota_figures(states_of(books, ((level, subject, quotas),), now))


def organization_view(
    organization: Organization, books: Books, now: Instant, prefix: str
) -> OrganizationView:
    """An organization and where its quotas stand."""
    return OrganizationView(
        id=organization.id,
        name=organization.name,
        external_id=organization.external_id,
        status="suspended" if organization.suspended else "active",
        quotas=_quotas_of(books, "organization", organization.id, organization.quotas, now),
        metadata=organization.metadata,
        created_at=to_text(organization.created_at),
        version=organization.version,
        position=format_position(prefix, organization.position),
    )


def project_view(project: Project, books: Books, now: Instant, prefix: str) -> ProjectView:
    """A project and where its quotas stand."""
    return ProjectView(
        id=project.id,
        organization_id=project.organization_id,
        name=project.name,
        status="archived" if project.archived else "active",
        quotas=_quotas_of(books, "project", project.id, project.quotas, now),
        created_at=to_text(project.created_at),
        version=project.version,
        position=format_position(prefix, project.position),
    )


def plan_view(plan: Plan, prefix: str) -> PlanView:
    """A plan."""
    return PlanView(
        id=plan.id,
        name=plan.name,
        models=plan.models,
        price_multiplier=plan.price_multiplier,
        created_at=to_text(plan.created_at),
        version=plan.version,
        position=format_position(prefix, plan.position),
    )


def keyspace_view(keyspace: Keyspace, prefix: str) -> ShownKeyspace:
    """A keyspace."""
    return ShownKeyspace(
        id=keyspace.id,
        name=keyspace.name,
        preset=keyspace.preset,
        prefix=keyspace.prefix,
        secret_format=keyspace.secret_format,
        secret_shape=keyspace.shape.describe(),
        accepted_formats=keyspace.accepted_formats,
        credential_locations=keyspace.credential_locations,
        tenant_locations=keyspace.tenant_locations,
        denial_status=keyspace.denial_status,
        require_balance=keyspace.require_balance,
        required_dimensions=keyspace.required_dimensions,
        builtin=keyspace.id == ROOT_KEYSPACE_ID,
        status="archived" if keyspace.archived else "active",
        created_at=to_text(keyspace.created_at),
        version=keyspace.version,
        position=format_position(prefix, keyspace.position),
    )


def wallet_view(wallet: Wallet, position: Position | UnsetType = UNSET) -> WalletView:
    """A wallet, as of the position that it was read at."""
    return WalletView(
        wallet.organization_id,
        wallet.currency,
        wallet.balance,
        wallet.reserved,
        wallet.balance - wallet.reserved,
        wallet.credit_limit,
        wallet.alert_below,
        position,
    )
