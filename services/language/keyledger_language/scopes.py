"""Scopes: what a key may be used for."""

from __future__ import annotations

from typing import Literal

import msgspec

Allowed = tuple[str, ...] | Literal["*"]
"""A list of what is allowed, or `"*"` for everything."""


class Scopes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key may be used for."""

    permissions: Allowed = "*"
    """Permissions that uses may ask for, or `*` for all."""
    projects: Allowed = "*"
    """Projects that uses may name, or `*` for all."""
    models: Allowed = "*"
    """Models that uses may name, or `*` for all."""
    tenants: Allowed = "*"
    """Tenants that uses may name, or `*` for all."""
