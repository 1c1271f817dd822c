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
