"""What every place for state rows promises: rows and checkpoint move together."""

import os
from collections.abc import AsyncIterator

import pytest

from domain.ports import CheckpointMovedError, StateRow, StateRows
from infra.memory.state_rows import MemoryStateRows
from infra.postgres.state_rows import PostgresStateRows
from keyledger_language.history import BEGINNING, HistoryPoint

WALLET = StateRow("wallet/org_1", b"\x00100")


def at(position: int) -> HistoryPoint:
    return HistoryPoint(position, -position, 1)


SETTLED = StateRow("reservation/rsv_1", b"settled", resident=False)


@pytest.fixture(params=["memory", "postgres"])
async def rows(request: pytest.FixtureRequest) -> AsyncIterator[StateRows]:
    if request.param == "memory":
        yield MemoryStateRows()
        return
    postgres = PostgresStateRows(request.getfixturevalue("ledger_database"))
    yield postgres
    await postgres.close()


async def loaded(rows: StateRows) -> dict[str, tuple[int, bytes]]:
    """How many resident rows each table has, and their bytes: sorted, for no order is promised."""
    tables: dict[str, tuple[int, bytes]] = {}
    async for found in rows.load():
        count, data = tables.get(found.table, (0, b""))
        tables[found.table] = count + found.row_count, data + found.rows
    return {table: (count, bytes(sorted(data))) for table, (count, data) in tables.items()}


def all_of(*rows: StateRow) -> tuple[int, bytes]:
    """What is loaded of a table that has these rows."""
    return len(rows), bytes(sorted(b"".join(row.data for row in rows)))


async def test_nothing_saved_means_a_checkpoint_of_0(rows: StateRows) -> None:
    assert await rows.through() == BEGINNING
    assert await loaded(rows) == {}
    assert await rows.find(["wallet/org_1"]) == []
    assert await rows.find([]) == []


async def test_rows_are_as_of_their_checkpoint(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET, SETTLED], [], behind=at(0))

    assert await rows.through() == at(7)
    assert await loaded(rows) == {"wallet": all_of(WALLET)}


async def test_a_row_that_is_not_resident_is_found_by_its_subject(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET, SETTLED], [], behind=at(0))

    assert await rows.find(["reservation/rsv_1", "nobody"]) == [SETTLED]
    assert sorted(await rows.find(["reservation/rsv_1", "wallet/org_1"])) == [SETTLED, WALLET]


async def test_a_later_save_replaces_and_removes(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET, StateRow("key/1", b"old")], [], behind=at(0))

    await rows.save(at(9), [StateRow("key/1", b"new")], ["wallet/org_1", "nobody"], behind=at(7))

    assert await rows.through() == at(9)
    assert await loaded(rows) == {"key": all_of(StateRow("key/1", b"new"))}


async def test_a_row_that_settles_is_no_longer_loaded(rows: StateRows) -> None:
    await rows.save(at(7), [SETTLED._replace(resident=True)], [], behind=at(0))
    await rows.save(at(8), [SETTLED], [], behind=at(7))

    assert await loaded(rows) == {}
    assert await rows.find([SETTLED.subject]) == [SETTLED]


async def test_a_save_without_rows_moves_the_checkpoint(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET], [], behind=at(0))
    await rows.save(at(1_000_000_000_000), [], [], behind=at(7))

    assert await rows.through() == at(1_000_000_000_000)
    assert await loaded(rows) == {"wallet": all_of(WALLET)}


async def test_many_rows_are_loaded_in_blocks_of_one_table_each(rows: StateRows) -> None:
    keys = [StateRow(f"key/{n:05}", f"key {n};".encode()) for n in range(12_345)]
    wallets = [StateRow(f"wallet/{n:05}", f"wallet {n};".encode()) for n in range(1_234)]
    await rows.save(at(1), [*keys, *wallets], [], behind=at(0))

    assert await loaded(rows) == {"key": all_of(*keys), "wallet": all_of(*wallets)}


