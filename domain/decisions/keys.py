"""Decisions about keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from domain.claims import fingerprint_claim
from domain.commands import (
    UNSET,
    BootstrapRootKey,
    ChangeKey,
    CreateKey,
    DeleteKey,
    DisableKey,
    EditScopes,
    EnableKey,
    NewScopes,
    ReportLeak,
    RevokeKey,
    RevokeKeys,
    RevokeSelf,
    RotateKey,
)
from domain.decisions.access import (
    PLATFORM_PERMISSIONS,
    ROOT_PERMISSIONS,
    expect_version,
    find_key,
    find_open_keyspace,
    find_organization,
    find_plan,
    is_root,
    may_act_on,
    may_grant,
    platform_only,
    require,
)
from domain.decisions.limits import (
    check_addresses,
    check_metadata,
    check_quotas,
    check_rate_limits,
    edited_scopes,
    scopes_at_creation,
)
from domain.desk import Desk
from domain.errors import (
    AlreadyExistsError,
    InvalidError,
    KeyExpiredError,
    KeyRevokedError,
    NotFoundError,
    PermissionDeniedError,
)
from domain.keys import Key
from domain.keyspaces import ROOT_KEYSPACE_ID, ROOT_PREFIX, ROOT_SHAPE
from keyledger_language import Scopes
from keyledger_language import events as e
from keyledger_language.instants import SECOND

_MAX_OVERLAP_SECONDS = 90 * 86_400
_FINGERPRINT_BYTES = 32
_NOT_FOR_ROOT = "a root key has none: it is not charged or metered, and is limited by its permissions"


def create_key(desk: Desk, command: CreateKey) -> Key:
    """Make a key, or import one that exists elsewhere."""
    require(desk, "keys:write")
    keyspace = find_open_keyspace(desk, command.keyspace_id, field="keyspace_id")
    scopes = scopes_at_creation(command.scopes)
    if keyspace.builtin:
        scopes = _root_scopes(desk, command, scopes)
    else:
        _check_owner(desk, command)
    _check_fields(desk, command)
    _check_projects(desk, command.organization_id, scopes)
    _check_fresh(desk, command.fingerprint)
    key_id = desk.new_id("key")
    made = e.KeyImported if command.imported else e.KeyCreated
    desk.record(
        made(
            at=desk.now,
            actor=desk.asking.actor,
            organization_id=command.organization_id,
            private=desk.private(
                name=command.name,
                owner_id=command.owner_id,
                metadata=command.metadata or None,
                tags=command.tags or None,
                allowed_ips=command.allowed_ips or None,
            ),
            key_id=key_id,
            keyspace_id=command.keyspace_id,
            kind=command.kind,
            environment=command.environment,
            plan_id=command.plan_id,
            scopes=scopes,
            quotas=command.quotas,
            rate_limits=command.rate_limits,
            expires_at=command.expires_at,
            fingerprint=command.fingerprint,
            hint=command.hint,
            bound_keyspace_id=command.bound_keyspace_id,
        )
    )
    desk.claim(fingerprint_claim(command.fingerprint))
    return desk.draft.keys[key_id]


def _check_owner(desk: Desk, command: CreateKey) -> None:
    if command.organization_id is None:
        raise InvalidError("organization_id", "an ordinary key belongs to an organization")
    find_organization(desk, command.organization_id, field="organization_id")
    if command.bound_keyspace_id is not None:
        raise InvalidError("bound_keyspace_id", "only a root key is bound to a keyspace")


def _check_fields(desk: Desk, command: CreateKey) -> None:
    check_quotas(command.quotas)
    check_rate_limits(command.rate_limits)
    check_addresses(command.allowed_ips)
    check_metadata(command.metadata)
    if command.plan_id is not None:
        platform_only(desk, "Assigning a plan")
        find_plan(desk, command.plan_id, field="plan_id")
    if command.expires_at is not None and command.expires_at <= desk.now:
        raise InvalidError("expires_at", "a time in the future")


def _root_scopes(desk: Desk, command: CreateKey, scopes: Scopes) -> Scopes:
    require(desk, "root:write")
    if command.imported:
        raise InvalidError("keyspace_id", "root keys cannot be imported")
    _not_for_root(command)
    _only_permissions(command.scopes)
    if command.organization_id is not None:
        find_organization(desk, command.organization_id, field="organization_id")
    if command.bound_keyspace_id is not None:
        bound = find_open_keyspace(desk, command.bound_keyspace_id, field="bound_keyspace_id")
        if bound.builtin:
            raise InvalidError("bound_keyspace_id", "a keyspace of ordinary keys")
    _check_root_permissions(scopes, command.organization_id)
    may_grant(
        desk,
        frozenset(scopes.permissions),
        command.organization_id,
        command.bound_keyspace_id,
    )
    return scopes


def _not_for_root(command: CreateKey | ChangeKey) -> None:
    """Refuse fields that only keys for uses have: a root key is not charged or metered, so it has none."""
    for field in ("plan_id", "quotas", "rate_limits"):
        if getattr(command, field) not in (UNSET, None, ()):
            raise InvalidError(field, _NOT_FOR_ROOT)
    if isinstance(command, CreateKey) and command.kind != "solo":
        raise InvalidError("kind", _NOT_FOR_ROOT)


def _only_permissions(scopes: NewScopes) -> None:
    for dimension in ("projects", "models", "tenants"):
        if getattr(scopes, dimension) not in (UNSET, "*"):
            raise InvalidError(f"scopes.{dimension}", _NOT_FOR_ROOT)


def _check_root_permissions(scopes: Scopes, organization_id: str | None) -> None:
    known = ROOT_PERMISSIONS if organization_id else ROOT_PERMISSIONS + PLATFORM_PERMISSIONS
    if scopes.permissions == "*":
        raise InvalidError("scopes.permissions", f"a root key names its permissions: {', '.join(known)}")
    for permission in scopes.permissions:
        if permission not in ROOT_PERMISSIONS + PLATFORM_PERMISSIONS:
            raise InvalidError("scopes.permissions", f"each one of {', '.join(known)}")
        if permission not in known:
            raise InvalidError("scopes.permissions", f"{permission} is for root keys of the whole platform")


def _check_projects(desk: Desk, organization_id: str | None, scopes: Scopes) -> None:
    if scopes.projects == "*":
        return
    for project_id in scopes.projects:
        project = desk.draft.projects.find(project_id)
        if project is None or project.organization_id != organization_id:
            raise InvalidError("scopes.projects", f"the organization has no project {project_id}")


def _check_fresh(desk: Desk, fingerprint: bytes) -> None:
    if len(fingerprint) != _FINGERPRINT_BYTES:
        raise InvalidError("sha256", f"{_FINGERPRINT_BYTES} bytes, as hex or base64")
    if desk.draft.secrets.find(fingerprint) is not None:
        msg = "A key with this secret exists already."
        raise AlreadyExistsError(msg, field="sha256")


def _changeable(desk: Desk, key_id: str, expected_version: int | None = None) -> Key:
    """The key, if it exists, the caller may change it, and it has that version."""
    require(desk, "keys:write")
    key = find_key(desk, key_id)
    may_act_on(desk, key)
    expect_version(f"Key {key.id}", key.version, expected_version)
    return key


def _alive(key: Key) -> Key:
    if key.revoked_at is not None:
        raise KeyRevokedError(key.id)
    return key


def change_key(desk: Desk, command: ChangeKey) -> Key:
    """Set fields of a key: one event for each field that changed."""
    key = _alive(_changeable(desk, command.key_id, command.expected_version))
    _check_changes(desk, key, command)
    for name, event_of in _FIELD_EVENTS.items():
        given = getattr(command, name)
        if given is not UNSET and given != getattr(key, name):
            desk.record(event_of(desk, key, given))
    return desk.draft.keys.find(key.id) or key


def _check_changes(desk: Desk, key: Key, command: ChangeKey) -> None:
    if is_root(key):
        _not_for_root(command)
    if command.quotas is not UNSET:
        check_quotas(command.quotas)
    if command.rate_limits is not UNSET:
        check_rate_limits(command.rate_limits)
    if command.allowed_ips is not UNSET:
        check_addresses(command.allowed_ips)
    if command.metadata is not UNSET:
        check_metadata(command.metadata)
    if command.plan_id is not UNSET and command.plan_id != key.plan_id:
        platform_only(desk, "Assigning a plan")
        if command.plan_id is not None:
            find_plan(desk, command.plan_id, field="plan_id")
    past = command.expires_at is not UNSET and (
        command.expires_at is not None and command.expires_at <= desk.now
    )
    if past and command.expires_at != key.expires_at:
        raise InvalidError("expires_at", "a time in the future")


def _header(desk: Desk, key: Key) -> dict[str, Any]:
    return {
        "at": desk.now,
        "actor": desk.asking.actor,
        "organization_id": key.organization_id,
        "key_id": key.id,
    }


def _renamed(desk: Desk, key: Key, name: str) -> e.Event:
    private = desk.private(name=name, before={"name": key.name})
    return e.KeyRenamed(**_header(desk, key), private=private)


def _owner_assigned(desk: Desk, key: Key, owner_id: str | None) -> e.Event:
    private = desk.private(owner_id=owner_id, before={"owner_id": key.owner_id})
    return e.OwnerAssigned(**_header(desk, key), private=private)


def _metadata_set(desk: Desk, key: Key, metadata: dict[str, Any]) -> e.Event:
    private = desk.private(metadata=metadata, before={"metadata": key.metadata})
    return e.MetadataSet(**_header(desk, key), private=private)


def _tags_set(desk: Desk, key: Key, tags: tuple[str, ...]) -> e.Event:
    private = desk.private(tags=tags, before={"tags": list(key.tags)})
    return e.TagsSet(**_header(desk, key), private=private)


def _allowed_ips_set(desk: Desk, key: Key, networks: tuple[str, ...]) -> e.Event:
    private = desk.private(allowed_ips=networks, before={"allowed_ips": list(key.allowed_ips)})
    return e.AllowedIpsSet(**_header(desk, key), private=private)


def _plain(event_type: Callable[..., e.Event], field: str) -> Callable[[Desk, Key, Any], e.Event]:
    """An event that carries a field's new value and its previous one."""

    def make(desk: Desk, key: Key, value: Any) -> e.Event:  # the field's own type
        values = {field: value, "before": getattr(key, field)}
        return event_type(**_header(desk, key), private=desk.private(), **values)

    return make


