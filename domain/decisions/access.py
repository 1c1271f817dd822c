"""What a caller may access: what belongs to others does not exist for it."""

from __future__ import annotations

from domain.desk import Desk
from domain.errors import (
    CallerRefusedError,
    KeyspaceArchivedError,
    NotFoundError,
    PermissionDeniedError,
    PlatformOnlyError,
    VersionConflictError,
)
from domain.keys import Key
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from domain.organizations import Organization, Plan, Project

ROOT_PERMISSIONS = (
    "keys:read",
    "keys:write",
    "verify",
    "charges:write",
    "usage:read",
    "organizations:read",
    "wallets:read",
    "plans:read",
    "audit:read",
    "events:read",
    "webhooks:write",
    "edges:connect",
)
"""The permissions that any root key may have."""

PLATFORM_PERMISSIONS = (
    "keyspaces:write",
    "organizations:write",
    "wallets:write",
    "plans:write",
    "metrics:read",
    "root:write",
)
"""The permissions that only a root key of the whole platform may have."""

EXTERNAL_ACTORS = frozenset({"system"})


def permissions_of(key: Key) -> frozenset[str]:
    """The permissions of a root key."""
    if key.scopes.permissions == "*":
        return frozenset(ROOT_PERMISSIONS + PLATFORM_PERMISSIONS)
    return frozenset(key.scopes.permissions)


def caller_of(desk: Desk) -> Key | None:
    """The caller's current root key; None for the ledger itself. Refuses one that no longer works."""
    if desk.asking.actor in EXTERNAL_ACTORS:
        return None
    key = desk.draft.keys.find(desk.asking.actor)
    if key is None or key.status(desk.now) != "active":
        msg = "The root key of this request no longer works."
        raise CallerRefusedError(msg)
    return key


def vouch_for_caller(desk: Desk) -> None:
    """Refuse a caller whose root key has stopped working since it was authenticated.

    It is looked up once in a group of uses.
    """
    actor = desk.asking.actor
    if actor != desk.vouched or desk.draft.settings_changed:
        caller_of(desk)
        desk.vouched = actor


def require(desk: Desk, permission: str) -> None:
    """The caller's root key must (still) hold this permission."""
    caller = caller_of(desk)
    if caller is not None and permission not in permissions_of(caller):
        msg = f"This needs a root key with {permission}."
        raise PermissionDeniedError(msg)


def platform_only(desk: Desk, what: str) -> None:
    """Refuse a caller that is bound to an organization."""
    if desk.asking.organization_id is not None:
        msg = f"{what} is reserved for the platform: it needs a root key that is bound to no organization."
        raise PlatformOnlyError(msg)


def find_keyspace(desk: Desk, keyspace_id: str, *, field: str | None = None) -> Keyspace:
    """The keyspace, if the caller may know of it."""
    keyspace = desk.draft.keyspaces.find(keyspace_id)
    bound = desk.asking.keyspace_id
    if keyspace is None or (bound is not None and bound != keyspace_id and not keyspace.builtin):
        raise NotFoundError("keyspace", keyspace_id, field=field)
    return keyspace


def find_open_keyspace(desk: Desk, keyspace_id: str, *, field: str | None = None) -> Keyspace:
    """The same, for a keyspace that is to be used: an archived one is refused."""
    keyspace = find_keyspace(desk, keyspace_id, field=field)
    if keyspace.archived:
        raise KeyspaceArchivedError(keyspace_id, field=field)
    return keyspace


def find_organization(desk: Desk, organization_id: str, *, field: str | None = None) -> Organization:
    """The organization, if the caller may know of it."""
    organization = desk.draft.organizations.find(organization_id)
    bound = desk.asking.organization_id
    if organization is None or (bound is not None and bound != organization_id):
        raise NotFoundError("organization", organization_id, field=field)
    return organization


def find_project(desk: Desk, organization_id: str, project_id: str) -> Project:
    """The project, if it belongs to that organization and the caller may know of it."""
    find_organization(desk, organization_id)
    project = desk.draft.projects.find(project_id)
    if project is None or project.organization_id != organization_id:
        raise NotFoundError("project", project_id)
    return project


def find_plan(desk: Desk, plan_id: str, *, field: str | None = None) -> Plan:
    """The plan."""
    plan = desk.draft.plans.find(plan_id)
    if plan is None:
        raise NotFoundError("plan", plan_id, field=field)
    return plan


def find_key(desk: Desk, key_id: str, *, deleted: bool = False) -> Key:
    """The key, if the caller may know of it; a deleted one only with `deleted=True`."""
    key = desk.draft.keys.find(key_id)
    asking = desk.asking
    hidden = (
        key is None
        or (key.deleted and not deleted)
        or (asking.organization_id is not None and key.organization_id != asking.organization_id)
        or (
            asking.keyspace_id is not None
            and asking.keyspace_id not in (key.keyspace_id, key.bound_keyspace_id)
        )
    )
    if key is None or hidden:
        raise NotFoundError("key", key_id)
    return key


def is_root(key: Key) -> bool:
    """Whether this is a root key."""
    return key.keyspace_id == ROOT_KEYSPACE_ID


def may_act_on(desk: Desk, key: Key) -> None:
    """To act on a root key, the caller needs `root:write` and all permissions of that key."""
    if not is_root(key):
        return
    if caller_of(desk) is None:
        return
    require(desk, "root:write")
    may_grant(desk, permissions_of(key), key.organization_id, key.bound_keyspace_id)


def may_grant(
    desk: Desk,
    permissions: frozenset[str],
    organization_id: str | None,
    keyspace_id: str | None,
) -> None:
    """Refuse to grant more than the caller's root key holds itself."""
    caller = caller_of(desk)
    if caller is None:
        return
    beyond = permissions - permissions_of(caller)
    if beyond:
        msg = f"The caller does not hold {', '.join(sorted(beyond))} itself."
        raise PermissionDeniedError(msg)
    asking = desk.asking
    if asking.organization_id is not None and organization_id != asking.organization_id:
        msg = "A root key of an organization acts on root keys of that organization only."
        raise PermissionDeniedError(msg)
    if asking.keyspace_id is not None and keyspace_id != asking.keyspace_id:
        msg = "A root key of a keyspace acts on root keys of that keyspace only."
        raise PermissionDeniedError(msg)


def expect_version(subject: str, actual: int, expected: int | None) -> None:
    """If-Match: refuse a caller whose decision is based on an older version."""
    if expected is not None and expected != actual:
        raise VersionConflictError(subject, expected=expected, actual=actual)
