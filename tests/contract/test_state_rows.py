"""What every place for state rows promises: rows and checkpoint move together."""

from collections.abc import AsyncIterator

import pytest

from domain.ports import CheckpointMovedError, StateRow, StateRows
from infra.memory.state_rows import MemoryStateRows
from infra.postgres.state_rows import PostgresStateRows

WALLET = StateRow("wallet/org_1", b"\x00100")
SETTLED = StateRow("reservation/rsv_1", b"settled", resident=False)


@pytest.fixture(params=["memory", "postgres"])
async def rows(request: pytest.FixtureRequest) -> AsyncIterator[StateRows]:
    if request.param == "memory":
        yield MemoryStateRows()
        return
    postgres = PostgresStateRows(request.getfixturevalue("ledger_database"))
    yield postgres
    await postgres.close()


async def loaded(rows: StateRows) -> list[StateRow]:
    return sorted([row async for batch in rows.load() for row in batch])


async def test_nothing_saved_means_a_checkpoint_of_0(rows: StateRows) -> None:
    assert await rows.through() == 0
    assert await loaded(rows) == []
    assert await rows.find(["wallet/org_1"]) == []
    assert await rows.find([]) == []


async def test_rows_are_as_of_their_checkpoint(rows: StateRows) -> None:
    await rows.save(7, [WALLET, SETTLED], [], behind=0)

    assert await rows.through() == 7
    assert await loaded(rows) == [WALLET]


async def test_a_row_that_is_not_resident_is_found_by_its_subject(rows: StateRows) -> None:
    await rows.save(7, [WALLET, SETTLED], [], behind=0)

    assert await rows.find(["reservation/rsv_1", "nobody"]) == [SETTLED]
    assert sorted(await rows.find(["reservation/rsv_1", "wallet/org_1"])) == [SETTLED, WALLET]


async def test_a_later_save_replaces_and_removes(rows: StateRows) -> None:
    await rows.save(7, [WALLET, StateRow("key/1", b"old")], [], behind=0)

    await rows.save(9, [StateRow("key/1", b"new")], ["wallet/org_1", "nobody"], behind=7)

    assert await rows.through() == 9
    assert await loaded(rows) == [StateRow("key/1", b"new")]


async def test_a_row_that_settles_is_no_longer_loaded(rows: StateRows) -> None:
    await rows.save(7, [SETTLED._replace(resident=True)], [], behind=0)
    await rows.save(8, [SETTLED], [], behind=7)

    assert await loaded(rows) == []
    assert await rows.find([SETTLED.subject]) == [SETTLED]


async def test_a_save_without_rows_moves_the_checkpoint(rows: StateRows) -> None:
    await rows.save(7, [WALLET], [], behind=0)
    await rows.save(1_000_000_000_000, [], [], behind=7)

    assert await rows.through() == 1_000_000_000_000
    assert await loaded(rows) == [WALLET]


async def test_many_rows_are_loaded_in_batches(rows: StateRows) -> None:
    many = [StateRow(f"key/{n:05}", b"row") for n in range(12_345)]
    await rows.save(1, many, [], behind=0)

    assert await loaded(rows) == many


async def test_cleared_rows_are_gone_with_their_checkpoint(rows: StateRows) -> None:
    await rows.save(7, [WALLET, SETTLED], [], behind=0)

    await rows.clear()

    assert await rows.through() == 0
    assert await loaded(rows) == []
    assert await rows.find([SETTLED.subject]) == []


async def test_a_save_behind_another_checkpoint_writes_nothing(rows: StateRows) -> None:
    await rows.save(7, [WALLET], [], behind=0)

    for wrong in (0, 6, 8):
        with pytest.raises(CheckpointMovedError):
            await rows.save(9, [SETTLED], [], behind=wrong)

    assert await rows.through() == 7
    assert await rows.find([SETTLED.subject]) == []


async def test_rows_are_loaded_as_of_one_checkpoint_though_the_owner_saves_meanwhile(rows: StateRows) -> None:
    many = [StateRow(f"key/{n:05}", b"old") for n in range(12_345)]
    await rows.save(1, many, [], behind=0)

    loaded: list[StateRow] = []
    async for batch in rows.load():
        loaded += batch
        if await rows.through() == 1:
            await rows.save(2, [row._replace(data=b"new") for row in many], [], behind=1)

    assert many == loaded
