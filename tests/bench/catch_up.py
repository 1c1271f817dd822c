"""How fast the projections of two checkouts follow the same log, in turns: what did a change cost, or gain?

    python -m tests.bench.catch_up --old ../keyledger-before --new . [--keys 10000] [--pairs 9]

One PostgreSQL, and one log of charges, which the old checkout writes. In each turn one checkout projects a
copy of it from the beginning, in a process of its own; which of the two goes first changes from pair to
pair. Each checkout has its own `.venv`. Only on a machine at rest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from statistics import median, quantiles
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from infra.embedded import EmbeddedServers
from tests.servers import server_folder

CHARGES: Final = 300_000
_COMMON: Final = """
import asyncio, gc, sys, time
from tests.bench.bench_projections import charges, created
from tests.contract.projected_worlds import projecting, reached, written_log
from tests.histories import History
database, keys, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
"""
_FILL: Final = (
    _COMMON
    + """
async def fill():
    async with written_log(database) as log:
        await log.write([*History(1).untold(), *created(keys)])
        for group in charges(log.head, count, keys=keys):
            await log.write(group)
        print(log.head)
asyncio.run(fill())
"""
)
_PROJECT: Final = (
    _COMMON
    + """
from infra.postgres.migrate import migrate
migrate(database)
gc.freeze()
gc.set_threshold(200_000, 20, 20)
async def project():
    started = time.perf_counter()
    with projecting(database) as projector:
        await reached(projector, count)
    print(time.perf_counter() - started)
asyncio.run(project())
"""
)


class Turns:
    """A PostgreSQL with a log, and the checkouts that project copies of it."""

    def __init__(self, servers: EmbeddedServers, keys: int) -> None:
        self._dsn = servers.postgres.dsn
        self._keys = keys

    def fill(self, checkout: Path) -> int:
        """Write the log; its head."""
        self._execute("CREATE DATABASE template_log")
        return int(self._run(checkout, _FILL, "template_log", CHARGES))

    def project(self, checkout: Path, head: int) -> float:
        """Events per second, from the first to the last."""
        self._execute("CREATE DATABASE copy TEMPLATE template_log STRATEGY file_copy", "CHECKPOINT")
        try:
            return head / float(self._run(checkout, _PROJECT, "copy", head))
        finally:
            self._execute("DROP DATABASE copy WITH (FORCE)")

    def _run(self, checkout: Path, program: str, database: str, count: int) -> str:
        dsn = make_conninfo(self._dsn, dbname=database)
        done = subprocess.run(
            [checkout / ".venv/bin/python", "-W", "ignore", "-c", program, dsn, str(self._keys), str(count)],
            cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)},
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split()[-1]

    def _execute(self, *statements: str) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())


def main(old: Path, new: Path, keys: int, pairs: int) -> None:
    """Print each pair, and what the new checkout does of the old one's rate."""
    ratios: list[float] = []
    with server_folder() as folder, EmbeddedServers(folder / "data", nats=False) as servers:
        turns = Turns(servers, keys)
        head = turns.fill(old)
        for pair in range(pairs):
            order = (old, new) if pair % 2 == 0 else (new, old)
            rates = {checkout: turns.project(checkout, head) for checkout in order}
            ratios.append(rates[new] / rates[old])
            print(f"{rates[old]:>10,.0f}/s {rates[new]:>10,.0f}/s {ratios[-1]:.3f}", flush=True)
    lower, _, upper = quantiles(ratios, n=4)
    print(
        f"{keys:,} keys, {CHARGES:,} charges, {pairs} pairs: {median(ratios):.3f} of the old rate"
        f" (quartiles {lower:.3f} to {upper:.3f})"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, required=True)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=9)
    given = parser.parse_args()
    main(given.old.absolute(), given.new.absolute(), given.keys, given.pairs)
