"""Reading ahead, summing and writing behind: how much at once, and never anything else."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import closing, contextmanager
from typing import Any, get_args

import psycopg
import pytest

from infra.postgres import projecting_log, projection_pipeline
from infra.postgres.mapper import EventMapper
from infra.postgres.projecting_log import HoleError, RunReader
from infra.postgres.projection_pipeline import FOLD, LEAST_FOLD, Pipeline, Progress
from infra.postgres.projection_schema import REBUILD, ProjectionTables, connect_for_projections
from keyledger_language.events import Event, LedgerEvent, UsageCharged
from keyledger_reading.errors import UnknownEventError
from projections.every import every_projection
from tests.contract.projected_worlds import Written, mapper, projecting, reached, table_rows, written_log
from tests.histories import History

READ = 50


@pytest.fixture
async def log(database: str) -> AsyncIterator[Written]:
    async with written_log(database) as log:
        await log.write(History(41).grow(1_500))
        yield log


@contextmanager
def pipeline(
    log: Written, when_written: Callable[[], object] = bool, **options: Any
) -> Generator[tuple[Pipeline, list[Progress]]]:
    """One that fills a second schema, and what it has written."""
    written: list[Progress] = []

    def on_written(progress: Progress) -> None:
        written.append(progress)
        when_written()

    with (
        closing(connect_for_projections(log.database, "test writer")) as connection,
        closing(connect_for_projections(log.database, "test reader")) as reader,
    ):
        tables = ProjectionTables(connection, REBUILD, every_projection())
        tables.create()
        run = RunReader(reader, 0, mapper())
        with Pipeline(tables, run, position=0, on_written=on_written, **options) as pipeline:
            yield pipeline, written


def rows_in(database: str, schema: str) -> dict[str, Any]:
    tables = [table.name for projection in every_projection() for table in projection.tables]
    return {table: table_rows(database, table, schema) for table in tables}


async def test_far_behind_more_is_written_at_once_the_longer_the_writer_is_busy(
    log: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for = threading.Event()
    await_writer = Pipeline._await_writer

    def tell(self: Pipeline) -> None:
        if self._writing is not None:
            waited_for.set()
        await_writer(self)

    monkeypatch.setattr(Pipeline, "_await_writer", tell)
    with pipeline(log, lambda: waited_for.wait(60), batch=READ, most=READ) as (behind, written):
        assert behind.catch_up() == log.head == behind.position
        assert behind.catch_up() == 0

    first, second, *others = [one.events for one in written]
    assert (first, second) == (LEAST_FOLD * READ, FOLD * READ)
    assert all(LEAST_FOLD * READ <= one <= FOLD * READ for one in others[:-1])
    with projecting(log.database, batch=1) as projector:
        await reached(projector, log.head)
    assert rows_in(log.database, REBUILD) == rows_in(log.database, "projections")


async def test_near_the_end_whatever_is_read_is_written(log: Written) -> None:
    with pipeline(log, batch=READ, most=10_000) as (behind, written):
        behind.catch_up()

    assert written[0].events == READ


async def test_what_is_remembered_is_bounded(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection_pipeline, "MOST_HELD", 1)
    with pipeline(log, batch=READ, most=READ) as (behind, written):
        behind.catch_up()

    assert {one.events for one in written[:-1]} == {READ}


@pytest.mark.parametrize("until", [1, READ - 1, READ, READ + 1, 10 * READ])
async def test_it_stops_at_exactly_the_position_that_is_asked_for(log: Written, until: int) -> None:
    with pipeline(log, batch=READ, most=READ) as (behind, written):
        assert behind.catch_up(until) == until
        assert behind.catch_up(until) == 0
        assert behind.position == until == sum(one.events for one in written)

        assert behind.catch_up() == log.head - until


async def test_one_that_is_further_already_does_nothing(log: Written) -> None:
    with pipeline(log, batch=READ, most=READ) as (ahead, written):
        ahead.catch_up(until=100)
        before = len(written)

        assert [ahead.catch_up(until=until) for until in (100, 99, 0)] == [0, 0, 0]
        assert (ahead.position, len(written)) == (100, before)


async def test_one_that_is_stopping_writes_what_it_has_read_and_returns(log: Written) -> None:
    with pipeline(log, batch=READ, most=READ, is_stopping=lambda: True) as (behind, _):
        assert behind.catch_up() == behind.position == READ


# -- reading --------------------------------------------------------------------------------------


@contextmanager
def run_reader(log: Written, using: EventMapper[Event] | None = None) -> Generator[RunReader]:
    with closing(connect_for_projections(log.database, "test reader")) as connection:
        yield RunReader(connection, 0, using or mapper())


def all_events(reader: RunReader, limit: int = 400) -> list[Event]:
    events: list[Event] = []
    batch = reader.read(0, limit)
    while batch.size:
        assert batch.runs[0].first == len(events) + 1
        events += [event for run in batch.runs for event in run.events]
        assert batch.last == len(events)
        batch = reader.read(batch.last, limit)
    return events


def public(events: list[Event]) -> list[tuple[type[Event], int]]:
    return [(type(event), event.at) for event in events]


async def test_events_are_read_in_order_with_the_personal_fields_that_are_looked_at(log: Written) -> None:
    expected = History(41)
    expected.grow(1_500)
    with run_reader(log) as reader:
        found = all_events(reader)

    assert public(expected.events) == public(found)
    assert all(
        event == read or type(event) in projecting_log._NOT_READ
        for event, read in zip(expected.events, found, strict=True)
    )
    assert any(event.private is not None for event in found)
    assert all(event.private is None for event in found if isinstance(event, UsageCharged))


async def test_large_events_are_read_a_few_at_a_time(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_reader(log) as reader:
        expected = public(all_events(reader))
        monkeypatch.setattr(projecting_log, "MOST_BYTES", 5_000)
        few = reader.read(0, 400)

        assert few.is_full
        assert 1 <= few.size <= 100
        assert expected == public(all_events(reader))


async def test_an_event_of_an_older_shape_is_brought_up_to_date(log: Written) -> None:
    def in_tenths(fields: dict[str, Any]) -> dict[str, Any]:
        return {**fields, "amount_micros": fields["amount_micros"] * 10}

    newer = EventMapper[Event](get_args(LedgerEvent), upcasters={("usage.charged", 1): in_tenths})
    with run_reader(log) as reader:
        before = [e.amount_micros for e in all_events(reader) if isinstance(e, UsageCharged)]
    with run_reader(log, newer) as reader:
        after = [e.amount_micros for e in all_events(reader) if isinstance(e, UsageCharged)]

    assert before
    assert after == [amount * 10 for amount in before]


async def test_an_event_that_this_program_does_not_know_is_named(log: Written) -> None:
    older = EventMapper[Event]([one for one in get_args(LedgerEvent) if one is not UsageCharged])
    with run_reader(log, older) as reader, pytest.raises(UnknownEventError, match=r"usage\.charged"):
        all_events(reader)


async def test_a_hole_in_the_log_is_an_error(log: Written) -> None:
    with psycopg.connect(log.database) as administrator:
        administrator.execute("ALTER TABLE ledger.events_p0 DISABLE TRIGGER append_only")
        administrator.execute("DELETE FROM ledger.events_p0 WHERE notification_id = 100")
    with run_reader(log) as reader:
        assert reader.read(0, 99).size == 99
        with pytest.raises(HoleError):
            reader.read(0, 100)
