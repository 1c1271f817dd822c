"""The shape of each path parameter."""

from __future__ import annotations

from typing import Any, Final

from domain.ids import POSITION_PATTERN, id_pattern

_KINDS: Final = {
    "keyspace_id": "ks",
    "organization_id": "org",
    "project_id": "prj",
    "plan_id": "plan",
    "key_id": "key",
    "charge_id": "chg",
    "reservation_id": "rsv",
}


def schema_of_place(name: str) -> dict[str, Any]:
    """A path parameter's schema; a value that does not match it is not found."""
    if name in _KINDS:
        return {"type": "string", "pattern": f"^{id_pattern(_KINDS[name])}$"}
    if name == "position":
        return {"type": "string", "pattern": f"^{POSITION_PATTERN}$"}
    return {"type": "string"}
