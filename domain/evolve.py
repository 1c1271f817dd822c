"""How each event changes the state. It never refuses: an event is a fact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from domain.accounts import Counters, Reservation, Wallet
from domain.keys import Key, Secret
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan, Project
from domain.state import Books, owned
from domain.windows import window_starts
from keyledger_language import events as e
from keyledger_language.instants import DAY, Instant


def evolve(books: Books, event: e.Event, position: int) -> None:
    """Apply the event at `position`."""
    _EVOLVE[type(event)](books, event, position)
    books.head = position
    books.at = event.at


def _private(event: e.Event) -> e.Private:
    return event.private if event.private is not None else _NOTHING


_NOTHING = e.Private()


# -- keyspaces and plans


def _keyspace_defined(books: Books, event: e.KeyspaceDefined, position: int) -> None:
    books.settings_changed = True
    books.keyspaces[event.keyspace_id] = Keyspace(
        id=event.keyspace_id,
        name=event.name,
        preset=event.preset,
        prefix=event.prefix,
        secret_format=event.secret_format,
        accepted_formats=event.accepted_formats,
        credential_locations=event.credential_locations,
        tenant_locations=event.tenant_locations,
        denial_status=event.denial_status,
        require_balance=event.require_balance,
        required_dimensions=event.required_dimensions,
        builtin=event.builtin,
        created_at=event.at,
        position=position,
    )


def _keyspace_changed(books: Books, event: e.KeyspaceChanged, position: int) -> None:
    books.settings_changed = True
    keyspace = _known(books.keyspaces.find(event.keyspace_id))
    books.keyspaces[keyspace.id] = _with(keyspace, event.changes, position)


def _keyspace_archived(books: Books, event: e.KeyspaceArchived, position: int) -> None:
    books.settings_changed = True
    keyspace = _known(books.keyspaces.find(event.keyspace_id))
    books.keyspaces[keyspace.id] = replace(
        keyspace, archived=True, version=keyspace.version + 1, position=position
    )


def _plan_defined(books: Books, event: e.PlanDefined, position: int) -> None:
    books.settings_changed = True
    books.plans[event.plan_id] = Plan(
        id=event.plan_id,
        name=event.name,
        models=event.models,
        price_multiplier=event.price_multiplier,
        created_at=event.at,
        position=position,
    )


def _plan_changed(books: Books, event: e.PlanChanged, position: int) -> None:
    books.settings_changed = True
    plan = _known(books.plans.find(event.plan_id))
    books.plans[plan.id] = _with(plan, event.changes, position)


def _with(subject: Any, changes: dict[str, Any], position: int) -> Any:  # any of the state's structs
    """The subject with fields set from builtins, converted to their types."""
    merged = {**msgspec.to_builtins(subject), **changes}
    merged |= {"version": subject.version + 1, "position": position}
    return msgspec.convert(merged, type(subject), str_keys=True)


# -- organizations and projects


def _organization_opened(books: Books, event: e.OrganizationOpened, position: int) -> None:
    books.settings_changed = True
    organization_id = _known(event.organization_id)
    private = _private(event)
    books.organizations[organization_id] = Organization(
        id=organization_id,
        name=private.name or "",
        external_id=private.external_id,
        metadata=private.metadata or {},
        quotas=event.quotas,
        created_at=event.at,
        position=position,
    )
    books.wallets[organization_id] = Wallet(organization_id=organization_id, currency=event.currency)
    books.members[organization_id] = frozenset()


def _organization(books: Books, event: e.Event, position: int, **changes: Any) -> None:
    books.settings_changed = True
    organization = _known(books.organizations.find(_known(event.organization_id)))
    books.organizations[organization.id] = replace(
        organization, version=organization.version + 1, position=position, **changes
    )


def _organization_changed(books: Books, event: e.OrganizationChanged, position: int) -> None:
    _organization(books, event, position, **(_private(event).after or {}))


def _organization_quotas_set(books: Books, event: e.OrganizationQuotasSet, position: int) -> None:
    _organization(books, event, position, quotas=event.quotas)


def _organization_suspended(books: Books, event: e.OrganizationSuspended, position: int) -> None:
    _organization(books, event, position, suspended=True)


def _organization_resumed(books: Books, event: e.OrganizationResumed, position: int) -> None:
    _organization(books, event, position, suspended=False)


def _project_opened(books: Books, event: e.ProjectOpened, position: int) -> None:
    books.settings_changed = True
    organization_id = _known(event.organization_id)
    books.projects[event.project_id] = Project(
        id=event.project_id,
        organization_id=organization_id,
        name=_private(event).name or "",
        quotas=event.quotas,
        created_at=event.at,
        position=position,
    )
    members = books.members.find(organization_id) or frozenset()
    books.members[organization_id] = members | {event.project_id}


def _project(books: Books, project_id: str, position: int, **changes: Any) -> None:
    books.settings_changed = True
    project = _known(books.projects.find(project_id))
    books.projects[project_id] = replace(project, version=project.version + 1, position=position, **changes)


def _project_renamed(books: Books, event: e.ProjectRenamed, position: int) -> None:
    _project(books, event.project_id, position, name=_private(event).name or "")


def _project_quotas_set(books: Books, event: e.ProjectQuotasSet, position: int) -> None:
    _project(books, event.project_id, position, quotas=event.quotas)


def _project_archived(books: Books, event: e.ProjectArchived, position: int) -> None:
    _project(books, event.project_id, position, archived=True)
    organization_id = _known(event.organization_id)
    members = books.members.find(organization_id) or frozenset()
    books.members[organization_id] = members - {event.project_id}


# -- keys


def _key_created(books: Books, event: e.KeyCreated, position: int) -> None:
    books.settings_changed = True
    private = _private(event)
    secret = Secret(key_id=event.key_id, fingerprint=event.fingerprint, generation=1, hint=event.hint)
    books.secrets[event.fingerprint] = secret
    books.keys[event.key_id] = Key(
        id=event.key_id,
        keyspace_id=event.keyspace_id,
        organization_id=event.organization_id,
        name=private.name or "",
        kind=event.kind,
        owner_id=private.owner_id,
        environment=event.environment,
        plan_id=event.plan_id,
        scopes=event.scopes,
        quotas=event.quotas,
        rate_limits=event.rate_limits,
        allowed_ips=private.allowed_ips or (),
        tags=private.tags or (),
        metadata=private.metadata or {},
        bound_keyspace_id=event.bound_keyspace_id,
        expires_at=event.expires_at,
        created_at=event.at,
        created_by=event.actor,
        imported=isinstance(event, e.KeyImported),
        secrets=(secret,),
        position=position,
    )
    if event.expires_at is not None:
        books.due(event.expires_at, "key_expires", event.key_id)
    keyspace = books.keyspaces.find(event.keyspace_id)
    # Projections fold keys without their keyspaces.
    if keyspace is not None and not keyspace.used:
        books.keyspaces[keyspace.id] = replace(keyspace, used=True)


def _key(books: Books, key_id: str, position: int, **changes: Any) -> None:
    books.settings_changed = True
    key = _known(books.keys.find(key_id))
    books.keys[key_id] = replace(key, version=key.version + 1, position=position, **changes)


def _key_rotated(books: Books, event: e.KeyRotated, position: int) -> None:
    key = _known(books.keys.find(event.key_id))
    newest = Secret(
        key_id=key.id,
        fingerprint=event.fingerprint,
        generation=event.generation,
        hint=event.hint,
    )
    older = tuple(_ending(one, event, key.generation) for one in key.secrets)
    for secret in (*older, newest):
        books.secrets[secret.fingerprint] = secret
    _key(books, key.id, position, secrets=(*older, newest), rotated_at=event.at)
    if event.older_end_at > event.at:
        books.due(event.older_end_at, "secret_ends", key.id, key.generation)


def _ending(secret: Secret, event: e.KeyRotated, current: int) -> Secret:
    """At most two secrets work at a time: only the current one gets the overlap, older ones end now."""
    ends_at = event.older_end_at if secret.generation == current else event.at
    if secret.ends_at is not None and secret.ends_at <= ends_at:
        return secret
    return replace(secret, ends_at=ends_at, retired=ends_at <= event.at)


def _secret_retired(books: Books, event: e.SecretRetired, _position: int) -> None:
    """The status is computed from `ends_at`; the event only records it."""
    key = _known(books.keys.find(event.key_id))
    retired = tuple(
        replace(one, retired=True) if one.generation == event.generation else one for one in key.secrets
    )
    for secret in retired:
        books.secrets[secret.fingerprint] = secret
    books.keys[key.id] = replace(key, secrets=retired)
    books.settings_changed = True


def _key_disabled(books: Books, event: e.KeyDisabled, position: int) -> None:
    _key(books, event.key_id, position, disabled=True)


def _key_enabled(books: Books, event: e.KeyEnabled, position: int) -> None:
    _key(books, event.key_id, position, disabled=False)


def _key_revoked(books: Books, event: e.KeyRevoked, position: int) -> None:
    _key(books, event.key_id, position, revoked_at=event.at)


def _key_deleted(books: Books, event: e.KeyDeleted, position: int) -> None:
    _key(books, event.key_id, position, deleted=True)


def _key_expired(books: Books, event: e.KeyExpired, _position: int) -> None:
    """The status is computed from `expires_at`; the event only records it."""
    key = _known(books.keys.find(event.key_id))
    books.keys[key.id] = replace(key, expiry_recorded=True)
    books.settings_changed = True


def _key_renamed(books: Books, event: e.KeyRenamed, position: int) -> None:
    _key(books, event.key_id, position, name=_private(event).name or "")


def _owner_assigned(books: Books, event: e.OwnerAssigned, position: int) -> None:
    _key(books, event.key_id, position, owner_id=_private(event).owner_id)


def _metadata_set(books: Books, event: e.MetadataSet, position: int) -> None:
    _key(books, event.key_id, position, metadata=_private(event).metadata or {})


def _tags_set(books: Books, event: e.TagsSet, position: int) -> None:
    _key(books, event.key_id, position, tags=_private(event).tags or ())


def _allowed_ips_set(books: Books, event: e.AllowedIpsSet, position: int) -> None:
    _key(books, event.key_id, position, allowed_ips=_private(event).allowed_ips or ())


def _environment_set(books: Books, event: e.EnvironmentSet, position: int) -> None:
    _key(books, event.key_id, position, environment=event.environment)


def _plan_assigned(books: Books, event: e.PlanAssigned, position: int) -> None:
    _key(books, event.key_id, position, plan_id=event.plan_id)


def _scopes_edited(books: Books, event: e.ScopesEdited, position: int) -> None:
    _key(books, event.key_id, position, scopes=event.scopes)


def _quotas_set(books: Books, event: e.QuotasSet, position: int) -> None:
    _key(books, event.key_id, position, quotas=event.quotas)


def _rate_limits_set(books: Books, event: e.RateLimitsSet, position: int) -> None:
    _key(books, event.key_id, position, rate_limits=event.rate_limits)


def _expiry_set(books: Books, event: e.ExpirySet, position: int) -> None:
    _key(books, event.key_id, position, expires_at=event.expires_at, expiry_recorded=False)
    if event.expires_at is not None:
        books.due(event.expires_at, "key_expires", event.key_id)


def _nothing(books: Books, event: e.Event, _position: int) -> None:
    """The event does not change the state."""


# -- money


def _wallet(books: Books, organization_id: str | None) -> Wallet:
    wallet: Wallet = _known(owned(books.wallets, _known(organization_id)))
    return wallet


def settle(books: Books, event: e.WalletEvent) -> Wallet:
    """Set the wallet to the values that the event carries."""
    wallet: Wallet | None = owned(books.wallets, event.organization_id or "")
    assert wallet is not None, "an organization has a wallet from its first event on"
    wallet.balance = event.balance_micros
    wallet.reserved = event.reserved_micros
    if wallet.alerted and wallet.alert_below is not None and (wallet.available >= wallet.alert_below):
        wallet.alerted = False
    return wallet


def counters_of(books: Books, subject_id: str, day: int) -> Counters:
    """The subject's counters, advanced to this day; they may be changed in place."""
    counters = owned(books.counters, subject_id)
    if counters is None:
        counters = books.counters[subject_id] = Counters(day)
    elif counters.day < day:
        counters.turn(day)
    return counters


