"""The table of all take-aways: what is asked, and of what. Whoever adds one, adds a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from domain import commands as c
from keyledger_edge import NO_USE, Use
from keyledger_language import events as e


@dataclass(frozen=True, slots=True)
class Target:
    """A key, and all that it rests on."""

    key_id: str
    secret: str
    digest: bytes
    keyspace_id: str
    organization_id: str
    project_id: str
    plan_id: str
    other_plan_id: str


@dataclass(frozen=True, slots=True)
class TakeAway:
    """One way of taking something away from a key."""

    command: type[c.Command]
    event: type[e.Event]
    """What it records, if there is something left to take away."""
    method: str
    path: str
    body: Callable[[Target], Any] = lambda _: {}
    use: Callable[[Target], Use] = lambda _: NO_USE
    """A use of the key that is accepted before, and may not be after."""
    key: dict[str, Any] = field(default_factory=dict)
    """What the key must have for that."""
    own_keyspace: bool = False
    view: str = ""
    """What it narrows of how a key is shown, and not of the key: its keyspace's shape or places."""
    by_holder: bool = False
    """Is it asked with the key's own secret?"""
    no_fence: str = ""
    """Why nothing can be accepted after it at an edge, so that it cannot come first."""


_KEY: Final = "/v1/keys/{key_id}"
_ORGANIZATION: Final = "/v1/organizations/{organization_id}"
_NOT_AT_EDGES: Final = (
    "edges know nothing of it: the ledger alone counts money, and it refuses from the commit on"
)


def _with_model(_: Target) -> Use:
    return Use(model="a")


