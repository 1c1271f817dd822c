"""Organizations, their projects, and the plans that the platform gives to keys."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from keyledger_language.events import Quota
from keyledger_language.instants import Instant


class Organization(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of one organization."""

    id: str
    name: str
    external_id: str | None = None
    metadata: dict[str, Any] = {}
    quotas: tuple[Quota, ...] = ()
    suspended: bool = False
    created_at: Instant = 0
    version: int = 1
    position: int = 0


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of one project."""

    id: str
    organization_id: str
    name: str
    quotas: tuple[Quota, ...] = ()
    archived: bool = False
    created_at: Instant = 0
    version: int = 1
    position: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The current state of one plan."""

    id: str
    name: str
    models: tuple[str, ...] | Literal["*"]
    price_multiplier: str = "1"
    created_at: Instant = 0
    version: int = 1
    position: int = 0