async def test_rows_are_loaded_as_they_were_saved_last(rows: StateRows) -> None:
    saves = [
        [StateRow(f"key/{n:05}", f"key {n} of save {number};".encode()) for n in range(2_000)]
        for number in range(20)
    ]
    for number, many in enumerate(saves):
        await rows.save(at(number + 1), many, [], behind=at(number))

    assert await loaded(rows) == {"key": all_of(*saves[-1])}


async def test_a_row_may_be_larger_than_a_page(rows: StateRows) -> None:
    large = StateRow("key/large", os.urandom(100_000))
    await rows.save(at(1), [large, WALLET], [], behind=at(0))

    assert await loaded(rows) == {"key": all_of(large), "wallet": all_of(WALLET)}


async def test_large_rows_are_not_joined_by_postgresql_which_has_an_end_at_1_gb(
    ledger_database: str,
) -> None:
    postgres = PostgresStateRows(ledger_database)
    large = [StateRow(f"key/large {n}", os.urandom(2_001)) for n in range(20)]
    small = [StateRow(f"key/small {n}", os.urandom(2_000)) for n in range(20)]
    await postgres.save(at(1), [*large, *small], [], behind=at(0))

    found = [(one.row_count, len(one.rows)) async for one in postgres.load()]

    assert sorted(found) == [(1, 2_001)] * 20 + [(20, 20 * 2_000)]
    await postgres.close()


async def test_where_rows_are_large_fewer_pages_are_read_at_once(ledger_database: str) -> None:
    postgres = PostgresStateRows(ledger_database)
    small = [StateRow(f"key/{n}", os.urandom(400)) for n in range(20_000)]
    await postgres.save(at(1), small, [], behind=at(0))
    of_small = [one.row_count async for one in postgres.load()]

    large = [StateRow(f"key/large {n}", os.urandom(16_384)) for n in range(2_000)]
    await postgres.save(at(2), large, [], behind=at(1))
    joined = [one.row_count async for one in postgres.load() if one.row_count > 1]

    assert of_small == [20_000]
    # 32 MiB stand outside of the 10 MiB of pages: a slice is a quarter of 2,048 of them.
    assert sum(joined) == 20_000
    assert 2 <= len(joined) <= 4
    await postgres.close()


async def test_cleared_rows_are_gone_with_their_checkpoint(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET, SETTLED], [], behind=at(0))

    await rows.clear()

    assert await rows.through() == BEGINNING
    assert await loaded(rows) == {}
    assert await rows.find([SETTLED.subject]) == []


async def test_a_save_behind_another_checkpoint_writes_nothing(rows: StateRows) -> None:
    await rows.save(at(7), [WALLET], [], behind=at(0))

    for wrong in (BEGINNING, at(6), at(8), at(7)._replace(mark=7)):
        with pytest.raises(CheckpointMovedError):
            await rows.save(at(9), [SETTLED], [], behind=wrong)

    assert await rows.through() == at(7)
    assert await rows.find([SETTLED.subject]) == []


async def test_rows_are_loaded_as_of_one_checkpoint_though_the_owner_saves_meanwhile(rows: StateRows) -> None:
    many = [StateRow(f"key/{n:05}", b"old") for n in range(12_345)]
    await rows.save(at(1), many, [], behind=at(0))

    keys = 0
    async for found in rows.load():
        assert found.rows == b"old" * found.row_count
        keys += found.row_count
        if await rows.through() == at(1):
            await rows.save(at(2), [row._replace(data=b"new") for row in many], [], behind=at(1))

    assert keys == len(many)
    assert await loaded(rows) == {"key": all_of(*[row._replace(data=b"new") for row in many])}


async def test_who_stops_loading_halfway_leaves_nothing_behind(rows: StateRows) -> None:
    await rows.save(at(1), [StateRow(f"key/{n:05}", b"row" * 100) for n in range(12_345)], [], behind=at(0))

    loading = rows.load()
    async for _ in loading:
        break
    await loading.aclose()  # type: ignore[attr-defined]  # it is a generator in both

    await rows.clear()
    assert await loaded(rows) == {}
