"""The examples of the API description: every operation is asked once, and what came is written down.

`make examples` writes them; a test asks again and compares. Ids, secrets and times are those of an example:
whatever is drawn at random is replaced by the same text each time.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from domain.keyspaces import ROOT_KEYSPACE_ID
from infra.embedded import EmbeddedServers
from keyledger_language import fingerprint
from services.api.description import examples
from services.api.description.examples import Example
from services.api.operations import Operation
from services.api.serving.app import build_app
from tests.api.quick.world import EDGES, Reply, call
from tests.api.world import EVERY_OPERATION, Management, managed
from tests.contract.projected_worlds import Reading, Written, projecting, reached, reading, written_log
from tests.servers import fresh_database, initialised, server_folder

NOWHERE: Mapping[str, str] = {}
RECORDED = examples.FILE

_ID = re.compile(r"\b(ks|org|prj|plan|key|chg|rsv|evt|edge)_([0-9A-HJKMNP-TV-Z]{26})\b")
_HINT = re.compile(r"\.\.\.[0-9A-Za-z]{4}\b")
_TRACE = re.compile(r"\breq_[0-9a-f]+\b")
_FINGERPRINT = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_MASKED = {
    "edge_key": "0" * 64, "nonce": "0" * 48, "lineage": "AAAAAAAAAAAAAAAAAAAAAA==", "waited_ms": 0.0,
    "next_cursor": "jmYJUuZIMjAyNC0xMC0wNA",
}  # fmt: skip
"""Members that are drawn at random, or measured; a cursor knows the ids of its list."""


def place_of(kind: str, number: int = 0) -> str:
    """An id of an example."""
    return f"{kind}_01JD{number:022}"


class Recorder:
    """Asks a ledger, and keeps what it answers."""

    def __init__(self, world: Management, log: Written, reader: Any) -> None:
        self._world = world
        self._log = log
        self._reader = reader
        self._operations = {one.name: one for one in EVERY_OPERATION}
        self._ids: dict[str, str] = {}
        self._numbers: Counter[str] = Counter()
        self._secrets: dict[str, str] = {}
        self.secret = ""
        """The secret that `acme_live_...` stands for."""
        self.proxy_secret = world.root
        self.place = ""
        """The position of the last answer."""
        self.examples: dict[str, Example] = {}

    async def record(
        self, name: str, path: Mapping[str, str] = NOWHERE, *, query: str = "", own: bool = False
    ) -> None:
        """Ask an operation with its own example, and keep that."""
        one = self._operations[name]
        reply = await self._ask(one, one.example, query, path, own=own)
        answer = self._shown(reply.json) if _is_json(reply) else None
        texts = (
            {} if _is_json(reply) or not reply.body else {_kind_of(reply): self._text(reply.body.decode())}
        )
        self.examples[name] = Example(body=one.example, status=reply.status, answer=answer, texts=texts)

    async def record_text(self, name: str, query: str) -> None:
        """The same answer as another media type."""
        one = self._operations[name]
        reply = await self._ask(one, None, query, NOWHERE)
        texts = self.examples[name].texts | {_kind_of(reply): self._text(reply.body.decode())}
        self.examples[name] = msgspec.structs.replace(self.examples[name], texts=texts)

    async def ask(self, name: str, body: Any) -> Any:
        """Ask without keeping it."""
        reply = await self._ask(self._operations[name], body, "", NOWHERE)
        return reply.json

    async def _ask(
        self, one: Operation, body: Any, query: str, path: Mapping[str, str], *, own: bool = False
    ) -> Reply:
        target = one.path.format(**{name: self.real(value) for name, value in path.items()})
        target += f"?{self.real(query)}" if query else ""
        sent = b"" if body is None else self.real(msgspec.json.encode(body).decode()).encode()
        headers = {"authorization": f"Bearer {self.secret if own else self._world.root}"}
        if one.proxied:
            headers = {"authorization": f"Bearer {self.secret}", "x-keyledger-proxy-key": self.proxy_secret}
        reply = await call(self._world.app, one.method, target, headers=headers, body=sent)
        assert reply.status in {200, 201}, (one.name, reply.status, reply.body)
        self._learn(reply)
        await self._follow()
        return reply

    async def _follow(self) -> None:
        """Have the projections show what was written."""
        placed = self._world.reader.events.placed()[self._log.head :]
        await self._log.write([one.event for one in placed])
        assert self._log.head == self._world.ledger.books.head, "both logs have the same positions"
        await reached(self._reader.projector, self._log.head)
        self._world.clock.advance(10_000)  # so that lists in order of time have one order

    def _learn(self, reply: Reply) -> None:
        self.place = reply.headers.get("x-keyledger-position", self.place)
        secret = reply.json.get("secret") if _is_json(reply) else None
        if secret is not None:
            self.secret = secret if secret.startswith("acme_live_") else self.secret
            self._secrets[secret] = f"{secret[: secret.rindex('_') + 1]}..."

    @property
    def _fingerprint(self) -> str:
        return fingerprint(self.secret).hex()

    # -- between examples and what is real

    def real(self, text: str) -> str:
        """With real ids and secrets in place of those of an example."""
        for real, shown in self._ids.items():
            text = text.replace(shown, real)
        if self.secret:
            text = text.replace('acme_live_..."', f'{self.secret}"')  # a hint goes on behind it
            text = text.replace(f'"fingerprint":"{_FINGERPRINT}"', f'"fingerprint":"{self._fingerprint}"')
        return text

    def _shown(self, value: Any, name: str = "") -> Any:
        if name in _MASKED and value is not None:
            return _MASKED[name]
        if isinstance(value, dict):
            return {field: self._shown(inner, field) for field, inner in value.items()}
        if isinstance(value, list):
            return [self._shown(inner) for inner in value]
        return self._text(value) if isinstance(value, str) else value

    def _text(self, text: str) -> str:
        for secret, shown in self._secrets.items():
            text = text.replace(secret, shown)
        text = _ID.sub(self._example_id, text)
        return _TRACE.sub("req_1f0c2a7b9d3e1", _HINT.sub("...x7Qd", text))

    def _example_id(self, found: re.Match[str]) -> str:
        real, kind, digits = found[0], found[1], found[2]
        if not digits.strip("0"):
            return real  # the keyspace of root keys has the same id everywhere
        if real not in self._ids:
            self._ids[real] = place_of(kind, self._numbers[kind])
            self._numbers[kind] += 1
        return self._ids[real]


class _Reader:
    """Reads projections that a real database keeps."""

    def __init__(self, found: Reading, projector: Any) -> None:
        self.queries = found.queries
        self.events = found.events
        self.projector = projector

    @property
    def position(self) -> int:
        return int(self.projector.position)


def _is_json(reply: Reply) -> bool:
    return _kind_of(reply) == "application/json"


def _kind_of(reply: Reply) -> str:
    return reply.headers.get("content-type", "").partition(";")[0]


async def recorded(database: str) -> dict[str, Example]:
    """The examples of all operations, from a ledger in memory whose projections are in this database."""
    async with managed() as world, written_log(database) as log, reading(database) as found:
        with projecting(database) as projector, pytest.MonkeyPatch.context() as monkeypatch:
            reader = _Reader(found, projector)
            # What is written by itself, a while after an answer, would stand elsewhere each time.
            monkeypatch.setattr(world.ledger._sightings, "take", lambda _now: None)
            monkeypatch.setattr(world.ledger.standing.tenure, "_write_receipts", lambda _bus: None)
            world.app = build_app(world.ledger, reader, more_routes=EDGES)
            recorder = Recorder(world, log, reader)
            await _ask_everything(recorder)
            return recorder.examples


async def _ask_everything(recorder: Recorder) -> None:
    record, ask = recorder.record, recorder.ask
    keyspace = {"keyspace_id": place_of("ks")}
    organization = {"organization_id": place_of("org")}
    project = {**organization, "project_id": place_of("prj")}
    plan, key = {"plan_id": place_of("plan")}, {"key_id": place_of("key")}

    for name in ("createKeyspace", "listKeyspaces"):
        await record(name)
    for name in ("getKeyspace", "updateKeyspace"):
        await record(name, keyspace)
    for name in ("createOrganization", "listOrganizations", "createPlan", "listPlans"):
        await record(name)
    for name in ("getPlan", "updatePlan"):
        await record(name, plan)
    for name in (
        "getOrganization",
        "updateOrganization",
        "addCredits",
        "getWallet",
        "updateWallet",
        "createProject",
    ):
        await record(name, organization)
    await record("listProjects", organization)
    for name in ("getProject", "updateProject"):
        await record(name, project)

    for name in ("createKey", "listKeys"):
        await record(name)
    for name in ("getKey", "updateKey", "updateKeyScopes"):
        await record(name, key)
    for name in ("verifySecret", "verifySecrets", "createCharge", "createCharges"):
        await record(name)
    await record("refundCharge", {"charge_id": place_of("chg")})
    await record("getCharge", {"charge_id": place_of("chg")})
    await record("createReservation")
    for name in ("getReservation", "captureReservation"):
        await record(name, {"reservation_id": place_of("rsv")})
    held = await ask("createReservation", {**key, "request_id": "r-3", "amount_micros": 40_000})
    await record("releaseReservation", {"reservation_id": held["reservation"]["id"]})
    await record("explainUse")
    await record("getSelf", own=True)
    await record("checkForwardedRequest", query=f"keyspace_id={place_of('ks')}")
    proxy = {"name": "envoy", "scopes": {"permissions": ["verify"]}, "bound_keyspace_id": place_of("ks")}
    made = await ask("createKey", {"keyspace_id": ROOT_KEYSPACE_ID, **proxy})
    recorder.proxy_secret = made["secret"]
    await record("checkForwardedPath", {"path": "chat/completions"})

    await record("rotateKey", key)
    for name in ("disableKey", "enableKey"):
        await record(name, key)
    await record("reportLeak")
    another = await ask("createKey", {**keyspace, **organization, "name": "Import"})
    await record("revokeSelf", own=True)
    await record("deleteKey", {"key_id": another["key"]["id"]})
    third = await ask("createKey", {**keyspace, **organization, "name": "Reports"})
    await record("revokeKey", {"key_id": third["key"]["id"]})
    await record("importKeys")
    await record("revokeKeys")
    for name in ("suspendOrganization", "resumeOrganization"):
        await record(name, organization)
    await record("archiveProject", project)
    mistyped = await ask("createKeyspace", {"name": "Acme, mistyped", "prefix": "acmr_live_"})
    await record("archiveKeyspace", {"keyspace_id": mistyped["id"]})

    await record("listKeyHistory", key, query="limit=2")
    await record("listKeyRequests", key, query="limit=2")
    await record("getKeyUsage", key, query="by=model")
    await record("getOrganizationUsage", organization)
    await record("listWalletStatement", organization, query="limit=2")
    await record("listRequests", query="limit=2")
    await record("getRequest", {"request_id": "r-1"})
    await record("listAudit", query="limit=2")
    await recorder.record_text("listAudit", "limit=1&format=ndjson")
    await recorder.record_text("listAudit", "limit=1&format=csv")
    await record("listEvents", query="limit=2&types=KeyRevoked")

    for name in ("connectEdge", "getEdgeKeyspaces", "fillEdge", "listEdges"):
        await record(name)
    await record("getFence", {"position": recorder.place})
    for name in ("getHealth", "getReadiness"):
        await record(name)


def to_json(found: dict[str, Example]) -> bytes:
    """As the file has it."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n"


def main() -> None:
    """Write the file."""
    with (
        server_folder() as folder,
        EmbeddedServers(initialised(folder / "data"), nats=False) as servers,
        fresh_database(servers.postgres) as database,
    ):
        RECORDED.write_bytes(to_json(asyncio.run(recorded(database))))


if __name__ == "__main__":
    main()
