"""Keys that are going to die, in all the ways there are, and whoever takes them away."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any, Literal

from keyledger_edge import boottime_ns
from tests.campaigns.edges.book import Slot
from tests.campaigns.load import Client

Kind = Literal["revoke", "disable", "rotate", "scopes", "suspend", "archive", "plan"]
KINDS: dict[Kind, int] = {
    "revoke": 55, "disable": 10, "rotate": 10, "scopes": 10, "suspend": 5, "archive": 5, "plan": 5,
}  # fmt: skip
_TOGETHER = 4
"""Keys that go with an organization, a project or a plan."""


@dataclass
class Victim:
    """What is taken away with one request, and what became of that."""

    kind: Kind
    thing: str
    organization_id: str
    slots: list[Slot]
    first_slot: int = 0
    position: int | None = None
    answered: int | None = None
    waited_ms: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def range(self) -> range:
        return range(self.first_slot, self.first_slot + len(self.slots))


class Registrar:
    """Makes victims."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self._client = client
        self._chance = chance
        self._count = 0
        self.keyspace_id = ""
        self._home = ""

    async def prepare(self) -> None:
        made = await self._make("/v1/keyspaces", {"name": "edges", "preset": "default", "prefix": "kl_edge_"})
        self.keyspace_id = made["id"]
        self._home = (await self._make("/v1/organizations", {"name": "home"}))["id"]

    async def victims(self, count: int, *, together: int = 16) -> list[Victim]:
        """So many, in a random order; their slots are numbered in it."""
        kinds = self._chance.choices(list(KINDS), list(KINDS.values()), k=count)
        gate = asyncio.Semaphore(together)

        async def one(kind: Kind) -> Victim:
            async with gate:
                return await self._victim(kind)

        made = await asyncio.gather(*(one(kind) for kind in kinds))
        slot = 0
        for victim in made:
            victim.first_slot = slot
            slot += len(victim.slots)
        return made

    async def _victim(self, kind: Kind) -> Victim:
        home = self._home
        if kind == "suspend":
            home = (await self._make("/v1/organizations", {"name": "victim"}))["id"]
            return Victim(kind, home, home, [(await self._key(home))[1] for _ in range(_TOGETHER)])
        if kind == "archive":
            path = f"/v1/organizations/{home}/projects"
            project = (await self._make(path, {"name": f"victim {self._count}"}))["id"]
            slots = [(await self._key(home))[1] for _ in range(_TOGETHER)]
            return Victim(kind, project, home, [Slot(slot.secret, project_id=project) for slot in slots])
        if kind == "plan":
            plan = (await self._make("/v1/plans", {"name": f"victim {self._count}", "models": ["a", "b"]}))[
                "id"
            ]
            slots = [(await self._key(home, plan_id=plan))[1] for _ in range(_TOGETHER)]
            return Victim(kind, plan, home, [Slot(slot.secret, model="a") for slot in slots])
        key_id, slot = await self._key(home)
        if kind == "scopes":
            slot = Slot(slot.secret, permission="chat")
        return Victim(kind, key_id, home, [slot])

    async def _key(self, organization_id: str, **more: Any) -> tuple[str, Slot]:
        body = {"keyspace_id": self.keyspace_id, "organization_id": organization_id, "name": "victim", **more}
        made = await self._make("/v1/keys", body)
        return made["key"]["id"], Slot(made["secret"])

    async def _make(self, path: str, body: dict[str, Any]) -> Any:
        self._count += 1
        return await self._client.must("POST", path, body, **{"Idempotency-Key": f"make-{self._count}"})


async def take_away(client: Client, victim: Victim, *, wait: bool) -> None:
    """Take it away and learn when the fence holds: with the request, or by asking afterwards."""
    method, path, body = _request(victim)
    headers = {"Idempotency-Key": f"take-{victim.thing}"}
    answer = await client.ask(method, f"{path}?fence={'true' if wait else 'false'}", body, **headers)
    if answer is None or answer.status not in {200, 201, 202}:
        victim.problems.append(f"{victim.kind} {victim.thing} was answered {answer}")
        return
    fence = answer.body["fence"]
    victim.position = int(fence["position"].partition("-")[2])
    while not (answer.status != 202 and fence["held"]):
        answer = await client.ask("GET", f"/v1/fences/{fence['position']}?wait=true")
        if answer is None or answer.status != 200:
            victim.problems.append(f"the fence of {victim.kind} {victim.thing} was answered {answer}")
            return
        fence = answer.body
    victim.answered = boottime_ns()
    victim.waited_ms = fence["waited_ms"]


def _request(victim: Victim) -> tuple[str, str, dict[str, Any]]:
    key = f"/v1/keys/{victim.thing}"
    match victim.kind:
        case "revoke" | "disable":
            return "POST", f"{key}/{victim.kind}", {}
        case "rotate":
            return "POST", f"{key}/rotate", {"overlap_seconds": 0}
        case "scopes":
            return "PATCH", f"{key}/scopes", {"permissions": ["other"]}
        case "suspend":
            return "POST", f"/v1/organizations/{victim.thing}/suspend", {}
        case "archive":
            return "POST", f"/v1/organizations/{victim.organization_id}/projects/{victim.thing}/archive", {}
        case "plan":
            return "PATCH", f"/v1/plans/{victim.thing}", {"models": ["b"]}
