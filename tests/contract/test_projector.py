"""The projector follows the log on a real PostgreSQL: same rows however the log is cut and interrupted."""

import asyncio
import os
import signal
import time
from typing import LiteralString

import psycopg
import pytest

from domain.projecting import Projection
from infra.embedded import EmbeddedPostgres, EmbeddedServers
from infra.postgres import migrate
from infra.postgres.connections import ADVISORY_CLASS
from infra.postgres.epochs import raise_epoch
from infra.postgres.projected import Projected
from infra.postgres.projector import Projector
from infra.postgres.rebuilding import check
from projections.every import every_projection
from tests.contract.projected_worlds import mapper, projecting, reached, table_rows, written_log
from tests.histories import History
from tests.servers import initialised, server_folder


def tables_of(projections: list[Projection]) -> list[str]:
    return [table.name for projection in projections for table in projection.tables]


def everything(database: str) -> dict[str, list[tuple[object, ...]]]:
    return {table: table_rows(database, table) for table in tables_of(every_projection())}


async def test_the_same_log_gives_the_same_rows_however_it_is_cut_in_batches(database: str) -> None:
    history = History(1)
    async with written_log(database) as log:
        await log.write(history.grow(1_500))
        with projecting(database, batch=2_000) as projector:
            await reached(projector, log.head)
        expected = everything(database)
        for batch in (1, 7, 100):
            drop_projections(database)
            with projecting(database, batch=batch) as projector:
                await reached(projector, log.head)

            assert expected == everything(database)
    assert all(expected.values()), "every table has rows to compare"


async def test_events_are_visible_soon_after_their_commit(database: str) -> None:
    history = History(2)
    async with written_log(database) as log:
        with projecting(database) as projector:
            await log.write(history.grow(50))
            await reached(projector, log.head)
            delays = []
            for _ in range(30):
                await log.write(history.grow(5))
                committed = time.perf_counter()
                await reached(projector, log.head)
                delays.append(time.perf_counter() - committed)

    # By the poll alone, only a quarter would be faster than 12.5 ms.
    assert sorted(delays)[7] < 0.0125


async def test_who_wrote_can_wait_until_the_projections_show_it(database: str) -> None:
    history = History(8)
    async with written_log(database) as log, Projected(database) as projected:
        await log.write(history.grow(10))
        assert not await projected.wait_for(log.head, timeout=0.1)

        with projecting(database):
            assert await projected.wait_for(log.head, timeout=30)
            for _ in range(10):
                await log.write(history.grow(3))
                assert await projected.wait_for(log.head, timeout=30)
            cut_off(database, "%projected%")
            await log.write(history.grow(3))
            assert await projected.wait_for(log.head, timeout=30)
        await log.write(history.grow(3))
        assert not await projected.wait_for(log.head, timeout=0.1)


async def test_a_projector_survives_the_loss_of_all_its_connections(database: str) -> None:
    history = History(3)
    async with written_log(database) as log:
        with projecting(database) as projector:
            await log.write(history.grow(200))
            await reached(projector, log.head)
            for _ in range(3):
                cut_off(database, "%projector%")
                await log.write(history.grow(200))
                await reached(projector, log.head)
        expected = everything(database)
        drop_projections(database)
        with projecting(database) as projector:
            await reached(projector, log.head)

        assert expected == everything(database)


