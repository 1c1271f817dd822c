"""Which events change what edges, and the facts cached in memory, know."""

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
"""Events that take nothing away, or that only record the effect of time or of another event."""

_ORGANIZATION_WIDE = (
    e.OrganizationSuspended,
    e.OrganizationResumed,
    e.ProjectOpened,
    e.ProjectArchived,
)
"""Events of what edges know of an organization: whether it is suspended, and its usable projects."""


def change_of(event: e.Event, books: Books, position: int) -> Change | None:
    """The change that edges must receive for this event; None if it affects nothing that they know.

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
        # A new one, too: edges receive all keyspaces when they connect, maybe before it was defined.
        return Change(position, "keyspace", event.keyspace_id, (), narrows(event))
    return None


def narrows(event: e.Event) -> bool:  # noqa: PLR0911  # one line per kind of event
    """Whether the event takes something away. If in doubt, True: that costs a wait, not an accept."""
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
    """Whether everything that was allowed before is still allowed."""
    for dimension in ("permissions", "projects", "models", "tenants"):
        old, new = getattr(before, dimension), getattr(after, dimension)
        if new != "*" and (old == "*" or not set(old) <= set(new)):
            return False
    return True