_FIELD_EVENTS: dict[str, Callable[[Desk, Key, Any], e.Event]] = {
    "name": _renamed,
    "owner_id": _owner_assigned,
    "metadata": _metadata_set,
    "tags": _tags_set,
    "allowed_ips": _allowed_ips_set,
    "environment": _plain(e.EnvironmentSet, "environment"),
    "plan_id": _plain(e.PlanAssigned, "plan_id"),
    "quotas": _plain(e.QuotasSet, "quotas"),
    "rate_limits": _plain(e.RateLimitsSet, "rate_limits"),
    "expires_at": _plain(e.ExpirySet, "expires_at"),
}


def edit_scopes(desk: Desk, command: EditScopes) -> Key:
    """Change what a key may be used for; the secret stays."""
    key = _alive(_changeable(desk, command.key_id, command.expected_version))
    scopes = edited_scopes(key.scopes, command.scopes)
    if is_root(key):
        _only_permissions(command.scopes)
        _check_root_permissions(scopes, key.organization_id)
        may_grant(desk, frozenset(scopes.permissions), key.organization_id, key.bound_keyspace_id)
    _check_projects(desk, key.organization_id, scopes)
    if scopes == key.scopes:
        return key
    desk.record(
        e.ScopesEdited(**_header(desk, key), private=desk.private(), scopes=scopes, before=key.scopes)
    )
    return desk.draft.keys[key.id]


