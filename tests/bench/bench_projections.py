"""How fast the projections follow the log: catch-up beside the append's rate, and from commit to visible."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from domain import events as e
from domain.ids import placed_id
from infra.embedded import EmbeddedServers
from infra.postgres.projected import Projected
from infra.postgres.projection_queries import PostgresQueries
from infra.postgres.sessions import Sessions
from projections.lookup import list_keys
from projections.pages import Page, encode_cursor, sort_of
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


def charges(history: History, count: int, *, keys: int) -> Iterator[list[e.Event]]:
    """Groups of 1,000 charges, spread evenly over keys and models."""
    chance = random.Random(7)
    key_ids = [(f"key_{n:026d}", f"org_{n % max(1, keys // 10):026d}") for n in range(keys)]
    position, at = history.head, NOON
    for start in range(0, count, 1_000):
        group: list[e.Event] = []
        for number in range(start, start + 1_000):
            position += 1
            at += 1_000_000 // PER_SECOND
            key_id, organization_id = chance.choice(key_ids)
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
    history = History(1)
    with empty_database() as database:
        async with written_log(database) as log:
            await log.write(history.untold())
            appended = 0.0
            for group in charges(history, CHARGES, keys=keys):
                started = time.perf_counter()
                await log.write(group)
                appended += time.perf_counter() - started
            started, processor = time.perf_counter(), time.process_time()
            with projecting(database, batch=None) as projector:
                await reached(projector, log.head)
                seconds = time.perf_counter() - started
                processor = time.process_time() - processor
                backend = processor_seconds(database, "%projector%")
        size = disk_bytes(database)
    print(
        f"\n{keys:,} keys, {MODELS} models: {CHARGES / seconds:,.0f} charges/s caught up"
        f" ({appended / seconds:.2f} of the append's rate);"
        f" per charge {processor / CHARGES * 1e6:.1f} us in Python, {backend / CHARGES * 1e6:.1f} us in"
        f" PostgreSQL, {size / CHARGES:.0f} bytes on disk"
    )


async def test_from_commit_to_visible() -> None:
    history = History(2)
    history.grow(200)
    delays = []
    with empty_database() as database:
        async with written_log(database) as log, Projected(database) as projected:
            await log.write(history.untold())
            with projecting(database):
                assert await projected.wait_for(log.head, 10)
                for group in charges(history, 20_000, keys=100):
                    for start in range(0, 1_000, 20):
                        await log.write(group[start : start + 20])
                        committed = time.perf_counter()
                        assert await projected.wait_for(log.head, 10)
                        delays.append(time.perf_counter() - committed)
    delays.sort()
    half, most = (delays[int(len(delays) * part)] * 1_000 for part in (0.5, 0.99))
    print(f"\ncommit to visible: p50 {half:.1f} ms, p99 {most:.1f} ms, {len(delays)} commits of 20 events")


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
        sort = sort_of("created_at", {"created_at": ("created_at", int)}, "created_at")
        print(f"\n{KEYS:,} keys, a page of 50:")
        for depth in (0, KEYS // 2, KEYS - 200):
            cursor = encode_cursor(sort, depth, "")
            milliseconds = [await page_milliseconds(queries, cursor) for _ in range(20)]
            print(f"  behind {depth:>8,} keys: {sorted(milliseconds)[10]:.2f} ms")
        await sessions.close()


async def page_milliseconds(queries: PostgresQueries, cursor: str) -> float:
    started = time.perf_counter()
    page: Page = await list_keys(queries, now=0, sort="created_at", cursor=cursor, include_revoked=True)
    assert len(page.ids) == 50
    return (time.perf_counter() - started) * 1_000


def fill_with_keys(database: str) -> None:
    statement = """
        INSERT INTO projections.keys SELECT 'key_' || n, 'org_' || (n %% 1000), 'ks_1',
            CASE WHEN n %% 3 = 0 THEN 1 ELSE 0 END, false, 'solo', NULL, NULL, 'owner' || (n %% 5000),
            md5(n::text), md5(n::text), md5(n::text), '{}', NULL, n, %s, NULL, 0, 1, n, ''
        FROM generate_series(1, %s) AS n
    """
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(statement, (2**63 - 1, KEYS))
        connection.execute("ANALYZE projections.keys")


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