def subjects_of(key_id: str, project_id: str | None, organization_id: str) -> tuple[str, ...]:
    """The ids whose counters a use is counted in."""
    if project_id is None:
        return (key_id, organization_id)
    return (key_id, project_id, organization_id)


def _count(
    books: Books,
    event: Any,  # an event with key_id, project_id, organization_id
    micros: int,
    requests: int,
    window_at: Instant,
) -> None:
    today = event.at // DAY
    starts = window_starts(window_at // DAY)
    for subject in subjects_of(event.key_id, event.project_id, event.organization_id):
        counters_of(books, subject, today).add(starts, micros, requests)


def _deposited(books: Books, event: e.CreditsDeposited, _position: int) -> None:
    settle(books, event).deposited += event.amount_micros


def _terms_set(books: Books, event: e.WalletTermsSet, _position: int) -> None:
    wallet = _wallet(books, event.organization_id)
    wallet.credit_limit = event.credit_limit_micros
    if wallet.alert_below != event.alert_below_micros:
        wallet.alert_below = event.alert_below_micros
        wallet.alerted = False


def _charged(books: Books, event: e.UsageCharged, _position: int) -> None:
    amount, key_id, at = event.amount_micros, event.key_id, event.at
    settle(books, event).charged += amount
    day = at // DAY
    starts = window_starts(day)
    counters_of(books, key_id, day).add(starts, amount, 1)
    counters_of(books, _known(event.organization_id), day).add(starts, amount, 1)
    if event.project_id is not None:
        counters_of(books, event.project_id, day).add(starts, amount, 1)
    books.last_used[key_id] = at


def _refunded(books: Books, event: e.UsageRefunded, _position: int) -> None:
    settle(books, event).refunded += event.amount_micros
    books.refunds[event.charge_id] = event.refunded_micros
    _count(books, event, -event.amount_micros, 0, event.window_at)


def _reserved(books: Books, event: e.CreditsReserved, position: int) -> None:
    settle(books, event)
    _count(books, event, event.amount_micros, 1, event.at)
    starts = window_starts(event.at // DAY)
    for subject in subjects_of(event.key_id, event.project_id, _known(event.organization_id)):
        _known(owned(books.counters, subject)).hold(starts)
    books.last_used[event.key_id] = event.at
    books.reservations[event.reservation_id] = Reservation(
        id=event.reservation_id,
        key_id=event.key_id,
        organization_id=_known(event.organization_id),
        request_id=event.request_id,
        base_micros=event.base_micros,
        price_multiplier=event.price_multiplier,
        amount_micros=event.amount_micros,
        held_micros=event.amount_micros,
        reserved_at=event.at,
        expires_at=event.expires_at,
        model=event.model,
        provider=event.provider,
        project_id=event.project_id,
        tenant_org_id=event.tenant_org_id,
        tenant_user_id=event.tenant_user_id,
        position=position,
    )
    books.due(event.expires_at, "reservation_expires", event.reservation_id)


def _captured(books: Books, event: e.ReservationCaptured, position: int) -> None:
    settle(books, event).charged += event.amount_micros
    reservation = _known(books.reservations.find(event.reservation_id))
    # The held money is counted already: add what exceeds it, subtract what was released.
    beyond = event.amount_micros - event.held_micros - event.released_micros
    _count(books, event, beyond, 0, event.window_at)
    was_open = reservation.status == "open"
    ends = event.final and was_open
    books.reservations[reservation.id] = replace(
        reservation,
        held_micros=reservation.held_micros - event.held_micros - event.released_micros,
        captured_micros=reservation.captured_micros + event.amount_micros,
        captured_base_micros=reservation.captured_base_micros + event.base_micros,
        uncovered_micros=reservation.uncovered_micros + event.uncovered_micros,
        status="captured" if event.final else reservation.status,
        position=position,
    )
    if ends:
        _let_go(books, reservation, event.at)


def _released(books: Books, event: e.ReservationReleased, position: int) -> None:
    settle(books, event)
    reservation = _known(books.reservations.find(event.reservation_id))
    subjects = _reservation_subjects(reservation)
    starts = window_starts(reservation.reserved_at // DAY)
    for subject in subjects:
        counters_of(books, subject, event.at // DAY).add(starts, -event.released_micros, 0)
    _let_go(books, reservation, event.at)
    books.reservations[reservation.id] = replace(
        reservation,
        held_micros=0,
        status="expired" if isinstance(event, e.ReservationExpired) else "released",
        position=position,
    )


def _reservation_subjects(reservation: Reservation) -> tuple[str, ...]:
    return subjects_of(reservation.key_id, reservation.project_id, reservation.organization_id)


def _let_go(books: Books, reservation: Reservation, at: Instant) -> None:
    starts = window_starts(reservation.reserved_at // DAY)
    for subject in _reservation_subjects(reservation):
        counters_of(books, subject, at // DAY).let_go(starts)


def _threshold_reached(books: Books, event: e.ThresholdReached, _position: int) -> None:
    if event.level == "wallet":
        _wallet(books, event.organization_id).alerted = True
        return
    counters = counters_of(books, event.subject_id, event.at // DAY)
    counters.told(_known(event.window), _known(event.window_start), event.unit, _known(event.percent))


def _keys_seen(books: Books, event: e.KeysSeen, _position: int) -> None:
    for key_id, at, _ in event.seen:
        books.last_used[key_id] = max(at, books.last_used.find(key_id) or 0)


def _known(value: Any) -> Any:  # the caller knows the type
    assert value is not None, "an event refers to something that no earlier event created"
    return value


_EVOLVE: dict[type[e.Event], Callable[[Books, Any, int], None]] = {
    e.KeyspaceDefined: _keyspace_defined,
    e.KeyspaceChanged: _keyspace_changed,
    e.KeyspaceArchived: _keyspace_archived,
    e.PlanDefined: _plan_defined,
    e.PlanChanged: _plan_changed,
    e.OrganizationOpened: _organization_opened,
    e.OrganizationChanged: _organization_changed,
    e.OrganizationQuotasSet: _organization_quotas_set,
    e.OrganizationSuspended: _organization_suspended,
    e.OrganizationResumed: _organization_resumed,
    e.ProjectOpened: _project_opened,
    e.ProjectRenamed: _project_renamed,
    e.ProjectQuotasSet: _project_quotas_set,
    e.ProjectArchived: _project_archived,
    e.KeyCreated: _key_created,
    e.KeyImported: _key_created,
    e.KeyRotated: _key_rotated,
    e.SecretRetired: _secret_retired,
    e.KeyDisabled: _key_disabled,
    e.KeyEnabled: _key_enabled,
    e.KeyRevoked: _key_revoked,
    e.KeyDeleted: _key_deleted,
    e.KeyExpired: _key_expired,
    e.KeyRenamed: _key_renamed,
    e.OwnerAssigned: _owner_assigned,
    e.MetadataSet: _metadata_set,
    e.TagsSet: _tags_set,
    e.AllowedIpsSet: _allowed_ips_set,
    e.EnvironmentSet: _environment_set,
    e.PlanAssigned: _plan_assigned,
    e.ScopesEdited: _scopes_edited,
    e.QuotasSet: _quotas_set,
    e.RateLimitsSet: _rate_limits_set,
    e.ExpirySet: _expiry_set,
    e.LeakReported: _nothing,
    e.CreditsDeposited: _deposited,
    e.CreditsAdjusted: _deposited,
    e.WalletTermsSet: _terms_set,
    e.UsageCharged: _charged,
    e.UsageRefunded: _refunded,
    e.CreditsReserved: _reserved,
    e.ReservationCaptured: _captured,
    e.ReservationReleased: _released,
    e.ReservationExpired: _released,
    e.ThresholdReached: _threshold_reached,
    e.UsageDenied: _nothing,
    e.KeysSeen: _keys_seen,
    e.RevocationFenced: _nothing,
}
