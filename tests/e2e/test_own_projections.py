"""The projection of docs/projections.md, as written, beside a ledger that is used: killed, and exact."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from keyledger_language.instants import from_datetime
from tests.campaigns.cluster import Cluster, cluster
from tests.campaigns.load import Client
from tests.processes import start_with_us

pytestmark = pytest.mark.slow

PAGE: Final = (Path(__file__).parents[2] / "docs" / "projections.md").read_text("utf-8")
SEED: Final = int(os.environ.get("KEYLEDGER_TEST_SEED", "0")) or random.randrange(1, 10**6)
MODELS: Final = (None, "gpt-large", "gpt-small", "modèle ✓")
KILLS: Final = 10
RESTARTS: Final = frozenset({3, 7})
"""Behind these kills PostgreSQL is killed and started again, too."""
PATIENCE: Final = 60.0
HOUR: Final = 3_600_000_000

Spend = Counter[tuple[str, int]]
"""Micros by model and hour."""


def program() -> str:
    [found] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    return str(found)


def test_the_documented_program_has_at_most_sixty_lines() -> None:
    assert len(program().splitlines()) <= 60


# -- a ledger that is used ------------------------------------------------------------------------


class Gateway:
    """Charges, reserves, captures and refunds, until it is told to stop."""

    def __init__(self, client: Client, chance: random.Random) -> None:
        self.organization_id = ""
        self.stopping = False
        self._client = client
        self._chance = chance
        self._key_id = ""
        self._count = 0

    async def prepare(self) -> None:
        ask = self._client.must
        keyspace = await ask(
            "POST", "/v1/keyspaces", {"name": "own", "preset": "default", "prefix": "kl_own_"}
        )
        self.organization_id = (await ask("POST", "/v1/organizations", {"name": "Acme"}))["id"]
        credits_ = f"/v1/organizations/{self.organization_id}/wallet/credits"
        await ask("POST", credits_, {"amount_micros": 10**12, "reference": "first"})
        key = {"keyspace_id": keyspace["id"], "organization_id": self.organization_id, "name": "agent"}
        self._key_id = (await ask("POST", "/v1/keys", key))["key"]["id"]

    async def run(self) -> None:
        while not self.stopping:
            self._count += 1
            micros = self._chance.randrange(1_000, 1_000_000)
            use: dict[str, Any] = {
                "key_id": self._key_id, "request_id": f"request-{self._count}", "amount_micros": micros
            }  # fmt: skip
            if (model := self._chance.choice(MODELS)) is not None:
                use["model"] = model
            if self._chance.random() < 0.3:
                await self._reserve(use)
            else:
                await self._charge(use)

    async def _charge(self, use: dict[str, Any]) -> None:
        made = await self._client.must("POST", "/v1/charges", use)
        if self._chance.random() < 0.2:
            refund = {"request_id": f"{use['request_id']}-back", "amount_micros": use["amount_micros"] // 3}
            await self._client.must("POST", f"/v1/charges/{made['charge']['id']}/refund", refund)

    async def _reserve(self, use: dict[str, Any]) -> None:
        made = await self._client.must("POST", "/v1/reservations", use)
        for part, final in (("a", False), ("b", True)):
            capture = {
                "request_id": f"{use['request_id']}-{part}",
                "amount_micros": use["amount_micros"] // 3,
            }
            path = f"/v1/reservations/{made['reservation']['id']}/capture"
            await self._client.must("POST", path, capture | {"final": final})


async def usage(client: Client, organization_id: str) -> Spend:
    """What the ledger's own projections say of all that it has answered."""
    path = f"/v1/organizations/{organization_id}/usage?by=model&bucket=hour"
    found: Spend = Counter()
    for row in (await client.must("GET", path))["items"]:
        start = from_datetime(datetime.fromisoformat(row["start"]))
        found[row["model"] or "", start // HOUR] += row["spent_micros"]
    return found


# -- somebody's own projection --------------------------------------------------------------------


class Own:
    """The documented program in a process of its own, started anew whenever it ended."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._file = folder / "spend.py"
        self._file.write_text(program(), "utf-8")
        self._folder = folder
        self._environment = dict(os.environ) | environment
        self._process: subprocess.Popen[str] | None = None
        self.ended: list[str] = []
        """What it wrote, each time that it ended by itself."""

    def start(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            self.ended.append(self.output())
        if self._process is None or self._process.poll() is not None:
            with (self._folder / "spend.log").open("w") as log:
                self._process = start_with_us(
                    [sys.executable, "-P", str(self._file)],
                    stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment, cwd=self._folder,
                )  # fmt: skip

    def output(self) -> str:
        return (self._folder / "spend.log").read_text("utf-8")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def wait(self) -> int:
        assert self._process is not None
        return self._process.wait(PATIENCE)


def in_sqlite(made: Cluster) -> tuple[dict[str, str], Callable[[], Spend]]:
    file = made.folder / "spend.db"

    def read() -> Spend:
        with closing(sqlite3.connect(file)) as connection:
            try:
                rows = connection.execute("SELECT model, hour, micros FROM spend").fetchall()
            except sqlite3.OperationalError:
                return Counter()
        return Counter({(model, hour): micros for model, hour, micros in rows})

    settings = {"SPEND_PERSISTENCE_MODULE": "eventsourcing.sqlite", "SPEND_SQLITE_DBNAME": str(file)}
    return settings, read


def in_postgres(made: Cluster) -> tuple[dict[str, str], Callable[[], Spend]]:
    """On the same server, so that it is killed with it."""
    with psycopg.connect(made.database_url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE reports")
    place = conninfo_to_dict(made.database_url) | {"dbname": "reports"}

    def read() -> Spend:
        with psycopg.connect("", **place) as connection:  # type: ignore[arg-type]
            try:
                rows = connection.execute("SELECT model, hour, micros FROM spend").fetchall()
            except psycopg.errors.UndefinedTable:
                return Counter()
        return Counter({(model, hour): micros for model, hour, micros in rows})

    settings = {
        "SPEND_PERSISTENCE_MODULE": "eventsourcing.postgres",
        "SPEND_POSTGRES_DBNAME": "reports",
        "SPEND_POSTGRES_HOST": str(place["host"]),
        "SPEND_POSTGRES_PORT": "5432",
        "SPEND_POSTGRES_USER": str(place["user"]),
        "SPEND_POSTGRES_PASSWORD": "",
    }
    return settings, read


async def until(what: Callable[[], Awaitable[bool]], why: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await what():
        assert time.monotonic() < deadline, why()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kept", [in_sqlite, in_postgres])
async def test_the_documented_projection_is_exact_however_often_it_is_killed(
    kept: Callable[[Cluster], tuple[dict[str, str], Callable[[], Spend]]],
) -> None:
    print(f"KEYLEDGER_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    async with cluster(1) as made, Client(made, chance) as client:
        gateway = Gateway(client, chance)
        await gateway.prepare()
        settings, read = kept(made)
        own = Own(made.folder, settings | {"KEYLEDGER_DATABASE_URL": made.database_url})
        load = [asyncio.create_task(gateway.run()) for _ in range(4)]
        try:
            for kill in range(KILLS):
                counted = read()

                async def further(before: Spend = counted) -> bool:
                    own.start()
                    return read() != before

                await until(further, own.output)
                await asyncio.sleep(chance.random() * 0.3)
                own.kill()
                if kill in RESTARTS:
                    await made.strike("postgres", chance.random() * 0.5)
            own.start()
            gateway.stopping = True
            await asyncio.gather(*load)
            expected = await usage(client, gateway.organization_id)

            async def equal() -> bool:
                own.start()
                return read() == expected

            await until(equal, lambda: f"{read()} and {expected}: {own.output()}")
        finally:
            gateway.stopping = True
            own.kill()
            await asyncio.gather(*load, return_exceptions=True)
    assert len(expected) >= len(MODELS)
    assert sum(expected.values()) > 0
    assert all("OperationalError" in output for output in own.ended), own.ended
