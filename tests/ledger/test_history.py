"""A log that is not the one that was read: a process that read the other reports it, and answers nothing."""

from __future__ import annotations

import pytest

from domain import commands as c
from domain.ports import OtherHistoryError, StateRow
from keyledger_language.history import HistoryPoint
from services.ledger.errors import NotOwnerHereError, OtherHistoryHereError
from services.ledger.ledger import Ledger
from tests.ledger.world import Process, World, charge, deep_state, until

COMMAND = "`keyledger new-epoch`"


async def stopped_itself(process: Process) -> str:
    """Wait until it answers nothing any more; return what it reports."""
    await until(lambda: process.ledger.other_history is not None)
    with pytest.raises(OtherHistoryHereError) as told:
        process.ledger.must_own()
    assert not process.ledger.owner
    assert not process.ledger.confirmed
    return told.value.detail


async def test_a_stand_by_that_slept_through_a_lossy_fail_over_stops_itself(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    backup = world.storage.copy()
    sleeper = world.process()
    await ledger.execute(c.RevokeKey(key_id=key.id))
    await sleeper.ledger._ownership.follow()
    await ledger.killed()

    # Another log of the same length, and then a longer one.
    world.storage.restore(backup)
    other = await world.process().started()
    await other.charge(key, "r1", 10)
    for number in range(8):
        await other.charge(key, f"more {number}", 1)
    await other.killed()

    sleeper.start()
    assert COMMAND in await stopped_itself(sleeper)
    assert sleeper.ledger.books.keys[key.id].status(world.clock.now()) == "revoked"  # nothing was folded

    world.storage.raise_epoch()
    await until(lambda: sleeper.ledger.owner)
    assert sleeper.ledger.books.keys[key.id].status(world.clock.now()) == "active"
    await sleeper.charge(key, "after", 1)
    assert deep_state(sleeper.ledger) == deep_state(await fresh(world))


async def fresh(world: World) -> Ledger:
    """What a new process reads from the log."""
    process = world.process()
    await process.ledger._ownership.follow()
    return process.ledger


async def test_an_owner_whose_log_went_back_stops_itself_and_lets_others_own(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    backup = world.storage.copy()
    await ledger.charge(key, "lost", 10)
    world.storage.restore(backup)

    assert COMMAND in await stopped_itself(ledger)

    other = await world.process().started()
    await other.charge(key, "kept", 1)
    await other.charge(key, "kept too", 1)
    assert ledger.ledger.other_history is not None
    world.storage.raise_epoch()
    await until(lambda: ledger.ledger.stands_by and ledger.ledger.other_history is None)
    await until(lambda: ledger.ledger.books.head == len(world.storage.events))
    assert deep_state(ledger.ledger) == deep_state(await fresh(world))


async def test_the_append_refuses_an_owner_with_the_right_number_of_another_history(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    last = world.storage.events[-1]
    world.storage.events[-1] = last._replace(mark=last.mark + 1)

    with pytest.raises(NotOwnerHereError):
        await ledger.charge(key, "r1", 10)

    assert COMMAND in await stopped_itself(ledger)
    assert world.storage.events[-1].mark == last.mark + 1


async def test_an_owner_notices_a_raised_epoch_though_it_writes_nothing(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    before = ledger.ledger.fences

    world.storage.raise_epoch()

    await until(lambda: ledger.ledger.owner and ledger.ledger.fences is not before)
    assert ledger.ledger.fences.epoch == 2
    await ledger.charge(key, "r1", 10)
    assert ledger.wallet(key).balance == 90


async def test_an_owner_of_an_epoch_that_is_over_appends_nothing_and_goes_on_in_the_new_one(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    world.storage.raise_epoch()
    events = len(world.storage.events)

    with pytest.raises(NotOwnerHereError):
        await ledger.charge(key, "r1", 10)
    assert len(world.storage.events) == events

    await ledger.owns_again()
    assert ledger.ledger.fences.epoch == 2
    await ledger.charge(key, "r1", 10)


async def test_a_version_that_does_not_follow_is_not_folded(world: World, ledger: Process) -> None:
    key = await ledger.key(100)
    follower = world.process()
    await follower.ledger._ownership.follow()
    await ledger.execute(c.DisableKey(key_id=key.id))
    await ledger.killed()
    last = world.storage.events[-1]
    world.storage.events[-1] = last._replace(version=last.version + 4)

    with pytest.raises(OtherHistoryError, match=key.id):
        await follower.ledger._ownership.follow()
    assert follower.ledger.books.head == last.position - 1


async def test_rows_of_another_history_stop_a_start_and_are_dropped_in_a_new_epoch(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    backup = world.storage.copy()
    lost = await ledger.key(7)
    await ledger.stopped()  # with its rows saved
    world.storage.restore(backup)

    again = world.process()
    again.start()
    assert COMMAND in await stopped_itself(again)

    world.storage.raise_epoch()
    await until(lambda: again.ledger.owner)
    assert key.id in again.ledger.books.keys
    assert lost.id not in again.ledger.books.keys
    await again.ledger._saved.save()
    assert lost.id not in (await fresh(world)).books.keys
    assert await world.rows.find([f"keys/{lost.id}"]) == []


async def test_rows_and_log_of_before_the_epoch_was_raised_are_used(world: World, ledger: Process) -> None:
    await ledger.key(100)
    await ledger.stopped()
    world.storage.raise_epoch()

    again = world.process()
    await again.ledger._ownership.follow()

    assert again.ledger._saved.keeper.through == again.ledger.books.head > 0


async def test_an_owner_of_old_cannot_save_over_rows_of_the_same_number(
    world: World, ledger: Process
) -> None:
    await ledger.key(100)
    await ledger.ledger._saved.save()
    through = await world.rows.through()
    other = through._replace(mark=through.mark + 1, epoch=2)
    await world.rows.clear()
    await world.rows.save(other, [StateRow("keys/other", b"")], [], behind=HistoryPoint(0, 0, 2))
    await ledger.key(100)

    await ledger.ledger._saved.save()  # it finds that out, and writes all rows again
    await ledger.ledger._saved.save()

    assert await world.rows.find(["keys/other"]) == []
    assert deep_state(ledger.ledger) == deep_state(await fresh(world))


async def test_data_keys_that_the_log_lost_encrypt_nothing_more(world: World, ledger: Process) -> None:
    backup = world.storage.copy()
    await ledger.keyspace()  # with the platform's first personal fields
    lost = world.storage.data_keys["platform"]
    world.storage.restore(backup)
    world.storage.raise_epoch()
    await until(lambda: ledger.ledger.epoch == 2 and ledger.ledger.owner)

    await ledger.keyspace()

    assert world.storage.data_keys["platform"] != lost
    assert (await fresh(world)).books.head == len(world.storage.events)


async def test_one_group_decided_ahead_of_another_names_its_mark(world: World, ledger: Process) -> None:
    key = await ledger.key(1_000)
    ledger.log.hold()
    asked = [ledger.ask(charge(key, "r0", 1))]
    await ledger.log.arrived.wait()
    asked += [ledger.ask(charge(key, f"r{number}", 1)) for number in range(1, 5)]
    ledger.log.gate.set()

    for one in asked:
        assert (await one).result.code == "valid"
    assert ledger.ledger.books.mark == world.storage.events[-1].mark
