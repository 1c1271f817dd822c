"""The fence learns of each commit at once, and continues after a restart however long ago it began."""

import asyncio

import pytest

from domain import commands as c
from keyledger_language import Change
from keyledger_language import events as e
from tests.ledger.world import Process, World, charge, until


async def test_the_fence_is_told_of_a_commit_before_anybody_is_answered(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)
    told: list[tuple[int, tuple[Change, ...]]] = []
    committed = ledger.ledger.standing.committed

    def tells(position: int, changes: list[Change]) -> None:
        assert not asked.done()
        assert position == ledger.ledger.books.head
        told.append((position, tuple(changes)))
        committed(position, changes)

    monkeypatch.setattr(ledger.ledger.standing, "committed", tells)
    asked = ledger.ask(c.RevokeKey(key_id=key.id))
    done = await asked

    [(position, [change])] = told[:1]
    assert position == done.position == done.fence_position == change.position
    assert change.narrowing


async def test_what_only_grants_has_no_fence(ledger: Process) -> None:
    key = await ledger.key(10)

    assert (await ledger.execute(charge(key, "r1", 1))).fence_position is None
    assert (await ledger.execute(c.DisableKey(key_id=key.id))).narrowed
    assert not (await ledger.execute(c.EnableKey(key_id=key.id))).narrowed


async def receipts(world: World, count: int = 1) -> list[e.RevocationFenced]:
    await until(lambda: len(world.of(e.RevocationFenced)) >= count)
    return [one for one in world.of(e.RevocationFenced) if isinstance(one, e.RevocationFenced)]


async def let_leases_end(world: World, ledger: Process) -> None:
    for _ in range(2):
        world.clock.boottime_us += 1_020_000
        await until(lambda: ledger.ledger.confirmed)
        ledger.ledger.standing.tenure._woken.set()


async def test_a_fence_that_holds_is_recorded_once(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    done = await ledger.execute(c.RevokeKey(key_id=key.id))
    await let_leases_end(world, ledger)

    [receipt] = await receipts(world)

    assert receipt.fenced == (done.fence_position,)
    assert ledger.ledger._memory.narrowings.open == {}


async def test_a_fence_goes_on_after_a_restart_however_much_came_after_it(
    world: World, ledger: Process
) -> None:
    key, other = await ledger.key(10), await ledger.key(100_000)
    revoked = await ledger.execute(c.RevokeKey(key_id=key.id))
    for n in range(5):
        await ledger.together(*(charge(other, f"r{n}-{m}", 1) for m in range(1_000)))
    await ledger.killed()

    again = await world.process().started()
    fence = again.ledger.fences.fence_of(revoked.fence_position or 0)

    assert not fence.held  # a grant of the previous owner may still be valid
    await let_leases_end(world, again)
    [receipt] = await receipts(world)
    assert receipt.fenced == (revoked.fence_position,)


async def test_a_fence_that_was_saved_open_goes_on_after_a_restart(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    revoked = await ledger.execute(c.RevokeKey(key_id=key.id))
    await ledger.stopped()
    assert (await world.rows.through()).position == len(world.storage.events)

    again = await world.process().started()

    assert not again.ledger.fences.fence_of(revoked.fence_position or 0).held


async def test_a_receipt_that_finds_no_room_is_written_later(world: World) -> None:
    ledger = await world.process(max_waiting=1).started()
    key = await ledger.key(10)
    await ledger.execute(c.RevokeKey(key_id=key.id))
    ledger.log.hold()
    under_way = ledger.ask(charge(key, "r1", 1))
    await asyncio.sleep(0)
    waiting = ledger.ask(c.Tick())
    await asyncio.sleep(0)
    await let_leases_end(world, ledger)
    await asyncio.sleep(0.05)
    ledger.log.gate.set()
    await asyncio.gather(under_way, waiting)
    ledger.ledger.standing.tenure._woken.set()

    assert await receipts(world)


async def test_a_receipt_under_way_when_the_ledger_stops_leaves_nothing_unheard(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    await ledger.execute(c.RevokeKey(key_id=key.id))
    ledger.log.hold()
    await let_leases_end(world, ledger)
    await asyncio.sleep(0.05)

    await ledger.killed()
    again = await world.process().started()
    await let_leases_end(world, again)

    assert len(await receipts(world)) == 1


async def test_a_take_away_that_found_nothing_carries_what_is_open(ledger: Process) -> None:
    one, other = await ledger.key(10), await ledger.key(10)
    revoked = await ledger.execute(c.RevokeKey(key_id=one.id))
    await ledger.together(*(charge(other, f"r{n}", 1) for n in range(50)))
    again = await ledger.execute(c.RevokeKey(key_id=one.id))
    filtered = await ledger.execute(c.RevokeKeys(key_ids=()))

    assert (revoked.narrowed, again.narrowed) == (True, False)
    assert again.fence_position == filtered.fence_position == revoked.fence_position
    assert again.position > revoked.position


async def test_a_new_owner_lets_a_repeated_take_away_wait_for_what_was_left_open(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    revoked = await ledger.execute(c.RevokeKey(key_id=key.id))
    await ledger.killed()

    again = await world.process().started()
    repeated = await again.execute(c.RevokeKey(key_id=key.id))
    fences = again.ledger.fences

    assert repeated.fence_position == revoked.fence_position
    assert not fences.fence_of(fences.head).held
    await let_leases_end(world, again)
    assert (await fences.fence(fences.head)).held


async def test_where_nothing_is_open_a_take_away_that_found_nothing_is_held(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    await ledger.execute(c.RevokeKey(key_id=key.id))
    await let_leases_end(world, ledger)
    await receipts(world)
    again = await ledger.execute(c.RevokeKey(key_id=key.id))

    assert again.fence_position == again.position
    assert ledger.ledger.fences.fence_of(again.position).held