TAKE_AWAYS: Final[dict[str, TakeAway]] = {
    "revoke": TakeAway(c.RevokeKey, e.KeyRevoked, "POST", _KEY + "/revoke"),
    "disable": TakeAway(c.DisableKey, e.KeyDisabled, "POST", _KEY + "/disable"),
    "delete": TakeAway(c.DeleteKey, e.KeyRevoked, "DELETE", _KEY),
    "revoke by ids": TakeAway(
        c.RevokeKeys, e.KeyRevoked, "POST", "/v1/keys/revoke", lambda one: {"key_ids": [one.key_id]}
    ),
    "revoke by filter": TakeAway(
        c.RevokeKeys, e.KeyRevoked, "POST", "/v1/keys/revoke",
        lambda one: {"filter": {"organization_id": one.organization_id}},
    ),
    "revoke oneself": TakeAway(
        c.RevokeSelf, e.KeyRevoked, "POST", "/v1/self/revoke", by_holder=True
    ),
    "leak": TakeAway(
        c.ReportLeak, e.KeyRevoked, "POST", "/v1/leaks", lambda one: {"secret": one.secret, "source": "web"}
    ),
    "rotate": TakeAway(c.RotateKey, e.KeyRotated, "POST", _KEY + "/rotate"),
    "rotate with overlap": TakeAway(
        c.RotateKey, e.KeyRotated, "POST", _KEY + "/rotate", lambda _: {"overlap_seconds": 3_600}
    ),
    "scopes": TakeAway(
        c.EditScopes, e.ScopesEdited, "PATCH", _KEY + "/scopes", lambda _: {"models": ["b"]}, _with_model
    ),
    "addresses": TakeAway(
        c.ChangeKey, e.AllowedIpsSet, "PATCH", _KEY, lambda _: {"allowed_ips": ["198.51.100.0/24"]},
        lambda _: Use(ip="192.0.2.1"),
    ),
    "plan of the key": TakeAway(
        c.ChangeKey, e.PlanAssigned, "PATCH", _KEY, lambda one: {"plan_id": one.other_plan_id}, _with_model
    ),
    "quotas of the key": TakeAway(
        c.ChangeKey, e.QuotasSet, "PATCH", _KEY,
        lambda _: {"quotas": [{"unit": "requests", "window": "day", "limit": 1}]},
    ),
    "rate limits": TakeAway(
        c.ChangeKey, e.RateLimitsSet, "PATCH", _KEY,
        lambda _: {"rate_limits": [{"name": "slow", "limit": 1, "window_seconds": 60}]},
    ),
    "expiry": TakeAway(
        c.ChangeKey, e.ExpirySet, "PATCH", _KEY, lambda _: {"expires_at": "2033-01-01T00:00:00Z"}
    ),
    "earlier expiry": TakeAway(
        c.ChangeKey, e.ExpirySet, "PATCH", _KEY, lambda _: {"expires_at": "2032-01-01T00:00:00Z"},
        key={"expires_at": 2_100_000_000_000_000},
    ),
    "models of the plan": TakeAway(
        c.ChangePlan, e.PlanChanged, "PATCH", "/v1/plans/{plan_id}", lambda _: {"models": ["b"]}, _with_model
    ),
    "keyspace": TakeAway(
        c.ChangeKeyspace, e.KeyspaceChanged, "PATCH", "/v1/keyspaces/{keyspace_id}",
        lambda _: {"required_dimensions": ["tenant"]}, own_keyspace=True,
    ),
    "accepted formats": TakeAway(
        c.ChangeKeyspace, e.KeyspaceChanged, "PATCH", "/v1/keyspaces/{keyspace_id}",
        lambda _: {"accepted_formats": []}, own_keyspace=True, view="shape",
    ),
    "credential locations": TakeAway(
        c.ChangeKeyspace, e.KeyspaceChanged, "PATCH", "/v1/keyspaces/{keyspace_id}",
        lambda _: {"credential_locations": ["header:Authorization:Bearer"]}, own_keyspace=True, view="places",
    ),
    "tenant locations": TakeAway(
        c.ChangeKeyspace, e.KeyspaceChanged, "PATCH", "/v1/keyspaces/{keyspace_id}",
        lambda _: {"tenant_locations": {"org_id": "header:X-Other"}}, own_keyspace=True, view="tenants",
        key={"scopes": c.NewScopes(tenants=("acme",))},
    ),
    "suspend": TakeAway(c.SuspendOrganization, e.OrganizationSuspended, "POST", _ORGANIZATION + "/suspend"),
    "archive": TakeAway(
        c.ArchiveProject, e.ProjectArchived, "POST", _ORGANIZATION + "/projects/{project_id}/archive",
        use=lambda one: Use(project_id=one.project_id),
    ),
    "quotas of the organization": TakeAway(
        c.ChangeOrganization, e.OrganizationQuotasSet, "PATCH", _ORGANIZATION,
        lambda _: {"quotas": [{"unit": "requests", "window": "day", "limit": 1}]}, no_fence=_NOT_AT_EDGES,
    ),
    "quotas of the project": TakeAway(
        c.ChangeProject, e.ProjectQuotasSet, "PATCH", _ORGANIZATION + "/projects/{project_id}",
        lambda _: {"quotas": [{"unit": "requests", "window": "day", "limit": 1}]}, no_fence=_NOT_AT_EDGES,
    ),
    "credit limit": TakeAway(
        c.SetWalletTerms, e.WalletTermsSet, "PATCH", _ORGANIZATION + "/wallet",
        lambda _: {"credit_limit_micros": 0}, no_fence=_NOT_AT_EDGES,
    ),
}  # fmt: skip

FIRSTS: Final = tuple(name for name, one in TAKE_AWAYS.items() if not one.no_fence)
SECONDS: Final = tuple(TAKE_AWAYS)
IMPOSSIBLE: Final = {
    (first, second): one.no_fence for first, one in TAKE_AWAYS.items() if one.no_fence for second in SECONDS
} | {
    ("accepted formats", "revoke oneself"): "the holder's own secret is malformed from the commit on",
}
"""Pairs that cannot be, and why."""


def path_of(name: str, target: Target) -> str:
    """Where it is asked for."""
    return TAKE_AWAYS[name].path.format(
        key_id=target.key_id,
        organization_id=target.organization_id,
        project_id=target.project_id,
        plan_id=target.plan_id,
        keyspace_id=target.keyspace_id,
    )
