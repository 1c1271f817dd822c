"""The platform's office: what operators do with the management API, one method for each."""

from __future__ import annotations

import itertools
from typing import Any

from aiohttp import ClientSession

from services.demo.story import DemoRefusedError

UNIT = 1_000_000
"""One unit of currency in micros."""


class Office:
    """The management API, called with the platform's root key."""

    def __init__(self, session: ClientSession, url: str, root_key: str) -> None:
        self._session = session
        self._url = url
        self._headers = {"Authorization": f"Bearer {root_key}"}
        self._names = itertools.count(1)
        self.secrets: list[str] = []
        """Every secret that was shown, to search for them afterwards where none may be."""

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request, which must succeed."""
        async with self._session.request(
            method, self._url + path, json=body, headers=self._headers
        ) as answer:
            found: dict[str, Any] = await answer.json(content_type=None) if answer.status != 204 else {}  # noqa: PLR2004 - no content
            if not answer.ok:
                raise DemoRefusedError(f"{method} {path}: {answer.status} {found.get('detail')}")
            return found

    async def keyspace(self, preset: str) -> str:
        """A keyspace with a gateway's conventions."""
        return str((await self.ask("POST", "/v1/keyspaces", {"name": preset, "preset": preset}))["id"])

    async def organization(self, name: str, units: float = 0, **fields: Any) -> str:
        """A customer, with money in the wallet."""
        made = await self.ask("POST", "/v1/organizations", {"name": name, **fields})
        if units:
            await self.deposit(made["id"], units)
        return str(made["id"])

    async def deposit(self, organization_id: str, units: float) -> dict[str, Any]:
        """A top-up."""
        return await self.ask(
            "POST",
            f"/v1/organizations/{organization_id}/wallet/credits",
            {"amount_micros": round(units * UNIT), "reference": f"top-up-{next(self._names)}"},
        )

    async def key(self, keyspace_id: str, organization_id: str, name: str, **fields: Any) -> tuple[str, str]:
        """A key: its id, and its secret."""
        made = await self.ask(
            "POST",
            "/v1/keys",
            {"keyspace_id": keyspace_id, "organization_id": organization_id, "name": name, **fields},
        )
        self.secrets.append(made["secret"])
        return made["key"]["id"], made["secret"]

    async def root_key(self, name: str, permissions: list[str]) -> str:
        """A root key for a proxy or an edge."""
        made = await self.ask(
            "POST",
            "/v1/keys",
            {"keyspace_id": "ks_" + "0" * 26, "name": name, "scopes": {"permissions": permissions}},
        )
        self.secrets.append(made["secret"])
        return str(made["secret"])

    async def rotate(self, key_id: str, overlap_seconds: int = 0) -> str:
        """The next secret."""
        made = await self.ask("POST", f"/v1/keys/{key_id}/rotate", {"overlap_seconds": overlap_seconds})
        self.secrets.append(made["secret"])
        return str(made["secret"])

    async def wallet(self, organization_id: str) -> dict[str, Any]:
        """An organization's wallet."""
        return await self.ask("GET", f"/v1/organizations/{organization_id}/wallet")
