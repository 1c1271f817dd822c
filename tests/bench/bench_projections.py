"""How fast the projections follow the log: catch-up beside the append's rate, and from commit to visible."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from domain.ids import placed_id
from infra.embedded import EmbeddedServers
from infra.postgres.projected import Projected
from infra.postgres.projection_queries import PostgresQueries
from infra.postgres.sessions import Sessions
from keyledger_edge import Scopes
from keyledger_language import events as e
from projections.every import every_projection
from projections.lookup import SORTS, list_keys
from projections.pages import Page, encode_cursor, sort_of
from tests.bench.targets import at_least, at_most
from tests.contract.projected_worlds import projecting, reached, written_log
from tests.histories import NOON, ROOT, History
from tests.servers import fresh_database, server_folder

pytestmark = pytest.mark.bench
CHARGES = 300_000
KEYS = 300_000
MODELS = 4
PER_SECOND = 5_000


@contextmanager
def empty_database() -> Generator[str]:
    with (
        server_folder() as folder,
        EmbeddedServers(folder / "data", nats=False) as servers,
        fresh_database(servers.postgres) as database,
    ):
        yield database


def ids(number: int, keys: int) -> tuple[str, str]:
    """The number-th of so many keys, and its organization."""
    return f"key_{number:026d}", f"org_{number % max(1, keys // 10):026d}"


def created(keys: int) -> list[e.Event]:
    """Keys as the charges name them."""
    return [
        e.KeyCreated(
            at=NOON,
            actor=ROOT,
            organization_id=organization_id,
            key_id=key_id,
            keyspace_id="ks_00000000000000000000000000",
            kind="solo",
            environment="live",
            plan_id=None,
            scopes=Scopes(),
            quotas=(),
            rate_limits=(),
            expires_at=None,
            fingerprint=sha256(key_id.encode()).digest(),
            hint=f"kl_live_...{number % 10_000:04d}",
            private=e.Private(name=f"Key {number}", owner_id=f"owner-{number % 1_000}"),
        )
        for number in range(keys)
        for key_id, organization_id in [ids(number, keys)]
    ]


def charges(position: int, count: int, *, keys: int) -> Iterator[list[e.Event]]:
    """Groups of 1,000 charges behind a position, spread evenly over keys and models."""
    chance = random.Random(7)
    every = [ids(number, keys) for number in range(keys)]
    at = NOON
    for start in range(0, count, 1_000):
        group: list[e.Event] = []
        for number in range(start, start + 1_000):
            position += 1
            at += 1_000_000 // PER_SECOND
            key_id, organization_id = chance.choice(every)
            group.append(
                e.UsageCharged(
                    at=at,
                    actor=ROOT,
                    organization_id=organization_id,
                    key_id=key_id,
                    request_id=f"req-{number:012d}",
                    base_micros=1_000,
                    price_multiplier="1.25",
                    amount_micros=1_250,
                    balance_micros=10**12 - number,
                    reserved_micros=0,
                    charge_id=placed_id("chg", at, partition=0, position=position),
                    model=f"model-{chance.randrange(MODELS)}",
                    provider="acme",
                )
            )
        yield group


@pytest.mark.parametrize("keys", [1, 10_000])
async def test_catch_up_of_charges(keys: int) -> None:
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)  # as `run_projector` does
    with empty_database() as database:
        async with written_log(database) as log:
            await log.write([*History(1).untold(), *created(keys)])
            with projecting(database) as projector:
                await reached(projector, log.head)
            first, size = log.head, disk_bytes(database)
            appended = 0.0
            for group in charges(log.head, CHARGES, keys=keys):
                started = time.perf_counter()
                await log.write(group)
                appended += time.perf_counter() - started
            started, processor = time.perf_counter(), time.process_time()
            with projecting(database) as projector:
                await reached(projector, log.head)
                seconds = time.perf_counter() - started
                processor = time.process_time() - processor
                backend = processor_seconds(database, "%projector%")
            size = disk_bytes(database) - size
            floor, floor_backend = copy_seconds(database, first)
    print(
        f"\n{keys:,} keys, {MODELS} models: {CHARGES / seconds:,.0f} charges/s caught up"
        f" ({appended / seconds:.2f} of the append's rate);"
        f" per charge {processor / CHARGES * 1e6:.1f} us in Python, {backend / CHARGES * 1e6:.1f} us in"
        f" PostgreSQL, {size / CHARGES:.0f} bytes on disk;"
        f" COPY of the charges out and of the rows in: {floor / CHARGES * 1e6:.1f} us,"
        f" {floor_backend / CHARGES * 1e6:.1f} us of them in PostgreSQL; {seconds / floor:.1f} times that"
    )
    assert at_least(f"catch-up, {keys:,} keys", CHARGES / seconds, 100_000, "/s")


async def test_from_commit_to_visible() -> None:
    keys = 100
    delays = []
    with empty_database() as database:
        async with written_log(database) as log, Projected(database) as projected:
            await log.write([*History(2).untold(), *created(keys)])
            with projecting(database):
                assert await projected.wait_for(log.head, 10)
                for group in charges(log.head, 20_000, keys=keys):
                    for start in range(0, 1_000, 20):
                        await log.write(group[start : start + 20])
                        committed = time.perf_counter()
                        assert await projected.wait_for(log.head, 10)
                        delays.append(time.perf_counter() - committed)
    delays.sort()
    half, most = (delays[int(len(delays) * part)] * 1_000 for part in (0.5, 0.99))
    print(f"\ncommit to visible: p50 {half:.1f} ms, p99 {most:.1f} ms, {len(delays)} commits of 20 events")
    assert at_most("commit to visible, p99", most, 10, " ms")


async def test_a_page_costs_the_same_at_any_depth() -> None:
    history = History(3)
    with empty_database() as database:
        async with written_log(database) as log:
            await log.write(history.grow(5))
            with projecting(database) as projector:
                await reached(projector, log.head)
        fill_with_keys(database)
        sessions = Sessions(database, "bench", most=1)
        queries = PostgresQueries(sessions)
        print(f"\n{KEYS:,} keys, a page of 50:")
        for name in ("created_at", "last_used_at"):
            sort = sort_of(name, SORTS, name)
            for organization_id, keys in ((None, KEYS), ("org_7", KEYS // 1_000)):
                for depth in (0, KEYS // 2, KEYS - 200):
                    cursor = encode_cursor(sort, depth, "")
                    milliseconds = [
                        await page_milliseconds(queries, name, cursor, organization_id) for _ in range(20)
                    ]
                    print(f"  by {name}, of {keys:,}, behind {depth:>8,}: {sorted(milliseconds)[10]:.2f} ms")
        await sessions.close()


async def page_milliseconds(
    queries: PostgresQueries, sort: str, cursor: str, organization_id: str | None
) -> float:
    started = time.perf_counter()
    page: Page = await list_keys(
        queries, now=0, sort=sort, cursor=cursor, organization_id=organization_id, include_revoked=True
    )
    assert len(page.ids) == 50 or organization_id is not None
    return (time.perf_counter() - started) * 1_000


def fill_with_keys(database: str) -> None:
    statement = """
        INSERT INTO projections.keys SELECT 'key_' || n, 'org_' || (n %% 1000), 'ks_1',
            CASE WHEN n %% 3 = 0 THEN 1 ELSE 0 END, false, 'solo', NULL, NULL, 'owner' || (n %% 5000),
            md5(n::text), md5(n::text), md5(n::text), '{}', NULL, n, %s, NULL, 1, n, ''
        FROM generate_series(1, %s) AS n
    """
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statement, (2**63 - 1, KEYS))
        # Used in the order in which they were made.
        connection.execute(
            "INSERT INTO projections.key_uses SELECT id, organization_id, visibility, created_at"
            " FROM projections.keys WHERE id NOT IN (SELECT id FROM projections.key_uses)"
        )
        connection.execute("ANALYZE projections.keys, projections.key_uses")


def copy_seconds(database: str, after: int) -> tuple[float, float]:
    """The floor: time to COPY the events out and as many rows as there are now in; PostgreSQL's own part."""
    select = f"SELECT state FROM ledger.events_p0 WHERE notification_id > {after}"
    named = make_conninfo(database, application_name="floor")
    with psycopg.connect(named, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("CREATE SCHEMA floor")
        tables = [table.name for projection in every_projection() for table in projection.tables]
        for table in tables:
            connection.execute(
                f"CREATE TABLE floor.{table} (LIKE projections.{table} INCLUDING ALL)".encode()
            )
        full = {table: copied_out(connection, f"SELECT * FROM projections.{table}") for table in tables}
        before, started = processor_seconds(database, "floor"), time.perf_counter()
        copied_out(connection, select)
        for table, rows in full.items():
            with connection.cursor().copy(f"COPY floor.{table} FROM STDIN (FORMAT binary)".encode()) as copy:
                for part in rows:
                    copy.write(part)
        seconds = time.perf_counter() - started
        return seconds, processor_seconds(database, "floor") - before


def copied_out(connection: psycopg.Connection[Any], select: str) -> list[Any]:
    with connection.cursor().copy(f"COPY ({select}) TO STDOUT (FORMAT binary)".encode()) as copy:
        return [bytes(part) for part in copy]


def processor_seconds(database: str, application_name: str) -> float:
    """The processor time that PostgreSQL's processes behind these connections have used."""
    select = """
        SELECT pid FROM pg_stat_activity
        WHERE application_name LIKE %s AND datname = current_database()
    """
    seconds = 0.0
    with psycopg.connect(database) as connection:
        for (pid,) in connection.execute(select, (application_name,)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            seconds += (int(fields[11]) + int(fields[12])) / 100
    return seconds


def disk_bytes(database: str) -> int:
    select = """
        SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'projections'::regnamespace
    """
    with psycopg.connect(database) as connection:
        row = connection.execute(select).fetchone()
    assert row is not None
    return int(row[0])
