"""How fast the documented projection of docs/projections.md follows the log, beside our own projector."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.bench.bench_projections import charges, created, empty_database
from tests.contract.projected_worlds import projecting, reached, written_log
from tests.histories import History
from tests.processes import start_with_us

pytestmark = pytest.mark.bench
CHARGES = 50_000
KEYS = 100
PAGE = Path(__file__).parents[2] / "docs" / "projections.md"
_TABLE = "CREATE TABLE {} (name text PRIMARY KEY, position bigint)"
_FLOOR = 5_000


@contextmanager
def program(folder: Path, environment: dict[str, str]) -> Generator[subprocess.Popen[str]]:
    """The program as written, in a process of its own."""
    [text] = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    (folder / "spend.py").write_text(text, "utf-8")
    process = start_with_us(
        [sys.executable, "-P", "spend.py"],
        stdout=subprocess.DEVNULL, stderr=None, stdin=subprocess.DEVNULL,
        env=dict(os.environ) | environment, cwd=folder,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def in_sqlite(folder: Path, _: str) -> tuple[dict[str, str], Callable[[], int], Callable[[], float]]:
    file = folder / "spend.db"

    def position() -> int:
        with closing(sqlite3.connect(file)) as connection:
            try:
                query = "SELECT notification_id FROM tracking WHERE application_name = 'keyledger'"
                row = connection.execute(query).fetchone()
            except sqlite3.OperationalError:
                return 0
        return row[0] if row else 0

    def floor() -> float:
        with closing(sqlite3.connect(folder / "floor.db", isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            return _bare(connection.execute, "?")

    return (
        {"SPEND_PERSISTENCE_MODULE": "eventsourcing.sqlite", "SPEND_SQLITE_DBNAME": str(file)},
        position,
        floor,
    )


def in_postgres(_: Path, database: str) -> tuple[dict[str, str], Callable[[], int], Callable[[], float]]:
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("CREATE DATABASE reports")
    place: dict[str, Any] = dict(conninfo_to_dict(database)) | {"dbname": "reports"}

    def position() -> int:
        with psycopg.connect("", **place) as connection:
            try:
                query = "SELECT notification_id FROM spend_tracking WHERE application_name = 'keyledger'"
                row = connection.execute(query).fetchone()
            except psycopg.errors.UndefinedTable:
                return 0
        return row[0] if row else 0

    def floor() -> float:
        with psycopg.connect("", **place, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            return _bare(lambda statement, values: connection.execute(statement.encode(), values), "%s")

    settings = {
        "SPEND_PERSISTENCE_MODULE": "eventsourcing.postgres",
        "SPEND_POSTGRES_DBNAME": "reports",
        "SPEND_POSTGRES_HOST": str(place["host"]),
        "SPEND_POSTGRES_PORT": "5432",
        "SPEND_POSTGRES_USER": str(place["user"]),
        "SPEND_POSTGRES_PASSWORD": "",
    }
    return settings, position, floor


def _bare(execute: Callable[[str, tuple[Any, ...]], Any], parameter: str) -> float:
    """Transactions per second of the same two statements, with nothing read and nothing decoded."""
    for table in ("floor_tracking", "floor_spend"):
        execute(_TABLE.format(table), ())
    upsert = (
        f"INSERT INTO {{}} AS t VALUES ({parameter}, {parameter}) ON CONFLICT (name)"
        " DO UPDATE SET position = t.position + excluded.position"
    )
    started = time.perf_counter()
    for number in range(_FLOOR):
        execute("BEGIN", ())
        execute(upsert.format("floor_tracking"), ("one", 1))
        execute(upsert.format("floor_spend"), (f"model-{number % 4}", 1_000))
        execute("COMMIT", ())
    return _FLOOR / (time.perf_counter() - started)


@pytest.mark.parametrize("kept", [in_sqlite, in_postgres])
async def test_the_documented_projection_beside_ours(
    kept: Callable[[Path, str], tuple[dict[str, str], Callable[[], int], Callable[[], float]]],
    tmp_path: Path,
) -> None:
    with empty_database() as database:
        async with written_log(database) as log:
            await log.write([*History(1).untold(), *created(KEYS)])
            for group in charges(log.head, CHARGES, keys=KEYS):
                await log.write(group)
            head = log.head
        started = time.perf_counter()
        with projecting(database) as projector:
            await reached(projector, head)
        ours = head / (time.perf_counter() - started)

        settings, position, floor = kept(tmp_path, database)
        with program(tmp_path, settings | {"KEYLEDGER_DATABASE_URL": database}) as process:
            while (first := position()) == 0:
                assert process.poll() is None
                time.sleep(0.01)
            started = time.perf_counter()
            while position() < head:
                assert process.poll() is None
                time.sleep(0.05)
            own = (head - first) / (time.perf_counter() - started)
        bare = floor()
    print(
        f"\n{kept.__name__}: {own:,.0f} charges/s, each in a transaction ({own / bare:.2f} of the bare"
        f" transactions, {bare:,.0f}/s); our own projector, in batches: {ours:,.0f}/s"
    )
