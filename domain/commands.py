"""The commands that the ledger accepts. They are named in the imperative; decisions answer them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language import NO_USE, AcceptedFormat, Allowed, RateLimit, SecretFormat, Use
from keyledger_language.events import Denial, Origin, Quota
from keyledger_language.instants import Instant

UNSET = msgspec.UNSET
UnsetType = msgspec.UnsetType


class Asking(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The caller of a command, and where its request came from."""

    actor: str
    """The id of the caller's key, or `system`."""
    organization_id: str | None = None
    """The organization that the caller's root key is bound to; None: the whole platform."""
    keyspace_id: str | None = None
    """The keyspace that the caller's root key is bound to; None: all."""
    origin: Origin | None = None


class Command(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all commands."""


class DefineKeyspace(Command, frozen=True, kw_only=True):
    """Make a keyspace, from a preset or from scratch."""

    name: str
    preset: str | None = None
    prefix: str | None = None
    secret_format: SecretFormat | None = None
    accepted_formats: tuple[AcceptedFormat, ...] = ()
    credential_locations: tuple[str, ...] | None = None
    tenant_locations: dict[str, str] | None = None
    denial_status: dict[str, int] | None = None
    require_balance: bool | None = None
    required_dimensions: tuple[str, ...] | None = None


class ChangeKeyspace(Command, frozen=True, kw_only=True):
    """Set fields of a keyspace; its prefix and format never change."""

    keyspace_id: str
    expected_version: int | None = None
    name: str | UnsetType = UNSET
    accepted_formats: tuple[AcceptedFormat, ...] | UnsetType = UNSET
    credential_locations: tuple[str, ...] | UnsetType = UNSET
    tenant_locations: dict[str, str] | UnsetType = UNSET
    denial_status: dict[str, int] | UnsetType = UNSET
    require_balance: bool | UnsetType = UNSET
    required_dimensions: tuple[str, ...] | UnsetType = UNSET


class ArchiveKeyspace(Command, frozen=True, kw_only=True):
    """Archive a keyspace that never had a key: its prefix is free again."""

    keyspace_id: str
    reason: str | None = None
    expected_version: int | None = None


class DefinePlan(Command, frozen=True, kw_only=True):
    """Make a plan."""

    name: str
    models: tuple[str, ...] | Literal["*"]
    price_multiplier: str = "1"


class ChangePlan(Command, frozen=True, kw_only=True):
    """Set fields of a plan."""

    plan_id: str
    expected_version: int | None = None
    name: str | UnsetType = UNSET
    models: tuple[str, ...] | Literal["*"] | UnsetType = UNSET
    price_multiplier: str | UnsetType = UNSET


class OpenOrganization(Command, frozen=True, kw_only=True):
    """Create an organization, with an empty wallet."""

    name: str
    external_id: str | None = None
    quotas: tuple[Quota, ...] = ()
    metadata: dict[str, Any] = {}
    currency: str = "USD"


class ChangeOrganization(Command, frozen=True, kw_only=True):
    """Set fields of an organization."""

    organization_id: str
    expected_version: int | None = None
    name: str | UnsetType = UNSET
    external_id: str | UnsetType | None = UNSET
    quotas: tuple[Quota, ...] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class SuspendOrganization(Command, frozen=True, kw_only=True):
    """Stop all keys of an organization."""

    organization_id: str
    reason: str | None = None
    expected_version: int | None = None


class ResumeOrganization(Command, frozen=True, kw_only=True):
    """Let the keys of an organization work again."""

    organization_id: str
    reason: str | None = None
    expected_version: int | None = None


class OpenProject(Command, frozen=True, kw_only=True):
    """Make a project in an organization."""

    organization_id: str
    name: str
    quotas: tuple[Quota, ...] = ()


class ChangeProject(Command, frozen=True, kw_only=True):
    """Set fields of a project."""

    organization_id: str
    project_id: str
    expected_version: int | None = None
    name: str | UnsetType = UNSET
    quotas: tuple[Quota, ...] | UnsetType = UNSET


class ArchiveProject(Command, frozen=True, kw_only=True):
    """Refuse all uses that name a project, from here on."""

    organization_id: str
    project_id: str
    reason: str | None = None
    expected_version: int | None = None


class NewScopes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Scopes as a caller sends them; a dimension left out stays (or, at creation, is `"*"`)."""

    permissions: Allowed | UnsetType = UNSET
    projects: Allowed | UnsetType = UNSET
    models: Allowed | UnsetType = UNSET
    tenants: Allowed | UnsetType = UNSET


class CreateKey(Command, frozen=True, kw_only=True):
    """Make a key. Its secret was made in the process that shows it; here are only fingerprint and hint."""

    keyspace_id: str
    organization_id: str | None
    name: str
    fingerprint: bytes
    hint: str
    kind: Literal["solo", "client", "platform"] = "solo"
    owner_id: str | None = None
    environment: str | None = None
    plan_id: str | None = None
    scopes: NewScopes = NewScopes()
    quotas: tuple[Quota, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    allowed_ips: tuple[str, ...] = ()
    expires_at: Instant | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    bound_keyspace_id: str | None = None
    imported: bool = False


class ChangeKey(Command, frozen=True, kw_only=True):
    """Set fields of a key."""

    key_id: str
    expected_version: int | None = None
    name: str | UnsetType = UNSET
    owner_id: str | UnsetType | None = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    environment: str | UnsetType | None = UNSET
    plan_id: str | UnsetType | None = UNSET
    quotas: tuple[Quota, ...] | UnsetType = UNSET
    rate_limits: tuple[RateLimit, ...] | UnsetType = UNSET
    allowed_ips: tuple[str, ...] | UnsetType = UNSET
    expires_at: Instant | UnsetType | None = UNSET


class EditScopes(Command, frozen=True, kw_only=True):
    """Change what a key may be used for; the secret stays."""

    key_id: str
    scopes: NewScopes
    expected_version: int | None = None


class RotateKey(Command, frozen=True, kw_only=True):
    """Give a key its next secret; the current one still works during the overlap."""

    key_id: str
    fingerprint: bytes
    hint: str
    overlap_seconds: int = 0
    reason: str | None = None
    expected_version: int | None = None


class DisableKey(Command, frozen=True, kw_only=True):
    """Disable a key."""

    key_id: str
    reason: str | None = None
    expected_version: int | None = None


class EnableKey(Command, frozen=True, kw_only=True):
    """Enable a key again."""

    key_id: str
    reason: str | None = None
    expected_version: int | None = None


class RevokeKey(Command, frozen=True, kw_only=True):
    """Stop a key for good."""

    key_id: str
    reason: str | None = None
    expected_version: int | None = None


class RevokeKeys(Command, frozen=True, kw_only=True):
    """Stop many keys for good, in one commit."""

    key_ids: tuple[str, ...]
    reason: str | None = None


class DeleteKey(Command, frozen=True, kw_only=True):
    """Revoke a key and hide it."""

    key_id: str
    reason: str | None = None
    expected_version: int | None = None


class RevokeSelf(Command, frozen=True, kw_only=True):
    """Revoke the key of a secret: every holder of a secret may do that."""

    fingerprint: bytes
    reason: str | None = None


class ReportLeak(Command, frozen=True, kw_only=True):
    """Report a leaked secret: its key is revoked, with all generations."""

    fingerprint: bytes
    source: str
    where: str | None = None


class BootstrapRootKey(Command, frozen=True, kw_only=True):
    """Make the built-in keyspace, and a root key of this secret if there is none."""

    name: str
    fingerprint: bytes
    hint: str
    reason: str | None = None


# -- money


class DepositCredits(Command, frozen=True, kw_only=True):
    """Top up a wallet, or adjust it (negative); the same reference counts once."""

    organization_id: str
    amount_micros: int
    reference: str
    reason: str | None = None


class SetWalletTerms(Command, frozen=True, kw_only=True):
    """Set a wallet's credit limit and alert line."""

    organization_id: str
    credit_limit_micros: int | UnsetType | None = UNSET
    alert_below_micros: int | UnsetType | None = UNSET


class Metering(Command, frozen=True, kw_only=True):
    """The fields of charges and reservations; the key is given by its secret's fingerprint or its id."""

    keyspace_id: str | None = None
    fingerprint: bytes | None = None
    key_id: str | None = None
    request_id: str
    base_micros: int
    use: Use = NO_USE
    metadata: dict[str, Any] | None = None
    count_rate: bool = False
    """Whether the use counts against rate limits: from verify and forward-auth it does, from charges not."""


class ChargeUsage(Metering, frozen=True, kw_only=True):
    """Charge one request; a repeated command is charged once."""


class ReserveCredits(Metering, frozen=True, kw_only=True):
    """Hold money for a use whose price is not known yet."""

    expires_in_seconds: int = 600


class CaptureReservation(Command, frozen=True, kw_only=True):
    """Turn a reservation, or part of it, into a charge."""

    reservation_id: str
    request_id: str
    base_micros: int
    final: bool = True


class ReleaseReservation(Command, frozen=True, kw_only=True):
    """Release what a reservation still holds."""

    reservation_id: str
    request_id: str | None = None


class RefundCharge(Command, frozen=True, kw_only=True):
    """Give back a charge, in part or whole (`amount_micros` None)."""

    charge_id: str
    request_id: str
    amount_micros: int | None = None


# -- the ledger's own commands


class Denied(msgspec.Struct, frozen=True, kw_only=True):
    """Refused uses of one key."""

    key_id: str
    counts: dict[str, int]
    requests: tuple[Denial, ...] = ()
    metadata: dict[str, dict[str, Any]] = {}
    """The metadata of those requests that have any, by their index, as text."""


class RecordSeen(Command, frozen=True, kw_only=True):
    """Record sightings: last uses, and denials of known keys."""

    seen: tuple[tuple[str, Instant, int], ...] = ()
    denied: tuple[Denied, ...] = ()


class RecordFence(Command, frozen=True, kw_only=True):
    """Record a fence's receipt."""

    fenced: tuple[int, ...]
    committed_at: Instant
    fenced_at: Instant
    edges_acknowledged: int
    edges_expired: int
    last_accept_at: Instant | None = None


class Tick(Command, frozen=True, kw_only=True):
    """Record what has happened through the passing of time alone, such as expiry."""
