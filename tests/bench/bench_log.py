"""What the log takes, as ratios in one run.

The floor is COPY of the same rows into the same columns, one group per commit.
"""

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager

import msgspec
import psycopg
import pytest

from domain.ports import Group, NewClaim, NewEvent
from infra.embedded import EmbeddedServers
from infra.postgres.log import PostgresLog
from infra.postgres.migrate import migrate
from tests.servers import fresh_database, server_folder

GROUPS, GROUP_SIZE, SUBJECTS, RUNS = 100, 500, 10_000, 3
CLAIMS_BEFORE = int(os.environ.get("BENCH_CLAIMS", "0"))
"""How many claims the table holds before: a random index costs more when it is large."""


class Charge(msgspec.Struct, frozen=True):
    """As large as a charge is."""

    organization_id: str
    key_id: str
    request_id: str
    amount_micros: int
    rest: str = "x" * 180


_encode = msgspec.msgpack.Encoder().encode


def charges(head: int, count: int) -> list[NewEvent]:
    """The events that follow a head, spread over the subjects."""
    return [
        NewEvent(
            f"org_01J9ZZZZZZZZZZZZZZZZ{n % SUBJECTS:06}",
            n,
            "usage.charged",
            _encode(Charge(f"org_{n % SUBJECTS:026}", f"key_{n:026}", f"req_{n:026}", n)),
        )
        for n in range(head + 1, head + 1 + count)
    ]


async def append(log: PostgresLog, *, claims: bool) -> None:
    end = await log.end()
    for _ in range(GROUPS):
        events = charges(end.position, GROUP_SIZE)
        taken = [NewClaim(os.urandom(16), n) for n in range(len(events))] if claims else []
        group = Group(os.urandom(16), end, events, taken)
        await log.append(group)
        end = group.end


async def copy(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE IF NOT EXISTS floor (LIKE ledger.events_p0 INCLUDING ALL)")
    [head] = connection.execute("SELECT coalesce(max(notification_id), 0) FROM floor").fetchone() or [0]
    statement = (
        "COPY floor (notification_id, originator_id, originator_version, topic, state, mark)"
        " FROM STDIN BINARY"
    )
    for _ in range(GROUPS):
        events = charges(head, GROUP_SIZE)
        with connection.cursor() as cursor, cursor.copy(statement) as rows:
            rows.set_types(["int8", "text", "int8", "text", "bytea", "int8"])
            for position, event in enumerate(events, head + 1):
                rows.write_row((position, *event, head))
        head += len(events)


async def read(log: PostgresLog) -> None:
    position = 0
    while batch := await log.read(position, 2_000):
        position = batch[-1].position
        if position >= GROUPS * GROUP_SIZE:
            return


async def look_up_claims(log: PostgresLog) -> None:
    for _ in range(GROUPS):
        await log.claims([os.urandom(16) for _ in range(GROUP_SIZE)])


async def append_one_by_one(log: PostgresLog) -> None:
    end = await log.end()
    for _ in range(GROUPS):
        group = Group(os.urandom(16), end, charges(end.position, 1))
        await log.append(group)
        end = group.end


async def rate(work: Callable[[], Awaitable[None]], items: int) -> float:
    started = time.perf_counter()
    await work()
    return items / (time.perf_counter() - started)


@contextmanager
def ledger() -> Generator[str]:
    with (
        server_folder() as folder,
        EmbeddedServers(folder / "data", nats=False) as servers,
        fresh_database(servers.postgres) as database,
    ):
        migrate(database)
        yield database


@pytest.mark.bench
async def test_the_log_beside_its_floor() -> None:
    with ledger() as database, psycopg.connect(database, autocommit=True) as plain:
        if CLAIMS_BEFORE:
            plain.execute(
                "INSERT INTO ledger.claims_p0 SELECT gen_random_uuid(), n FROM generate_series(1, %s) n",
                (CLAIMS_BEFORE,),
            )
            plain.execute("CHECKPOINT")
        log = PostgresLog(database, wakeups=False)
        assert await log.acquire()
        everything = GROUPS * GROUP_SIZE
        works: dict[str, tuple[Callable[[], Awaitable[None]], int]] = {
            "COPY, the floor": (lambda: copy(plain), everything),
            "append, no claims": (lambda: append(log, claims=False), everything),
            "append, a claim each": (lambda: append(log, claims=True), everything),
            "append, groups of one": (lambda: append_one_by_one(log), GROUPS),
            "claims looked up": (lambda: look_up_claims(log), everything),
            "read, 2,000 a batch": (lambda: read(log), everything),
        }
        rates: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(RUNS):
            for name, (work, items) in works.items():
                rates[name].append(await rate(work, items))
        await log.close()
    report(rates)
    assert statistics.median(rates["append, a claim each"]) > 0.4 * statistics.median(
        rates["COPY, the floor"]
    )


def report(rates: dict[str, list[float]]) -> None:
    floor = statistics.median(rates["COPY, the floor"])
    print(f"groups of {GROUP_SIZE}, medians of {RUNS} runs, {CLAIMS_BEFORE:,} claims before")
    for name, measured in rates.items():
        median = statistics.median(measured)
        print(f"  {name:<24} {median:>10,.0f}/s   {median / floor:5.2f} of the floor")
