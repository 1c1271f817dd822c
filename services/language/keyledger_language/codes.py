"""The codes a verdict can have, in the order in which they are decided."""

from __future__ import annotations

from typing import Final

LEDGER_UNREACHABLE: Final = "ledger_unreachable"
MISSING: Final = "missing"
MALFORMED: Final = "malformed"
NOT_FOUND: Final = "not_found"
REVOKED: Final = "revoked"
EXPIRED: Final = "expired"
ROTATED: Final = "rotated"
DISABLED: Final = "disabled"
ORGANIZATION_SUSPENDED: Final = "organization_suspended"
IP_DENIED: Final = "ip_denied"
PERMISSION_DENIED: Final = "permission_denied"
PROJECT_DENIED: Final = "project_denied"
MODEL_DENIED: Final = "model_denied"
TENANT_DENIED: Final = "tenant_denied"
RATE_LIMITED: Final = "rate_limited"
API_KEY_QUOTA_EXCEEDED: Final = "api_key_quota_exceeded"
PROJECT_QUOTA_EXCEEDED: Final = "project_quota_exceeded"
ORGANIZATION_QUOTA_EXCEEDED: Final = "organization_quota_exceeded"
BILLING_SHORTFALL: Final = "billing_shortfall"
VALID: Final = "valid"

UNUSABLE: Final = frozenset({REVOKED, EXPIRED, ROTATED, DISABLED, ORGANIZATION_SUSPENDED})
"""Codes of a key that cannot be used at all, for any use and from any address."""

UNUSABLE_FROM_THERE: Final = UNUSABLE | {IP_DENIED}
"""Codes of a key that cannot be used from an address, for any use."""

STATUS_OF_CODE: Final[dict[str, int]] = {
    LEDGER_UNREACHABLE: 503,
    MISSING: 401,
    MALFORMED: 401,
    NOT_FOUND: 401,
    REVOKED: 401,
    EXPIRED: 401,
    ROTATED: 401,
    DISABLED: 401,
    ORGANIZATION_SUSPENDED: 403,
    IP_DENIED: 403,
    PERMISSION_DENIED: 403,
    PROJECT_DENIED: 403,
    MODEL_DENIED: 403,
    TENANT_DENIED: 403,
    RATE_LIMITED: 429,
    API_KEY_QUOTA_EXCEEDED: 402,
    PROJECT_QUOTA_EXCEEDED: 402,
    ORGANIZATION_QUOTA_EXCEEDED: 402,
    BILLING_SHORTFALL: 402,
    VALID: 200,
}
"""Each code's HTTP status in forward-auth, first match first; a keyspace's `denial_status` overrides it."""

TITLE_OF_CODE: Final[dict[str, str]] = {
    "invalid_request": "The request is not valid",
    "malformed_body": "The body is not JSON",
    "ambiguous_credentials": "Two different secrets in one request",
    "method_not_allowed": "This path does not support this method",
    "body_too_large": "The body is too large",
    "proxy_unauthenticated": "The proxy's own root key is missing or does not work",
    LEDGER_UNREACHABLE: "The ledger cannot be reached",
    MISSING: "No secret was given",
    MALFORMED: "This is not a secret of the keyspace",
    NOT_FOUND: "Not found",
    REVOKED: "The key is revoked",
    EXPIRED: "The key is expired",
    ROTATED: "The secret was replaced by a newer one",
    DISABLED: "The key is disabled",
    ORGANIZATION_SUSPENDED: "The organization is suspended",
    IP_DENIED: "The key is not allowed from this address",
    PERMISSION_DENIED: "This is not permitted",
    PROJECT_DENIED: "The key is not for this project",
    MODEL_DENIED: "The key is not for this model",
    TENANT_DENIED: "The key is not for this tenant",
    RATE_LIMITED: "Too many requests",
    API_KEY_QUOTA_EXCEEDED: "A quota of the key is used up",
    PROJECT_QUOTA_EXCEEDED: "A quota of the project is used up",
    ORGANIZATION_QUOTA_EXCEEDED: "A quota of the organization is used up",
    BILLING_SHORTFALL: "The wallet does not cover this",
}
"""The title, for people, of each code that an edge answers; the ledger uses the same titles."""