def rotate_key(desk: Desk, command: RotateKey) -> Key:
    """Give a key its next secret; an overlap of 0 ends all older ones."""
    key = _alive(_changeable(desk, command.key_id, command.expected_version))
    if key.status(desk.now) == "expired":
        raise KeyExpiredError(key.id)
    if not 0 <= command.overlap_seconds <= _MAX_OVERLAP_SECONDS:
        raise InvalidError("overlap_seconds", f"from 0 to {_MAX_OVERLAP_SECONDS}")
    _check_fresh(desk, command.fingerprint)
    desk.record(
        e.KeyRotated(
            **_header(desk, key),
            private=desk.private(reason=command.reason),
            generation=key.generation + 1,
            fingerprint=command.fingerprint,
            hint=command.hint,
            older_end_at=desk.now + command.overlap_seconds * SECOND,
        )
    )
    desk.claim(fingerprint_claim(command.fingerprint))
    return desk.draft.keys[key.id]


def disable_key(desk: Desk, command: DisableKey) -> Key:
    """Disable a key; doing it twice is harmless."""
    key = _alive(_changeable(desk, command.key_id, command.expected_version))
    if key.disabled:
        return key
    private = desk.private(reason=command.reason)
    desk.record(e.KeyDisabled(**_header(desk, key), private=private))
    return desk.draft.keys[key.id]


def enable_key(desk: Desk, command: EnableKey) -> Key:
    """Enable a key again; doing it twice is harmless."""
    key = _alive(_changeable(desk, command.key_id, command.expected_version))
    if not key.disabled:
        return key
    private = desk.private(reason=command.reason)
    desk.record(e.KeyEnabled(**_header(desk, key), private=private))
    return desk.draft.keys[key.id]


def revoke_key(desk: Desk, command: RevokeKey) -> Key:
    """Stop a key for good; doing it twice is harmless."""
    key = _changeable(desk, command.key_id, command.expected_version)
    _revoke(desk, key, command.reason)
    return desk.draft.keys.find(key.id) or key


def _revoke(desk: Desk, key: Key, reason: str | None) -> None:
    if key.revoked_at is None:
        private = desk.private(reason=reason)
        desk.record(e.KeyRevoked(**_header(desk, key), private=private))


class Revocation(NamedTuple):
    """The outcome for one of many keys that were to be revoked."""

    key_id: str
    revoked: bool
    """Whether the key is revoked now, by this command or before."""
    code: str | None = None
    """Why this command did not revoke it; None: it did."""


