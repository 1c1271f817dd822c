"""Three edges that uses with a cost go through, and gateways that ask until they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from tests.campaigns.checker import Operation
from tests.campaigns.cluster import Cluster
from tests.campaigns.edges.charging_process import Ask, Terms, Told
from tests.campaigns.load import Client, Key
from tests.processes import ending_with_us

_TRY_SECONDS = 6.0
_AGAIN = 500
PROGRAM = (sys.executable, "-P", "-c", "from keyledger_boot import main; main()")


class _Process:
    """What both kinds share: a process that can be killed, at a unix socket."""

    def __init__(self, name: str, folder: Path, ledger: str) -> None:
        self.name = name
        self.ledger = ledger
        """The address of the one that it asks."""
        self.path = folder / f"{name}.sock"
        self.kills = 0
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, command: list[str], given: bytes = b"", **environment: str) -> None:
        self.path.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_us(command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )
        assert self._process.stdin is not None
        self._process.stdin.write(given)
        self._process.stdin.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class LibraryEdge(_Process):
    """The library in a process of its own."""

    def __init__(self, name: str, folder: Path, terms: Terms) -> None:
        super().__init__(name, folder, terms.url)
        self._terms = msgspec.structs.replace(terms, path=str(self.path))
        self._waiting: dict[str, asyncio.Future[Told]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.campaigns.edges.charging_process"]
        self.spawn(command, msgspec.json.encode(self._terms))

    async def ask(self, ask: Ask) -> Told | None:
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        try:
            writer = await self._connected()
            self._waiting[ask.request_id] = answer
            writer.write(msgspec.json.encode(ask) + b"\n")
            return await asyncio.wait_for(answer, _TRY_SECONDS)
        except (OSError, TimeoutError):
            return None
        finally:
            self._waiting.pop(ask.request_id, None)

    async def close(self) -> None:
        if self._hearing is not None:
            await self._hearing

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is None:
                reader, self._writer = await asyncio.open_unix_connection(str(self.path))
                self._hearing = asyncio.create_task(self._hear(reader))
            return self._writer

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        writer = self._writer
        assert writer is not None
        with contextlib.suppress(OSError):
            while line := await reader.readline():
                told = msgspec.json.decode(line, type=Told)
                if (waiting := self._waiting.get(told.request_id)) is not None and not waiting.done():
                    waiting.set_result(told)
        self._writer = None
        writer.close()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionResetError())


class SidecarEdge(_Process):
    """`keyledger edge`, asked over HTTP as any language would."""

    def __init__(self, name: str, folder: Path, terms: Terms) -> None:
        super().__init__(name, folder, terms.url)
        self._terms = terms
        self._session: aiohttp.ClientSession | None = None

    def start(self) -> None:
        terms = self._terms
        self.spawn(
            [*PROGRAM, "edge", "--ledger", terms.url, "--listen", f"unix:{self.path}",
             "--keyspace", terms.keyspace_id],
            KEYLEDGER_EDGE_KEY=terms.key,
        )  # fmt: skip

    async def ask(self, ask: Ask) -> Told | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                "http://edge", connector=aiohttp.UnixConnector(str(self.path), limit=0),
                timeout=aiohttp.ClientTimeout(total=_TRY_SECONDS),
            )  # fmt: skip
        asked = msgspec.to_builtins(ask) if ask.cost_micros is not None else {"secret": ask.secret}
        try:
            async with self._session.post("/v1/verify", json=asked) as answer:
                body: dict[str, Any] = await answer.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None
        charge = body.get("charge")
        replayed = bool(charge and charge.get("replayed"))
        return Told(ask.request_id, str(body["code"]), charge, replayed, body.get("position"))

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class Gateways:
    """Callers with request ids of their own: each use goes on until it is told, by whichever edge."""

    def __init__(self, edges: list[LibraryEdge | SidecarEdge], chance: random.Random) -> None:
        self.operations: list[Operation] = []
        self.keys: list[Key] = []
        self.stopping = False
        self.tries = 0
        self.told = 0
        self._edges = edges
        self._chance = chance
        self._count = 0

    async def run(self, callers: int) -> None:
        await asyncio.gather(*(self._call() for _ in range(callers)))

    async def _call(self) -> None:
        while not self.stopping:
            key = self._chance.choice(self.keys)
            self._count += 1
            cost = self._chance.randrange(1, 100)
            operation = Operation(
                "charge", f"use-{self._count}", key.organization_id, key.id, cost, invoked=time.monotonic()
            )
            self.operations.append(operation)
            told = await self._until_told(Ask(key.secret, operation.name, cost))
            operation.completed = time.monotonic()
            operation.code = told.code
            operation.replayed = told.replayed
            self.told += 1
            if told.code == "valid":
                assert told.charge is not None
                operation.thing = str(told.charge["id"])
            elif self._chance.random() < 0.9:
                # It has run out of money; others have not.
                await asyncio.sleep(0.02)

    async def _until_told(self, ask: Ask) -> Told:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            self.tries += 1
            told = await self._chance.choice(self._edges).ask(ask)
            if told is not None and told.code != "ledger_unreachable":
                return told
            await asyncio.sleep(0.02 + 0.1 * self._chance.random())
        raise AssertionError(f"{ask.request_id} was not answered by anybody")


async def make_keys(
    client: Client, keyspace_id: str, *, organizations: int, keys: int
) -> tuple[list[Key], list[Operation], dict[str, int]]:
    """Organizations with little money, each with keys that may spend even less; who may spend what."""
    made: list[Key] = []
    deposits: list[Operation] = []
    most: dict[str, int] = {}
    for n in range(organizations):
        once = {"Idempotency-Key": f"organization {n}"}
        organization = (await client.must("POST", "/v1/organizations", {"name": f"{n}"}, **once))["id"]
        most[organization] = 3_000 if n % 2 else 10_000_000
        deposit = Operation("deposit", f"deposit {n}", organization, "", most[organization], time.monotonic())
        body = {"amount_micros": most[organization], "reference": deposit.name}
        await client.must("POST", f"/v1/organizations/{organization}/wallet/credits", body)
        deposit.completed, deposit.code = time.monotonic(), "valid"
        deposits.append(deposit)
        for k in range(keys):
            quota = 1_000 if k % 2 else 5_000_000
            quotas = [{"unit": "micros", "window": "total", "limit": quota}]
            body = {
                "keyspace_id": keyspace_id, "organization_id": organization, "name": f"{n} {k}",
                "quotas": quotas,
            }  # fmt: skip
            key = await client.must("POST", "/v1/keys", body, **{"Idempotency-Key": f"key {n} {k}"})
            most[key["key"]["id"]] = quota
            made.append(Key(key["key"]["id"], key["secret"], organization))
    return made, deposits, most


def edges_of(cluster: Cluster, keyspace_id: str) -> list[LibraryEdge | SidecarEdge]:
    """Two in a program of their own, one a sidecar; each with the ledger process that it asks."""
    terms = [
        Terms(cluster.addresses[n % len(cluster.addresses)], cluster.root_key, keyspace_id, "")
        for n in range(3)
    ]
    return [
        LibraryEdge("library-0", cluster.folder, terms[0]),
        LibraryEdge("library-1", cluster.folder, terms[1]),
        SidecarEdge("sidecar", cluster.folder, terms[2]),
    ]
