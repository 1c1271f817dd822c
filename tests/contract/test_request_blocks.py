"""The index by key: which blocks of the log have one of its requests, 64 blocks to a row."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import psycopg
import pytest

from domain.ids import placed_id
from infra.postgres.rebuilding import check
from keyledger_language import events as e
from projections.every import every_projection
from projections.request_lists import RequestFilter, list_requests
from projections.requests import BLOCK, list_digest
from tests.contract.projected_worlds import Reading, mapper, projecting, reached, reading, written_log
from tests.histories import NOON

BLOCKS_IN_ROW = 64
KeyAt = Callable[[int], str]


def key_id(number: int) -> str:
    return f"key_{number:026d}"


A, B = key_id(1), key_id(2)


def charges(first: int, last: int, key_at: KeyAt) -> Iterator[e.UsageCharged]:
    """One for each position from `first` to `last`, of the key that `key_at` names."""
    for position in range(first, last + 1):
        yield e.UsageCharged(
            at=NOON + position,
            organization_id="org_1",
            key_id=key_at(position),
            request_id=f"req-{position}",
            base_micros=1,
            price_multiplier="1",
            amount_micros=1,
            balance_micros=0,
            reserved_micros=0,
            charge_id=placed_id("chg", NOON, partition=0, position=position),
        )


def once_per_block(position: int) -> str:
    return A if position % BLOCK == 0 else B


def rows_of(database: str, key_id: str) -> list[int]:
    """How many blocks each of its rows has, oldest first."""
    select = "SELECT length(blocks) / 4 FROM projections.request_blocks WHERE list_digest = %s ORDER BY first"
    with psycopg.connect(database) as connection:
        return [size for (size,) in connection.execute(select, (list_digest(key_id),))]


async def positions_listed(asked: Reading, key_id: str, limit: int = 50) -> list[int]:
    """All pages of a key's requests."""
    found: list[int] = []
    cursor = None
    while True:
        page = await list_requests(
            asked.queries, asked.events, RequestFilter(key_id=key_id), limit=limit, cursor=cursor, now=NOON
        )
        found += [entry.position for entry in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            return found


@pytest.mark.parametrize("blocks,rows", [(63, [63]), (64, [64]), (65, [64, 1])])
async def test_a_row_has_64_blocks_and_the_next_begins_behind_them(
    database: str, blocks: int, rows: list[int]
) -> None:
    async with written_log(database) as log, reading(database) as asked:
        await log.write(list(charges(1, blocks * BLOCK, once_per_block)))
        with projecting(database) as projector:
            await reached(projector, log.head)

        assert rows == rows_of(database, A)
        assert [block * BLOCK for block in range(blocks, 0, -1)] == await positions_listed(asked, A)


async def test_rows_are_filled_on_wherever_the_projector_stopped(database: str) -> None:
    # A block that is cut in two, a row that is cut in two, and a row that is full to the brim.
    stops = [BLOCK + 10, 10 * BLOCK, 64 * BLOCK, 65 * BLOCK - 1, 70 * BLOCK + 1]
    async with written_log(database) as log, reading(database) as asked:
        for first, last in itertools.pairwise([0, *stops]):
            await log.write(list(charges(first + 1, last, once_per_block)))
            with projecting(database) as projector:
                await reached(projector, log.head)

        assert rows_of(database, A) == [64, 6]
        assert rows_of(database, B) == [64, 7]
        assert [block * BLOCK for block in range(70, 0, -1)] == await positions_listed(asked, A, limit=7)
    assert check(database, every_projection(), mapper()).clean


async def test_keys_of_the_same_digest_share_rows_and_no_lines(database: str) -> None:
    one, other = keys_of_the_same_digest()
    turns = [one, other, one, B, other, B]
    async with written_log(database) as log, reading(database) as asked:
        await log.write(list(charges(1, 70 * BLOCK, lambda position: turns[position // 50 % len(turns)])))
        with projecting(database, batch=1_000) as projector:
            await reached(projector, log.head)

        for key in (one, other):
            expected = [p for p in range(70 * BLOCK, 0, -1) if turns[p // 50 % len(turns)] == key]
            assert expected == await positions_listed(asked, key, limit=500)
    assert check(database, every_projection(), mapper()).clean


def keys_of_the_same_digest() -> tuple[str, str]:
    seen: dict[int, str] = {}
    for number in itertools.count():
        key = f"key_{number * 2_654_435_761 % 2**64:026d}"
        other = seen.setdefault(list_digest(key), key)
        if other != key:
            return other, key
    raise AssertionError