def revoke_keys(desk: Desk, command: RevokeKeys) -> list[Revocation]:
    """Stop many keys for good, each on its own: one that cannot be revoked does not stop the others."""
    require(desk, "keys:write")
    # All are checked before one is revoked: the caller's own key may be among them.
    found = {key_id: _found_to_revoke(desk, key_id) for key_id in dict.fromkeys(command.key_ids)}
    for one in found.values():
        if isinstance(one, Key):
            _revoke(desk, one, command.reason)
    return [_revocation(key_id, found[key_id]) for key_id in command.key_ids]


def _found_to_revoke(desk: Desk, key_id: str) -> Key | NotFoundError | PermissionDeniedError:
    try:
        return _changeable(desk, key_id)
    except (NotFoundError, PermissionDeniedError) as refusal:
        return refusal


def _revocation(key_id: str, found: Key | NotFoundError | PermissionDeniedError) -> Revocation:
    if not isinstance(found, Key):
        return Revocation(key_id, revoked=False, code=found.code)
    before = found.revoked_at is not None
    return Revocation(key_id, revoked=True, code=KeyRevokedError.code if before else None)


def delete_key(desk: Desk, command: DeleteKey) -> Key:
    """Revoke a key and hide it; its history stays."""
    key = _changeable(desk, command.key_id, command.expected_version)
    _revoke(desk, key, command.reason)
    private = desk.private(reason=command.reason)
    desk.record(e.KeyDeleted(**_header(desk, key), private=private))
    return desk.draft.keys[key.id]


def revoke_self(desk: Desk, command: RevokeSelf) -> Key:
    """Revoke the key of a secret, for a caller that shows nothing but this secret."""
    secret = desk.draft.secrets.find(command.fingerprint)
    # Others may have seen a secret since it was rotated: it has no effect any more.
    if secret is None or (secret.ends_at is not None and secret.ends_at <= desk.now):
        raise NotFoundError("key", "with this secret")
    key = desk.draft.keys.find(secret.key_id)
    assert key is not None, "keys are never removed"
    if is_root(key):
        raise NotFoundError("key", "with this secret")
    _revoke(desk, key, command.reason)
    return desk.draft.keys.find(key.id) or key


def report_leak(desk: Desk, command: ReportLeak) -> Key:
    """Record a leaked secret, and revoke its key with all generations."""
    require(desk, "keys:write")
    secret = desk.draft.secrets.find(command.fingerprint)
    if secret is None:
        raise NotFoundError("key", "with this secret")
    try:
        key = find_key(desk, secret.key_id, deleted=True)
    except NotFoundError:
        # The caller must not learn the id of a key that belongs to others.
        raise NotFoundError("key", "with this secret") from None
    may_act_on(desk, key)
    desk.record(
        e.LeakReported(
            **_header(desk, key),
            private=desk.private(reason=command.where),
            generation=secret.generation,
            source=command.source,
        )
    )
    _revoke(desk, key, "leaked")
    return desk.draft.keys.find(key.id) or key


def bootstrap_root_key(desk: Desk, command: BootstrapRootKey) -> Key | None:
    """Make the built-in keyspace if it is missing, and a root key if this secret is new."""
    if desk.draft.keyspaces.find(ROOT_KEYSPACE_ID) is None:
        desk.record(_root_keyspace(desk))
    known = desk.draft.secrets.find(command.fingerprint)
    if known is not None:
        return desk.draft.keys.find(known.key_id)
    permissions = ROOT_PERMISSIONS + PLATFORM_PERMISSIONS
    key_id = desk.new_id("key")
    desk.record(
        e.KeyCreated(
            at=desk.now,
            private=desk.private(name=command.name, reason=command.reason),
            key_id=key_id,
            keyspace_id=ROOT_KEYSPACE_ID,
            kind="solo",
            environment=None,
            plan_id=None,
            scopes=Scopes(permissions=permissions),
            quotas=(),
            rate_limits=(),
            expires_at=None,
            fingerprint=command.fingerprint,
            hint=command.hint,
        )
    )
    desk.claim(fingerprint_claim(command.fingerprint))
    return desk.draft.keys[key_id]


def _root_keyspace(desk: Desk) -> e.KeyspaceDefined:
    return e.KeyspaceDefined(
        at=desk.now,
        keyspace_id=ROOT_KEYSPACE_ID,
        name="root",
        preset=None,
        prefix=ROOT_PREFIX,
        secret_format=ROOT_SHAPE.format,
        accepted_formats=(),
        credential_locations=("header:Authorization:Bearer",),
        tenant_locations={},
        denial_status={},
        require_balance=False,
        required_dimensions=(),
        builtin=True,
    )