async def test_only_one_projector_works_and_the_other_takes_over(database: str) -> None:
    history = History(4)
    async with written_log(database) as log:
        with projecting(database) as second:
            with projecting(database) as first:
                await log.write(history.grow(100))
                await asyncio.wait(
                    [
                        asyncio.ensure_future(reached(first, log.head)),
                        asyncio.ensure_future(reached(second, log.head)),
                    ],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                await asyncio.sleep(0.1)

                assert 0 in {first.position, second.position}
            await log.write(history.grow(100))
            await reached(second, log.head)


async def test_an_event_whose_personal_fields_were_shredded_is_applied_without_them(database: str) -> None:
    history = History(5)
    async with written_log(database) as log:
        await log.write(history.grow(300))
        with psycopg.connect(database) as administrator:
            administrator.execute("DELETE FROM ledger.data_keys")
        with projecting(database) as projector:
            await reached(projector, log.head)

    with psycopg.connect(database) as connection:
        names = connection.execute("SELECT DISTINCT name FROM projections.keys").fetchall()
    assert names == [("",)]


@pytest.mark.parametrize("projector_then", ["follows", "is away"])
async def test_projections_of_events_that_the_log_lost_stop_and_are_made_anew_in_a_new_epoch(
    database: str, projector_then: str
) -> None:
    async with written_log(database) as log:
        await log.write(History(3).grow(300))
        with projecting(database) as projector:
            await reached(projector, log.head)
            if projector_then == "follows":
                await put_another_history_below(database, log.head)
                await until_problem(projector)
        if projector_then == "is away":
            await put_another_history_below(database, log.head)
        before = table_rows(database, "tracking")

        with projecting(database) as projector:
            await until_problem(projector)
            assert "keyledger new-epoch" in str(projector.problem)
            assert table_rows(database, "tracking") == before

            raise_epoch(database, from_epoch=1, seen_epoch=0)
            async with asyncio.timeout(30):
                while projector.problem is not None:
                    await asyncio.sleep(0.01)
            await reached(projector, log.head)
        assert table_rows(database, "tracking") != before
        assert check(database, every_projection(), mapper()).clean


async def test_projections_of_a_log_that_lost_nothing_go_on_in_a_new_epoch(database: str) -> None:
    async with written_log(database) as log:
        await log.write(History(3).grow(50))
        with projecting(database) as projector:
            await reached(projector, log.head)
        raise_epoch(database, from_epoch=1, seen_epoch=0)
        with projecting(database) as projector:
            await reached(projector, log.head)
            assert projector.problem is None


async def put_another_history_below(database: str, head: int) -> None:
    """The last event is another one now, under the same number, as after a restore."""
    with psycopg.connect(database) as owner:
        owner.execute("ALTER TABLE ledger.events_p0 DISABLE TRIGGER append_only")
        owner.execute("UPDATE ledger.events_p0 SET mark = mark + 1 WHERE notification_id = %s", (head,))
        owner.execute("ALTER TABLE ledger.events_p0 ENABLE TRIGGER append_only")


async def until_problem(projector: Projector) -> None:
    async with asyncio.timeout(30):
        while projector.problem is None:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("batch", [1, 50])
async def test_a_dropped_schema_is_made_anew(database: str, batch: int) -> None:
    history = History(6)
    async with written_log(database) as log:
        with projecting(database, batch=batch) as projector:
            await log.write(history.grow(100))
            await reached(projector, log.head)
            expected = everything(database)
            drop_projections(database)
            await log.write(history.grow(1))
            await reached(projector, log.head)

            assert len(expected["keys"]) <= len(everything(database)["keys"])


def drop_projections(database: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute("DROP SCHEMA projections CASCADE")


def cut_off(database: str, application_name: str) -> None:
    with psycopg.connect(database) as administrator:
        administrator.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name LIKE %s AND datname = current_database()",
            (application_name,),
        )


async def test_a_projector_that_is_there_before_the_role_makes_its_tables_as_the_role() -> None:
    owner = "SELECT tableowner FROM pg_tables WHERE schemaname = 'projections' AND tablename = 'tracking'"
    with (
        server_folder() as folder,
        EmbeddedServers(initialised(folder / "data"), nats=False) as servers,
        psycopg.connect(servers.postgres.dsn, autocommit=True) as migration,
    ):
        lock = (ADVISORY_CLASS, migrate._MIGRATION_LOCK)
        migration.execute("SELECT pg_advisory_lock(%s, %s)", lock)
        migration.execute(migrate._CREATE_HISTORY)
        for step in migrate.shipped_migrations():
            migrate._apply(migration, step)
        with projecting(servers.postgres.dsn):
            await first_row(migration, "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            assert migration.execute(owner).fetchone() is None
            migration.execute((migrate._HERE / "roles.sql").read_bytes())
            migration.execute("SELECT pg_advisory_unlock(%s, %s)", lock)

            assert await first_row(migration, owner) == ("keyledger_service",)


async def first_row(connection: psycopg.Connection[tuple[object, ...]], select: LiteralString) -> object:
    async with asyncio.timeout(30):
        while (row := connection.execute(select).fetchone()) is None:
            await asyncio.sleep(0.01)
    return row


async def test_a_crash_of_the_server_costs_a_few_rows_that_are_derived_again() -> None:
    history = History(9)
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
        postgres = servers.postgres
        with projecting(postgres.dsn) as projector:
            for _ in range(2):
                # The projector's commits do not wait for the disk: those of the last moments are lost.
                async with written_log(postgres.dsn) as log:
                    await log.catch_up()
                    await log.write(history.grow(300))
                    await reached(projector, log.head)
                    crash(postgres)
                    postgres.start()
            async with written_log(postgres.dsn) as log:
                await log.catch_up()
                await log.write(history.grow(10))
                await reached(projector, log.head)

        assert check(postgres.dsn, every_projection(), mapper()).clean


def crash(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    os.kill(postgres.pid, signal.SIGKILL)
    while postgres.alive:
        time.sleep(0.01)
