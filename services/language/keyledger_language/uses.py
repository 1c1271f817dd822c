"""What a key is to be used for, and on whose behalf."""

from __future__ import annotations

import msgspec


class Tenant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The one whose work the use is, inside the customer's own product."""

    org_id: str | None = None
    """The customer's own customer."""
    user_id: str | None = None
    """The user."""


class Use(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a key is to be used for."""

    permissions: tuple[str, ...] = ()
    project_id: str | None = None
    model: str | None = None
    provider: str | None = None
    tenant: Tenant | None = None
    ip: str | None = None


NO_USE = Use()
