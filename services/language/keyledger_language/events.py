"""The events of the log. An event is a fact: small, complete, without a secret, never edited.

The name of its type on disk (the tag) does not depend on where the class lives. Personal fields
(names, owners, metadata, addresses) are in `private`, which is encrypted wherever it is stored. Times
are instants, money is in micros.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language import AcceptedFormat, RateLimit, Scopes, SecretFormat
from keyledger_language.instants import Instant

SYSTEM = "system"
"""The actor of what the ledger does by itself: expiry, receipts, thresholds."""


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Where the request for a change came from."""

    ip: str | None = None
    user_agent: str | None = None
    request_id: str | None = None


class Quota(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """An amount (micros or requests) per window."""

    unit: Literal["micros", "requests"]
    window: Literal["day", "week", "month", "total"]
    limit: int
    alert_percents: tuple[int, ...] = ()


class Private(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """The personal fields of an event; every one is optional."""

    name: str | None = None
    owner_id: str | None = None
    metadata: dict[str, Any] | None = None
    tags: tuple[str, ...] | None = None
    allowed_ips: tuple[str, ...] | None = None
    external_id: str | None = None
    reason: str | None = None
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None
    origin: Origin | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True, gc=False):
    """What every event carries. Events never form reference cycles, so the garbage collector skips them."""

    at: Instant
    actor: str = SYSTEM
    """The id of the root key that made the request; of an ordinary key, for `self`; or `system`."""
    organization_id: str | None = None
    private: Private | None = None


# -- keyspaces and plans --------------------------------------------------------------------


class KeyspaceDefined(Event, frozen=True, kw_only=True, tag="keyspace.defined"):
    """A gateway's keyspace was defined: the shape of its secrets and its conventions."""

    keyspace_id: str
    name: str
    preset: str | None
    prefix: str
    secret_format: SecretFormat
    accepted_formats: tuple[AcceptedFormat, ...]
    credential_locations: tuple[str, ...]
    tenant_locations: dict[str, str]
    denial_status: dict[str, int]
    require_balance: bool
    required_dimensions: tuple[str, ...]
    builtin: bool = False


class KeyspaceChanged(Event, frozen=True, kw_only=True, tag="keyspace.changed"):
    """Fields of a keyspace were set; those left out stayed as they were."""

    keyspace_id: str
    changes: dict[str, Any]
    before: dict[str, Any]


class KeyspaceArchived(Event, frozen=True, kw_only=True, tag="keyspace.archived"):
    """A keyspace that never had a key was archived: its prefix is free for another one. Private: reason."""

    keyspace_id: str


class PlanDefined(Event, frozen=True, kw_only=True, tag="plan.defined"):
    """A plan was made: the models it allows, and its price multiplier."""

    plan_id: str
    name: str
    models: tuple[str, ...] | Literal["*"]
    price_multiplier: str


class PlanChanged(Event, frozen=True, kw_only=True, tag="plan.changed"):
    """A plan's fields were set; those left out stayed as they were."""

    plan_id: str
    changes: dict[str, Any]
    before: dict[str, Any]


# -- organizations and projects ---------------------------------------------------------------


class OrganizationOpened(Event, frozen=True, kw_only=True, tag="organization.opened"):
    """An organization was created. Private: name, external_id, metadata."""

    quotas: tuple[Quota, ...] = ()
    currency: str = "USD"


class OrganizationChanged(Event, frozen=True, kw_only=True, tag="organization.changed"):
    """An organization's name, external id or metadata was set.

    Private: `after` (the fields that were set), `before` (what they were).
    """


class OrganizationQuotasSet(Event, frozen=True, kw_only=True, tag="organization.quotas_set"):
    """The organization's quotas were replaced."""

    quotas: tuple[Quota, ...]
    before: tuple[Quota, ...]


class OrganizationSuspended(Event, frozen=True, kw_only=True, tag="organization.suspended"):
    """None of the organization's keys works from here on."""


class OrganizationResumed(Event, frozen=True, kw_only=True, tag="organization.resumed"):
    """The organization's keys work again."""


class ProjectOpened(Event, frozen=True, kw_only=True, tag="project.opened"):
    """A project was made. Private: name."""

    project_id: str
    quotas: tuple[Quota, ...] = ()


class ProjectRenamed(Event, frozen=True, kw_only=True, tag="project.renamed"):
    """A project got another name. Private: name, before."""

    project_id: str


class ProjectQuotasSet(Event, frozen=True, kw_only=True, tag="project.quotas_set"):
    """The project's quotas were replaced."""

    project_id: str
    quotas: tuple[Quota, ...]
    before: tuple[Quota, ...]


class ProjectArchived(Event, frozen=True, kw_only=True, tag="project.archived"):
    """Uses that name the project are refused from here on."""

    project_id: str


# -- keys ---------------------------------------------------------------------------------------


class KeyEvent(Event, frozen=True, kw_only=True):
    """What every event of a key carries."""

    key_id: str


class KeyCreated(KeyEvent, frozen=True, kw_only=True, tag="key.created"):
    """A key and its first secret were made. Private: name, owner_id, metadata, tags, allowed_ips."""

    keyspace_id: str
    kind: Literal["solo", "client", "platform"]
    environment: str | None
    plan_id: str | None
    scopes: Scopes
    quotas: tuple[Quota, ...]
    rate_limits: tuple[RateLimit, ...]
    expires_at: Instant | None
    fingerprint: bytes
    hint: str
    bound_keyspace_id: str | None = None


class KeyImported(KeyCreated, frozen=True, kw_only=True, tag="key.imported"):
    """A key that exists elsewhere was imported by its secret's SHA-256."""


class KeyRotated(KeyEvent, frozen=True, kw_only=True, tag="key.rotated"):
    """The key got its next secret; older ones end at `older_end_at`. Private: reason."""

    generation: int
    fingerprint: bytes
    hint: str
    older_end_at: Instant


class SecretRetired(KeyEvent, frozen=True, kw_only=True, tag="key.secret_retired"):
    """The overlap of an older secret has ended."""

    generation: int


class KeyDisabled(KeyEvent, frozen=True, kw_only=True, tag="key.disabled"):
    """The key is disabled until it is enabled again. Private: reason."""


class KeyEnabled(KeyEvent, frozen=True, kw_only=True, tag="key.enabled"):
    """The key works again. Private: reason."""


class KeyRevoked(KeyEvent, frozen=True, kw_only=True, tag="key.revoked"):
    """The key stopped working, for good. Private: reason."""


class KeyDeleted(KeyEvent, frozen=True, kw_only=True, tag="key.deleted"):
    """The key is hidden, and revoked if it was not."""


class KeyExpired(KeyEvent, frozen=True, kw_only=True, tag="key.expired"):
    """The key expired. Recorded once; the key's status does not depend on it, but on the time."""


class KeyRenamed(KeyEvent, frozen=True, kw_only=True, tag="key.renamed"):
    """The key got another name. Private: name, before {name}."""


class OwnerAssigned(KeyEvent, frozen=True, kw_only=True, tag="key.owner_assigned"):
    """The key got another owner, or none. Private: owner_id, before {owner_id}."""


class MetadataSet(KeyEvent, frozen=True, kw_only=True, tag="key.metadata_set"):
    """The key's metadata were replaced. Private: metadata, before {metadata}."""


class TagsSet(KeyEvent, frozen=True, kw_only=True, tag="key.tags_set"):
    """The key's tags were replaced. Private: tags, before {tags}."""


class AllowedIpsSet(KeyEvent, frozen=True, kw_only=True, tag="key.allowed_ips_set"):
    """The addresses that may use the key were replaced. Private: allowed_ips, before {allowed_ips}."""


class EnvironmentSet(KeyEvent, frozen=True, kw_only=True, tag="key.environment_set"):
    """The key was moved to another environment."""

    environment: str | None
    before: str | None


class PlanAssigned(KeyEvent, frozen=True, kw_only=True, tag="key.plan_assigned"):
    """The key got another plan, or none."""

    plan_id: str | None
    before: str | None


class ScopesEdited(KeyEvent, frozen=True, kw_only=True, tag="key.scopes_edited"):
    """What the key may be used for changed; the secret stays."""

    scopes: Scopes
    before: Scopes


class QuotasSet(KeyEvent, frozen=True, kw_only=True, tag="key.quotas_set"):
    """The key's quotas were replaced."""

    quotas: tuple[Quota, ...]
    before: tuple[Quota, ...]


class RateLimitsSet(KeyEvent, frozen=True, kw_only=True, tag="key.rate_limits_set"):
    """The key's rate limits were replaced."""

    rate_limits: tuple[RateLimit, ...]
    before: tuple[RateLimit, ...]


class ExpirySet(KeyEvent, frozen=True, kw_only=True, tag="key.expiry_set"):
    """The key will expire at another time, or never."""

    expires_at: Instant | None
    before: Instant | None


class LeakReported(KeyEvent, frozen=True, kw_only=True, tag="key.leak_reported"):
    """A secret of this key was reported as leaked. Private: reason (where it was found)."""

    generation: int
    source: str


# -- money --------------------------------------------------------------------------------------


class WalletEvent(Event, frozen=True, kw_only=True):
    """What every event that moves money carries: the wallet after the event."""

    balance_micros: int
    reserved_micros: int


class CreditsDeposited(WalletEvent, frozen=True, kw_only=True, tag="credits.deposited"):
    """The wallet was topped up."""

    amount_micros: int
    reference: str


class CreditsAdjusted(WalletEvent, frozen=True, kw_only=True, tag="credits.adjusted"):
    """The wallet was corrected downwards; `amount_micros` is negative."""

    amount_micros: int
    reference: str


class WalletTermsSet(Event, frozen=True, kw_only=True, tag="wallet.terms_set"):
    """The wallet's credit limit (None: postpaid without end) or its alert line (None: none) was set."""

    credit_limit_micros: int | None
    alert_below_micros: int | None
    before: dict[str, int | None]


class Metered(WalletEvent, frozen=True, kw_only=True):
    """What is recorded of a use that costs money."""

    key_id: str
    request_id: str
    base_micros: int
    price_multiplier: str
    amount_micros: int
    model: str | None = None
    provider: str | None = None
    project_id: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None


class UsageCharged(Metered, frozen=True, kw_only=True, tag="usage.charged"):
    """The key spent money on one request; final. Private: metadata."""

    charge_id: str


class UsageRefunded(WalletEvent, frozen=True, kw_only=True, tag="usage.refunded"):
    """A charge was given back, in part or whole. `window_at` is the time of the use."""

    key_id: str
    charge_id: str
    request_id: str
    amount_micros: int
    refunded_micros: int
    """The total refunded of that charge so far, this refund included."""
    window_at: Instant
    project_id: str | None = None
    model: str | None = None
    provider: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None


class CreditsReserved(Metered, frozen=True, kw_only=True, tag="credits.reserved"):
    """Money is held for a use whose price is not known yet. Private: metadata."""

    reservation_id: str
    expires_at: Instant


class ReservationCaptured(WalletEvent, frozen=True, kw_only=True, tag="reservation.captured"):
    """Part or all of a reservation became a charge.

    `amount_micros` was taken (price multiplier applied), `held_micros` of it from the held money;
    `uncovered_micros` is the part that limits did not allow; `released_micros` was released (with the
    `final` capture).
    """

    key_id: str
    reservation_id: str
    charge_id: str
    request_id: str
    base_micros: int
    price_multiplier: str
    amount_micros: int
    held_micros: int
    uncovered_micros: int
    released_micros: int
    final: bool
    window_at: Instant
    """The time of the reservation: the use belongs to that window."""
    project_id: str | None = None
    model: str | None = None
    provider: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None


class ReservationReleased(WalletEvent, frozen=True, kw_only=True, tag="reservation.released"):
    """The rest of a reservation was released."""

    key_id: str
    reservation_id: str
    released_micros: int
    request_id: str | None = None


class ReservationExpired(ReservationReleased, frozen=True, kw_only=True, tag="reservation.expired"):
    """The rest of a reservation was released, because the reservation expired."""


class ThresholdReached(Event, frozen=True, kw_only=True, tag="threshold.reached"):
    """A quota's alert percentage, or a wallet's alert line, was crossed: once per window."""

    level: Literal["key", "project", "organization", "wallet"]
    subject_id: str
    unit: Literal["micros", "requests"]
    window: Literal["day", "week", "month", "total"] | None
    window_start: int | None
    percent: int | None
    limit: int
    value: int
    """What is spent of the quota, or what is available in the wallet."""


# -- what was observed, not decided -------------------------------------------------------------


class Denial(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """One refused use that named a request id; if it would have cost money, also what it asked for."""

    request_id: str
    code: str
    at: Instant
    amount_micros: int | None = None
    """The price multiplier applied; in events without `base_micros`, the amount asked for."""
    base_micros: int | None = None
    price_multiplier: str | None = None
    model: str | None = None
    provider: str | None = None
    project_id: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None


class UsageDenied(KeyEvent, frozen=True, kw_only=True, tag="usage.denied"):
    """Uses of a known key were refused: counts by code, and some request ids. No decision depends on it.

    Private: metadata, of each request that has any, by its index in `requests`.
    """

    counts: dict[str, int]
    requests: tuple[Denial, ...] = ()


class KeysSeen(Event, frozen=True, kw_only=True, tag="keys.seen"):
    """When keys were last used, each at most once a minute: (key id, instant, verifications)."""

    seen: tuple[tuple[str, Instant, int], ...]


class RevocationFenced(Event, frozen=True, kw_only=True, tag="revocation.fenced"):
    """The receipt of a fence: from `fenced_at` on no edge could accept what one commit took away."""

    fenced: tuple[int, ...]
    """The positions, in this event's partition, of the events that took it away."""
    committed_at: Instant
    fenced_at: Instant
    edges_acknowledged: int
    edges_expired: int
    last_accept_at: Instant | None = None


LedgerEvent = (
    KeyspaceDefined
    | KeyspaceChanged
    | KeyspaceArchived
    | PlanDefined
    | PlanChanged
    | OrganizationOpened
    | OrganizationChanged
    | OrganizationQuotasSet
    | OrganizationSuspended
    | OrganizationResumed
    | ProjectOpened
    | ProjectRenamed
    | ProjectQuotasSet
    | ProjectArchived
    | KeyCreated
    | KeyImported
    | KeyRotated
    | SecretRetired
    | KeyDisabled
    | KeyEnabled
    | KeyRevoked
    | KeyDeleted
    | KeyExpired
    | KeyRenamed
    | OwnerAssigned
    | MetadataSet
    | TagsSet
    | AllowedIpsSet
    | EnvironmentSet
    | PlanAssigned
    | ScopesEdited
    | QuotasSet
    | RateLimitsSet
    | ExpirySet
    | LeakReported
    | CreditsDeposited
    | CreditsAdjusted
    | WalletTermsSet
    | UsageCharged
    | UsageRefunded
    | CreditsReserved
    | ReservationCaptured
    | ReservationReleased
    | ReservationExpired
    | ThresholdReached
    | UsageDenied
    | KeysSeen
    | RevocationFenced
)
"""All events; the log's registry is made from this union."""


def stream_of(event: Event) -> str:
    """The stream an event belongs to: its key, its organization (money too), or another subject."""
    if isinstance(event, WalletEvent):
        return event.organization_id or "platform"
    if isinstance(event, KeyEvent) and not isinstance(event, UsageDenied):
        return event.key_id
    if isinstance(event, KeyspaceDefined | KeyspaceChanged | KeyspaceArchived):
        return event.keyspace_id
    if isinstance(event, PlanDefined | PlanChanged):
        return event.plan_id
    return event.organization_id or "platform"


def public_name(event: Event) -> str:
    """The event's public name, such as `KeyRevoked`."""
    return type(event).__name__
