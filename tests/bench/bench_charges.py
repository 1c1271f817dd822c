"""Durable charges through the ledger's use case, beside their floors in one run.

Floors: the bare append function with claims, and what others do: an `UPDATE` of one hot row, and
of one of 10,000 rows, by pgbench with 64 clients.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from domain import commands as c
from domain.commands import Asking
from domain.desk import SYSTEM_ASKING
from infra.embedded.postgres import programs
from infra.postgres.log import PostgresLog
from keyledger_edge import fingerprint
from services.api.serving.server import run
from services.bootstrap import assemble, bootstrap_root_key, tune_interpreter
from services.ledger.ledger import Ledger
from services.settings import load_settings
from tests.bench.bench_log import GROUP_SIZE, GROUPS, append, ledger, rate

CHARGES = int(os.environ.get("BENCH_CHARGES", "60000"))
KEYS = 10_000
PGBENCH_SECONDS = 5
NOWHERE = "nats://127.0.0.1:9"
"""No NATS: nothing but the log is measured."""


class Measured(NamedTuple):
    """One way of charging."""

    name: str
    per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None


@asynccontextmanager
async def running_ledger(database: str, lease_ms: int = 10_000) -> AsyncGenerator[Ledger]:
    """A ledger that owns its partition, without HTTP in front."""
    # A long lease: a busy machine must not end a bench that is about something else.
    settings = load_settings({"KEYLEDGER_LEASE_MS": str(lease_ms)})
    stop = asyncio.Event()
    async with assemble(settings, database, NOWHERE) as assembled:
        running = asyncio.create_task(assembled.ledger.run(stop))
        await bootstrap_root_key(assembled.ledger, settings)
        tune_interpreter()
        yield assembled.ledger
        stop.set()
        await running


async def make_keys(ledger: Ledger) -> list[str]:
    """An organization with money enough, and its keys."""
    root = next(iter(ledger.books.keys.values()))
    asking = Asking(actor=root.id)
    keyspace = (await ledger.execute(c.DefineKeyspace(name="bench"), asking)).result
    organization = (await ledger.execute(c.OpenOrganization(name="bench"), asking)).result
    deposit = c.DepositCredits(organization_id=organization.id, amount_micros=10**15, reference="bench")
    await ledger.execute(deposit, asking)

    async def make(number: int) -> str:
        create = c.CreateKey(
            keyspace_id=keyspace.id,
            organization_id=organization.id,
            name=f"key {number}",
            fingerprint=fingerprint(keyspace.shape.generate()),
            hint="kl_live_...xxxx",
        )
        key_id: str = (await ledger.execute(create, asking)).result.id
        return key_id

    made: list[str] = []
    for start in range(0, KEYS, 1_000):
        made += await asyncio.gather(*(make(n) for n in range(start, start + 1_000)))
    return made


async def charge_all(ledger: Ledger, keys: list[str], callers: int, run: str) -> Measured:
    """Charge as fast as so many callers can, each waiting for its answer."""
    latencies: list[float] = []
    numbers = iter(range(CHARGES))

    async def call(numbers: Iterator[int]) -> None:
        for number in numbers:
            started = time.perf_counter()
            charge = c.ChargeUsage(
                key_id=keys[number % len(keys)], request_id=f"{run}-{number}", base_micros=1
            )
            done = await ledger.execute(charge, SYSTEM_ASKING)
            assert done.result.code == "valid"
            latencies.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(call(numbers) for _ in range(callers)))
    seconds = time.perf_counter() - started
    latencies.sort()
    p50, p99 = latencies[len(latencies) // 2], latencies[len(latencies) * 99 // 100]
    name = f"use case, {len(keys):,} keys, {callers} callers"
    return Measured(name, CHARGES / seconds, p50 * 1e3, p99 * 1e3)


def pgbench(database: str, rows: int, folder: Path) -> Measured:
    """`UPDATE` of one of so many rows by 64 clients, durable like ours."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS hot (id int PRIMARY KEY, spent bigint)")
        connection.execute("TRUNCATE hot")
        connection.execute("INSERT INTO hot SELECT n, 0 FROM generate_series(1, %s) n", (rows,))
    script = folder / "hot.sql"
    script.write_text(f"\\set id random(1, {rows})\nUPDATE hot SET spent = spent + 1 WHERE id = :id;\n")
    given = conninfo_to_dict(database)
    environment = {**os.environ, "PGHOST": str(given["host"]), "PGUSER": str(given["user"])}
    if given.get("password"):
        environment["PGPASSWORD"] = str(given["password"])
    command = [
        str(programs() / "pgbench"), "-n", "-M", "prepared", "-c", "64", "-j", "2",
        "-T", str(PGBENCH_SECONDS), "-f", str(script), str(given["dbname"]),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    tps = re.search(r"tps = ([\d.]+)", done.stdout)
    assert tps is not None, done.stdout
    return Measured(f"UPDATE of one of {rows:,} rows, 64 clients", float(tps[1]))


async def bare_append(database: str) -> Measured:
    """The append function with a claim for each event, groups of 500, nothing decided."""
    log = PostgresLog(database, wakeups=False)
    assert await log.acquire()
    rates = [await rate(lambda: append(log, claims=True), GROUPS * GROUP_SIZE) for _ in range(3)]
    await log.close()
    return Measured(f"bare append with claims, groups of {GROUP_SIZE}", statistics.median(rates))


async def use_case(database: str) -> list[Measured]:
    """Charges through the ledger: one key and many, few callers and many."""
    async with running_ledger(database) as running:
        keys = await make_keys(running)
        await charge_all(running, keys, 64, "warm-up")
        return [
            await charge_all(running, keys[:count], callers, f"{count}-{callers}")
            for count in (1, KEYS)
            for callers in (64, 512)
        ]


@pytest.mark.bench
def test_charges_beside_their_floors(tmp_path: Path) -> None:
    # On the event loop that a serving process runs on, the floor as well.
    with ledger() as database:
        floor = run(bare_append(database))
    with ledger() as database:
        hot = pgbench(database, 1, tmp_path)
        many = pgbench(database, KEYS, tmp_path)
    with ledger() as database:
        measured = run(use_case(database))
    report(floor, hot, many, measured)


def report(floor: Measured, hot: Measured, many: Measured, measured: list[Measured]) -> None:
    """Everything beside the floors."""
    print(f"{CHARGES:,} durable charges each; `bare` is the append function, `hot` one row's UPDATE")
    for one in (floor, hot, many, *measured):
        latency = "" if one.p50_ms is None else f"   p50 {one.p50_ms:5.2f} ms  p99 {one.p99_ms:6.2f} ms"
        print(
            f"  {one.name:<44} {one.per_second:>9,.0f}/s"
            f"   {one.per_second / floor.per_second:5.2f} of bare"
            f"  {one.per_second / hot.per_second:6.1f} x hot{latency}"
        )
