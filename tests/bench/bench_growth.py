"""What growth costs: keys and events, in time, memory, disk, and the length of a restart.

`GROWTH_KEYS=1000000 GROWTH_CHARGES=3000000 make bench-growth` for the full size.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from domain import commands as c
from domain.commands import Asking
from domain.desk import SYSTEM_ASKING
from keyledger_edge import fingerprint
from services.ledger import upkeep
from services.ledger.ledger import Ledger
from tests.bench.bench_charges import running_ledger
from tests.bench.bench_log import ledger

KEYS = int(os.environ.get("GROWTH_KEYS", "50000"))
CHARGES = int(os.environ.get("GROWTH_CHARGES", "150000"))
TAIL = 100_000
"""So many charges are in the log and not in the saved state when a ledger is killed here."""
KEYS_PER_ORGANIZATION = 100
CALLERS = 1_000
STEPS = 5


def memory_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def disk_bytes(database: str) -> dict[str, int]:
    """Bytes by table, indexes included."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT relname, pg_total_relation_size(c.oid) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'ledger' AND relkind = 'r' ORDER BY 2 DESC"
        )
        return {str(name): int(size) for name, size in rows}


class Grower:
    """Makes organizations with keys, and charges them."""

    def __init__(self, ledger_: Ledger, *, charged: int = 0) -> None:
        self.ledger = ledger_
        root, *self.keys = ledger_.books.keys
        self._asking = Asking(actor=root)
        self._charged = charged

    async def start(self) -> None:
        define = c.DefineKeyspace(name="growth")
        self._keyspace = (await self.ledger.execute(define, self._asking)).result

    async def add_keys(self, count: int) -> float:
        """Keys per second."""
        started = time.perf_counter()
        for _ in range(0, count, CALLERS):
            organizations = await asyncio.gather(
                *(self._organization() for _ in range(CALLERS // KEYS_PER_ORGANIZATION))
            )
            self.keys += await asyncio.gather(
                *(self._key(one) for one in organizations for _ in range(KEYS_PER_ORGANIZATION))
            )
        return count / (time.perf_counter() - started)

    async def _organization(self) -> str:
        opened = await self.ledger.execute(c.OpenOrganization(name="grown"), self._asking)
        organization_id: str = opened.result.id
        deposit = c.DepositCredits(organization_id=organization_id, amount_micros=10**12, reference="first")
        await self.ledger.execute(deposit, self._asking)
        return organization_id

    async def _key(self, organization_id: str) -> str:
        create = c.CreateKey(
            keyspace_id=self._keyspace.id,
            organization_id=organization_id,
            name="grown",
            fingerprint=fingerprint(self._keyspace.shape.generate()),
            hint="kl_live_...xxxx",
        )
        key_id: str = (await self.ledger.execute(create, self._asking)).result.id
        return key_id

    async def charge(self, count: int) -> float:
        """Charges per second, spread over all keys."""
        first, self._charged = self._charged, self._charged + count
        numbers = iter(range(first, first + count))

        async def call() -> None:
            for number in numbers:
                key_id = self.keys[number * 7_919 % len(self.keys)]
                charge = c.ChargeUsage(key_id=key_id, request_id=f"growth-{number}", base_micros=1)
                await self.ledger.execute(charge, SYSTEM_ASKING)

        started = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return count / (time.perf_counter() - started)


@pytest.mark.bench
@pytest.mark.timeout(3_600)
async def test_growth() -> None:
    with ledger() as database:
        async with running_ledger(database) as running:
            grower = Grower(running)
            await grower.start()
            before = memory_mib()
            disk: dict[str, int] = {}
            print(
                f"{'keys':>10} {'events':>10} {'keys/s':>8} {'charges/s':>10} {'MiB':>7} {'disk B/event':>13}"
            )
            for _ in range(STEPS):
                keys_rate = await grower.add_keys(KEYS // STEPS)
                charge_rate = await grower.charge(CHARGES // STEPS)
                disk = disk_bytes(database)
                per_event = sum(disk.values()) / running.books.head
                print(
                    f"{len(grower.keys):>10,} {running.books.head:>10,} {keys_rate:>8,.0f}"
                    f" {charge_rate:>10,.0f} {memory_mib():>7,.0f} {per_event:>13,.0f}"
                )
            print(f"  memory of the owner: {(memory_mib() - before) * 2**20 / KEYS:,.0f} bytes a key")
            print(f"  disk: {', '.join(f'{name} {size / 2**20:,.0f} MiB' for name, size in disk.items())}")
        for what in ("restart", "die", "restart"):
            # A process of its own each: what the others held does not count.
            subprocess.run([sys.executable, "-m", "tests.bench.bench_growth", what, database], check=True)


async def restart(database: str) -> None:
    """How long it takes until a new process decides, and how much it holds then."""
    before, started, worked = memory_mib(), time.perf_counter(), time.process_time()
    # After a kill, what is left of the lease of who was killed is waited for.
    async with running_ledger(database, lease_ms=1_000) as again:
        seconds, cpu = time.perf_counter() - started, time.process_time() - worked
        held = memory_mib() - before
        keys = len(again.books.keys)
        print(
            f"  ready again after {seconds:.1f} s, {cpu:.1f} s of its CPU: {keys:,} keys,"
            f" {again.books.head:,} events, {held:,.0f} MiB, {held * 2**20 / keys:,.0f} bytes a key"
        )


async def die(database: str) -> None:
    """Charge, and end as if killed: with the next start begins a replay."""
    upkeep._SAVE_SECONDS = 3_600.0  # the replay is to be as long as said, however slow this is
    async with running_ledger(database) as running:
        rate = await Grower(running, charged=CHARGES).charge(TAIL)
        print(f"  killed after {TAIL:,} more charges, {rate:,.0f} a second", flush=True)
        os._exit(0)


if __name__ == "__main__":
    asyncio.run({"restart": restart, "die": die}[sys.argv[1]](sys.argv[2]))
