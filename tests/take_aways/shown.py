"""Requests that show a key in a way which its keyspace may stop accepting, as a sidecar reads them."""

from __future__ import annotations

import secrets
from typing import Any, Final

from keyledger_edge import Sidecar
from tests.edge.asgi import call
from tests.take_aways.table import Target

_BEARER: Final = "header:Authorization:Bearer"

KEYSPACE: Final[dict[str, Any]] = {
    "credential_locations": [_BEARER, "query:key"],
    "tenant_locations": {"org_id": "header:X-Tenant"},
}
"""Of a keyspace that is narrowed later, beside `accepted_formats`."""


def imported_secret(prefix: str) -> str:
    """One of the accepted format."""
    return prefix + secrets.token_hex(15)


def headers_of(view: str, target: Target) -> dict[str, str]:
    """The request that is let in before the view is narrowed."""
    if view == "places":
        return {"x-forwarded-uri": f"/?key={target.secret}"}
    return {"authorization": f"Bearer {target.secret}", "x-tenant": "acme", "x-other": "another"}


def lets_in_at_once(sidecar: Sidecar, view: str, target: Target) -> bool:
    """Out of memory, now?"""
    headers = [(name.encode(), value.encode()) for name, value in headers_of(view, target).items()]
    query = f"keyspace_id={target.keyspace_id}".encode()
    scope = {"path": "/v1/forward-auth", "query_string": query, "headers": headers}
    answer = sidecar.at_once(scope, b"")
    return getattr(answer, "status", None) == 200


async def lets_in(sidecar: Sidecar, view: str, target: Target) -> bool:
    """Also where it must ask the ledger?"""
    path = f"/v1/forward-auth?keyspace_id={target.keyspace_id}"
    return (await call(sidecar, path, headers=headers_of(view, target))).status == 200
