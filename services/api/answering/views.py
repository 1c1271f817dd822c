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
    str,
    msgspec.Meta(
        description="Opaque: where it stands in the log; of an answer, up to where it is true.",
        examples=["0-1042"],
    ),
]
Micros = Annotated[int, msgspec.Meta(description="Millionths of the currency unit.", examples=[2_500_000])]

VerdictCode = Annotated[str, msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/VerdictCode"})]
"""The verdict on a use; one that you do not know means no."""


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Something as JSON."""


class RefusalView(View, frozen=True, gc=False):
    """Which limit said no, what is left of it, and when it begins anew."""

    level: Literal["key", "project", "organization", "wallet"]
    """Whose limit it is."""
    unit: Literal["micros", "requests"]
    """What it counts: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"] | None
    """Of a quota, its UTC calendar window; null for a wallet."""
    limit: int | None
    """The quota, or the wallet's credit limit; null: a wallet without end."""
    remaining: int
    """What is left, in its unit."""
    resets_at: Time | None
    """When the quota's next window begins; null for `total` and for a wallet."""


class QuotaView(View, frozen=True, gc=False):
    """A quota and where it stands."""

    level: Literal["key", "project", "organization"]
    """Whose quota it is."""
    subject_id: str
    """The key, project or organization that has it."""
    unit: Literal["micros", "requests"]
    """What is counted: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"]
    """The UTC calendar window in which it counts; `total` never begins anew."""
    limit: int
    """The most in one window."""
    alert_percents: tuple[int, ...]
    """At these percentages of the limit an event tells of it."""
    spent: int
    """What was used in the present window, holds included."""
    remaining: int
    """What is left in the present window."""
    resets_at: Time | None
    """When the next window begins; null for `total`."""


class SecretView(View, frozen=True, kw_only=True):
    """One generation of a key's secret, for people: never the secret, never its fingerprint."""

    generation: int
    """1 for the first secret, then one more with each rotation."""
    hint: str
    """Its prefix and last four characters."""
    ends_at: Time | None
    """From then on it is `rotated`; null for the newest."""


class OwnKeyView(View, frozen=True, kw_only=True):
    """A key as its holder may see it."""

    id: str
    """The key's id, for ever; a rotation does not change it."""
    keyspace_id: str
    """The keyspace that the key is in."""
    organization_id: str | None
    """The customer; null for a root key of the whole platform."""
    name: str
    """What people call the key."""
    hint: str
    """The secret's prefix and its last four characters, for people."""
    generation: int
    """How often the key has got a secret: 1, then one more with each rotation."""
    kind: Literal["solo", "client", "platform"]
    """`solo`: one user; `client`: one company with many users; `platform`: many companies."""
    owner_id: str | None
    """Your own id of whoever owns the key; null if none was given."""
    environment: str | None
    """Such as `production`; null if none was given."""
    plan_id: str | None
    """The plan that the platform gave to the key; null: none."""
    status: Literal["active", "disabled", "revoked", "expired"]
    """Does it work? `disabled` can be undone, `revoked` cannot."""
    scopes: Scopes
    """What the key may be used for."""
    quotas: list[QuotaView]
    """The key's own quotas, and where they stand."""
    rate_limits: tuple[RateLimit, ...]
    """Requests per seconds that verify and forward-auth count."""
    allowed_ips: tuple[str, ...]
    """Networks that the key may be used from; empty: all."""
    expires_at: Time | None
    """From then on the key is `expired`; null: never."""
    created_at: Time
    """When the key was made or imported."""
    last_used_at: Time | None
    """When it was last used, as far as that is written down (about once a minute); null: never."""
    rotated_at: Time | None
    """When it last got a new secret; null: never."""
    revoked_at: Time | None
    """When it was revoked; null: it is not."""
    secrets: list[SecretView]
    """The generations, oldest first."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


class KeyView(OwnKeyView, frozen=True, kw_only=True):
    """A key, with what platform and administrators noted about it."""

    created_by: str
    """Who made it: the id of a root key, or `system`."""
    imported: bool
    """Was it adopted by the SHA-256 of its secret?"""
    deleted: bool
    """Is it hidden, and shown only with `include_deleted`?"""
    bound_keyspace_id: str | None
    """Of a root key: the one keyspace that it acts on."""
    tags: tuple[str, ...]
    """Your own marks, by which keys are found."""
    metadata: dict[str, Any]
    """Yours, as it was given."""


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
    """What all its keys together may use, and where that stands."""
    metadata: dict[str, Any]
    """Yours, as it was given."""
    created_at: Time
    """When it was taken in."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


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
    """What all uses that name it may take, and where that stands."""
    created_at: Time
    """When it was made."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


class PlanView(View, frozen=True, kw_only=True):
    """What the platform gives to a key: models and a price multiplier."""

    id: str
    """The plan's id."""
    name: str
    """What people call the plan."""
    models: Allowed
    """The models that may be called, or `*` for all."""
    price_multiplier: str
    """What base prices are multiplied by, a decimal such as `1.25`."""
    created_at: Time
    """When it was made."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


class ShownKeyspace(View, frozen=True, kw_only=True):
    """The keys of one gateway: their shape and their manners."""

    id: str
    """The keyspace's id."""
    name: str
    """What people call the keyspace."""
    preset: str | None
    """What it was made from; null: from scratch."""
    prefix: str
    """What its secrets begin with."""
    secret_format: SecretFormat
    """What stands behind the prefix."""
    secret_shape: str
    """The shape in a line for people."""
    accepted_formats: tuple[AcceptedFormat, ...]
    """Shapes that imported keys may have beside it."""
    credential_locations: tuple[str, ...]
    """Where a secret may stand in a request, such as `header:X-API-Key`."""
    tenant_locations: dict[str, str]
    """Where a request names its tenant, such as `{"user_id": "query:user_id"}`."""
    denial_status: dict[str, int]
    """HTTP statuses that the keyspace's clients know, by verdict code."""
    require_balance: bool
    """Is a use without a cost refused, too, where wallet or quota are at zero?"""
    required_dimensions: tuple[str, ...]
    """What every use of a key must name."""
    builtin: bool
    """Is it the ledger's own, of root keys? That one cannot be changed."""
    status: Literal["active", "archived"]
    """Archived: it takes no keys any more, and its prefix is free."""
    created_at: Time
    """When it was made."""
    version: int
    """Counts changes of its configuration; also the `ETag`."""
    position: Position


class WalletView(View, frozen=True, gc=False):
    """An organization's prepaid balance, shared by all its keys."""

    organization_id: str
    """The customer whose wallet it is."""
    currency: str
    """A currency, or the name of a credit unit."""
    balance_micros: Micros
    """What was paid in and not spent, in micros; what is held is part of it."""
    reserved_micros: Micros
    """What open reservations hold, in micros."""
    available_micros: Micros
    """What can be spent now, in micros, before any credit: the balance less what is held."""
    credit_limit_micros: Micros | None
    """How far below zero it may go; 0: prepaid; null: postpaid without end."""
    alert_below_micros: Micros | None
    """An event tells when less than this is available; null: never."""
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
