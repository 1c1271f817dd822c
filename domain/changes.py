"""What an event takes from those who remember the state: the edges, and facts kept in memory."""

from __future__ import annotations

from domain.state import Books
from keyledger_language import Change, Scopes
from keyledger_language import events as e

_GRANTING = (
    e.KeyspaceDefined,
    e.KeyspaceArchived,
    e.KeyEnabled,
    e.OrganizationResumed,
    e.ProjectOpened,
    e.KeyRenamed,
    e.OwnerAssigned,
    e.MetadataSet,
    e.TagsSet,
    e.EnvironmentSet,
    e.KeyExpired,
    e.SecretRetired,
    e.LeakReported,
    e.KeyDeleted,
)
"""Events that allow nothing less than before, or that record what time or another event did."""

_ORGANIZATION_WIDE = (
    e.OrganizationSuspended,
    e.OrganizationResumed,
    e.ProjectOpened,
    e.ProjectArchived,
)
"""What edges remember of an organization: is it suspended, and which projects can be used."""


def change_of(event: e.Event, books: Books, position: int) -> Change | None:
    """What edges must hear of this event; None when they remember nothing that it touches.

    `books` as they are after the event.
    """
    if isinstance(event, e.WalletEvent | e.UsageDenied):
        return None
    if isinstance(event, e.KeyEvent):
        key = books.keys.find(event.key_id)
        assert key is not None, "an event of a key comes after its creation"
        fingerprints = tuple(secret.fingerprint for secret in key.secrets)
        return Change(position, "key", key.id, fingerprints, narrows(event))
    if isinstance(event, _ORGANIZATION_WIDE):
        return Change(position, "organization", event.organization_id or "", (), narrows(event))
    if isinstance(event, e.PlanChanged):
        return Change(position, "plan", event.plan_id, (), narrows(event))
    if isinstance(event, e.KeyspaceDefined | e.KeyspaceChanged | e.KeyspaceArchived):
        # A new one, too: edges are told what there is, and may have been here before it.
        return Change(position, "keyspace", event.keyspace_id, (), narrows(event))
    return None


def narrows(event: e.Event) -> bool:  # noqa: PLR0911  # one line per kind of event
    """Does the event take something away? When in doubt, yes: that costs a wait, not an accept."""
    if isinstance(event, _GRANTING):
        return False
    match event:
        case e.KeyCreated():
            return False
        case e.ScopesEdited():
            return not _wider(event.before, event.scopes)
        case e.ExpirySet(expires_at=None):
            return False
        case e.ExpirySet(before=before, expires_at=after):
            return before is None or after is None or after < before
        case e.QuotasSet() | e.OrganizationQuotasSet() | e.ProjectQuotasSet():
            new = {(quota.unit, quota.window): quota.limit for quota in event.quotas}
            old = {(quota.unit, quota.window): quota.limit for quota in event.before}
            return any(limit < old.get(name, limit + 1) for name, limit in new.items())
        case e.PlanChanged(changes=changes):
            return "models" in changes
        case e.WalletTermsSet(credit_limit_micros=after):
            before = event.before["credit_limit_micros"]
            return after is not None and (before is None or after < before)
        case _:
            return True


def _wider(before: Scopes, after: Scopes) -> bool:
    """Is everything that was allowed before allowed still?"""
    for dimension in ("permissions", "projects", "models", "tenants"):
        old, new = getattr(before, dimension), getattr(after, dimension)
        if new != "*" and (old == "*" or not set(old) <= set(new)):
            return False
    return True
