"""A rebuild gives the same rows, beside live traffic; a check finds what was damaged by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from infra.postgres.rebuilding import Check, RebuildRunningError, check, rebuild
from projections.every import every_projection
from tests.contract.projected_worlds import mapper, projecting, reached, table_rows, written_log
from tests.contract.test_projector import everything
from tests.histories import History


def checked(database: str) -> Check:
    return check(database, every_projection(), mapper())


def rebuilt(database: str) -> int:
    return rebuild(database, every_projection(), mapper())


def change(database: str, statement: str) -> None:
    with psycopg.connect(database) as connection:
        connection.execute(statement.encode())


@pytest.fixture
async def projected(database: str) -> str:
    """A database with a history, projected."""
    history = History(21)
    async with written_log(database) as log:
        await log.write(history.grow(1_200))
        with projecting(database) as projector:
            await reached(projector, log.head)
    return database


async def test_an_untouched_projection_is_what_the_log_says(projected: str) -> None:
    found = checked(projected)

    assert found.clean
    assert all(table.rows > 0 for table in found.tables)


DAMAGE = {
    "keys": "UPDATE projections.keys SET owner_id = 'eve' WHERE id = (SELECT min(id) FROM projections.keys)",
    "organizations": "DELETE FROM projections.organizations WHERE external_id = 'ext-0'",
    "audit": "INSERT INTO projections.audit VALUES (999999999, 1, 'eve', 'KeyRevoked')",
    "usage_hours": "UPDATE projections.usage_hours SET charged_micros = charged_micros + 1"
    " WHERE ctid = '(0,1)'",
    "usage_dimensions": "UPDATE projections.usage_dimensions SET model = NULL"
    " WHERE dimension = (SELECT dimension FROM projections.usage_dimensions WHERE model = 'opus' LIMIT 1)",
    "settlements": "DELETE FROM projections.settlements WHERE ctid = '(0,1)'",
}


@pytest.mark.parametrize("table", DAMAGE)
async def test_a_row_that_was_damaged_by_hand_is_found(projected: str, table: str) -> None:
    change(projected, DAMAGE[table])

    found = checked(projected)
    damaged = [one for one in found.tables if one.different]

    assert not found.clean
    assert [(table, 1, 1)] == [(one.table, one.different, len(one.differences)) for one in damaged]
    difference = damaged[0].differences[0]
    assert difference.live != difference.rebuilt


async def test_a_difference_names_the_row_and_only_the_fields_that_differ(projected: str) -> None:
    change(projected, DAMAGE["keys"])

    (damaged,) = (one for one in checked(projected).tables if one.different)
    (difference,) = damaged.differences

    assert difference.key.keys() == {"id"}
    assert difference.live == {"owner_id": "eve"}
    assert difference.rebuilt is not None
    assert difference.rebuilt.keys() == {"owner_id"}


async def test_a_check_changes_nothing_and_leaves_nothing(projected: str) -> None:
    before = everything(projected)
    checked(projected)

    assert before == everything(projected)
    assert list(schemas(projected)) == ["projections"]


async def test_a_rebuild_mends_what_was_damaged(projected: str) -> None:
    before = everything(projected)
    for damage in DAMAGE.values():
        change(projected, damage)

    rebuilt(projected)

    assert before == everything(projected)
    assert checked(projected).clean
    assert list(schemas(projected)) == ["projections"]


async def test_a_rebuild_beside_live_traffic_loses_nothing(database: str) -> None:
    history = History(22)
    async with written_log(database) as log:
        await log.write(history.grow(500))
        with projecting(database) as projector:
            await reached(projector, log.head)
            stop = asyncio.Event()

            async def keep_writing() -> None:
                while not stop.is_set():
                    await log.write(history.grow(20))
                    await asyncio.sleep(0.005)

            writing = asyncio.create_task(keep_writing())
            for _ in range(3):
                position = await asyncio.to_thread(rebuilt, database)
                assert position > 0
                found = await asyncio.to_thread(checked, database)
                assert found.clean
            stop.set()
            await writing
            await reached(projector, log.head)

        assert checked(database).clean


async def test_the_projector_rebuilds_by_itself_when_a_projection_changed(projected: str) -> None:
    before = everything(projected)
    change(projected, "UPDATE projections.definitions SET fingerprint = 'older' WHERE name = 'audit'")
    change(projected, "DELETE FROM projections.audit")
    head = int(str(table_rows(projected, "tracking")[0][0]).split(",")[1])

    with projecting(projected) as projector:
        await reached(projector, head)
        async with asyncio.timeout(20):
            while everything(projected) != before:
                await asyncio.sleep(0.05)


async def test_a_rebuild_that_was_killed_is_no_obstacle_to_the_next(projected: str) -> None:
    before = everything(projected)
    for schema in ("projections_rebuild", "projections_old"):
        change(
            projected, f"SET ROLE keyledger_service; CREATE SCHEMA {schema}; CREATE TABLE {schema}.keys ()"
        )

    rebuilt(projected)

    assert before == everything(projected)


async def test_two_rebuilds_at_once_are_refused(projected: str) -> None:
    results = await asyncio.gather(
        *(asyncio.to_thread(rebuilt, projected) for _ in range(3)), return_exceptions=True
    )

    assert any(isinstance(result, int) for result in results)
    assert all(isinstance(result, int | RebuildRunningError) for result in results)


def schemas(database: str) -> Iterator[str]:
    with psycopg.connect(database) as connection:
        for (name,) in connection.execute(
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'projections%'"
        ):
            yield name
