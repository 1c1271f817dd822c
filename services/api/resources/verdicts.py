"""The codes that a use may be refused with, as the API description lists them."""

from __future__ import annotations

from typing import Final

VERDICTS: Final = (
    "malformed", "not_found", "revoked", "expired", "rotated", "disabled", "organization_suspended",
    "ip_denied", "permission_denied", "project_denied", "model_denied", "tenant_denied",
)  # fmt: skip
MONEY: Final = (
    "api_key_quota_exceeded", "project_quota_exceeded", "organization_quota_exceeded", "billing_shortfall",
    "idempotency_conflict",
)  # fmt: skip
