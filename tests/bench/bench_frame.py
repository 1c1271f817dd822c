"""The methods of the eventsourcing library's recorder that we replaced, beside the library's own."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from typing import Any, get_args

import psycopg
import pytest
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresApplicationRecorder
from psycopg import Connection

from domain.ports import NewEvent
from infra.embedded import EmbeddedServers
from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import ADVISORY_CLASS, SERVICE_ROLE, connect
from infra.postgres.datastore import AppendingDatastore
from infra.postgres.insertion import pack_group
from infra.postgres.mapper import EventMapper
from infra.postgres.migrate import migrate
from infra.postgres.recorder import LedgerRecorder
from keyledger_language.events import LedgerEvent
from keyledger_language.history import HistoryPoint
from keyledger_reading.datastore import PooledDatastore, SessionDatastore
from tests.bench.bench_projections import charges
from tests.servers import fresh_database, server_folder

pytestmark = pytest.mark.bench
EVENTS, STREAM_EVENTS, ROUNDS = 200_000, 1_000, 5
STREAM = "org_of_the_long_stream"


class Stock(PostgresApplicationRecorder):
    """The library's own, on the same table."""

    def create_table(self) -> None:
        """Ours is there."""


@contextmanager
def log_of_charges() -> Generator[tuple[Connection[Any], str]]:
    """A session that holds the partition, and the database of a log with many charges."""
    with (
        server_folder() as folder,
        EmbeddedServers(folder / "data", nats=False) as servers,
        fresh_database(servers.postgres) as database,
    ):
        migrate(database)
        with closing(connect(database, "bench writer")) as writer:
            register_packed_arrays(writer)
            writer.execute("SELECT pg_advisory_lock(%s, 0)", (ADVISORY_CLASS,))
            yield writer, database


def new_events(count: int) -> list[NewEvent]:
    mapper = EventMapper[Any](get_args(LedgerEvent))
    found = [
        mapper.new_event(str(event.organization_id), number, event)
        for number, event in enumerate((one for group in charges(0, count, keys=1_000) for one in group), 1)
    ]
    long = [one._replace(stream=STREAM) for one in found[:STREAM_EVENTS]]
    return [*long, *found[STREAM_EVENTS:]]


def fill(recorder: LedgerRecorder) -> None:
    events, behind = new_events(EVENTS), HistoryPoint(0, 0, 1)
    for start in range(0, EVENTS, 1_000):
        group_id = os.urandom(16)
        part = events[start : start + 1_000]
        recorder.insert_events(part, group_id=group_id, behind=behind)
        behind = recorder.end()


def of_rounds(work: Callable[[], int]) -> tuple[float, float]:
    """Items per second, and processor time of this process for each in microseconds; medians."""
    rates, costs = [], []
    for _ in range(ROUNDS):
        started, processor = time.perf_counter(), time.process_time()
        items = work()
        rates.append(items / (time.perf_counter() - started))
        costs.append((time.process_time() - processor) / items * 1e6)
    return statistics.median(rates), statistics.median(costs)


def show(what: str, stock: tuple[float, float] | None, ours: tuple[float, float]) -> None:
    theirs = "" if stock is None else f"library {stock[0]:>9,.0f}/s {stock[1]:7.2f} us, "
    ratio = "" if stock is None else f", {ours[0] / stock[0]:.1f} times"
    print(f"  {what:<44} {theirs}ours {ours[0]:>9,.0f}/s {ours[1]:7.2f} us{ratio}")


def all_of(
    recorder: PostgresApplicationRecorder, limit: int, take: Callable[[Any], object]
) -> Callable[[], int]:
    """Read the whole log in parts."""

    def work() -> int:
        after = 0
        while after < EVENTS:
            found = recorder.select_notifications(after, limit, inclusive_of_start=False)
            take(found)
            after = found[-1].id
        return EVENTS

    return work


def all_data(recorder: LedgerRecorder, limit: int, mapper: EventMapper[Any]) -> Callable[[], int]:
    """The same as the projector reads it."""

    def work() -> int:
        after = 0
        while after < EVENTS:
            found = recorder.select_data(after, limit)
            mapper.decode_public(found.data)
            after = found.last
        return EVENTS

    return work


def test_reading_and_appending_beside_the_library() -> None:
    gc.freeze()
    with log_of_charges() as (writer, database), AppendingDatastore(database) as datastore:
        ours = LedgerRecorder(SessionDatastore(lambda: writer))
        fill(ours)
        stock = Stock(datastore, events_table_name="events_p0")
        mapper = EventMapper[Any](get_args(LedgerEvent))
        print(f"\n{EVENTS:,} charges in the log:")
        for limit in (500, 16_000):
            show(
                f"select_notifications, {limit:,} at once, rows",
                of_rounds(all_of(stock, limit, list)),
                of_rounds(all_of(ours, limit, list)),
            )
        show(
            "select_notifications, 16,000, decoded",
            of_rounds(all_of(stock, 16_000, lambda found: [mapper.to_domain_event(one) for one in found])),
            of_rounds(all_of(ours, 16_000, lambda found: [mapper.decode(one) for one in found])),
        )
        show("select_data, 16,000, decoded", None, of_rounds(all_data(ours, 16_000, mapper)))
        show(
            f"select_events, a stream of {STREAM_EVENTS:,}",
            of_rounds(lambda: len(stock.select_events(STREAM))),
            of_rounds(lambda: len(ours.select_events(STREAM))),
        )
        for size in (1, 8, 100):
            show(
                f"insert_events, {size} at once",
                of_rounds(stock_inserts(database, size)),
                of_rounds(our_inserts(ours, size)),
            )


def stock_inserts(database: str, size: int) -> Callable[[], int]:
    """Into a table of the library's own."""
    with psycopg.connect(database, autocommit=True) as owner:
        owner.execute("DROP SCHEMA IF EXISTS stock CASCADE; CREATE SCHEMA stock")
        owner.execute("GRANT ALL ON SCHEMA stock TO keyledger_service")
    datastore = PooledDatastore(database, schema="stock", role=SERVICE_ROLE)
    datastore.register_type_adapters = super(PooledDatastore, datastore).register_type_adapters  # type: ignore[method-assign]
    recorder = PostgresApplicationRecorder(datastore, events_table_name="events")
    recorder.create_table()
    version = 0

    def work() -> int:
        nonlocal version
        for _ in range(200):
            events = [StoredEvent("org_1", version + n, "usage.charged", b"x" * 200) for n in range(size)]
            version += size
            recorder.insert_events(events)
        return 200 * size

    return work


def our_inserts(recorder: LedgerRecorder, size: int) -> Callable[[], int]:
    def work() -> int:
        behind = recorder.end()
        for _ in range(200):
            group_id = os.urandom(16)
            events = [
                NewEvent("org_1", behind.position + n, "usage.charged", b"x" * 200) for n in range(size)
            ]
            group = pack_group(events, group_id=group_id, behind=behind, decided_at=1_800_000_000_000_000)
            head = recorder.begin_insert(group).complete()
            behind = behind._replace(position=head, mark=int.from_bytes(group_id[:8], "big", signed=True))
        return 200 * size

    return work
