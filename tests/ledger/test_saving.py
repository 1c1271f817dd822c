"""State rows save a replay and never contain more than the log: load and replay give the same state."""

import asyncio
import os

import msgspec
import pytest

from domain import commands as c
from domain.ports import CheckpointMovedError, StateRow
from keyledger_language import events as e
from keyledger_language.history import HistoryPoint
from services.ledger import row_format, saving
from tests.ledger.world import Process, World, charge, deep_state, reserve, until


async def busy(ledger: Process) -> None:
    """A bit of everything."""
    key = await ledger.key(10_000, tags=("a", "b"), metadata={"team": "blue"})
    await ledger.together(*(charge(key, f"r{n}", n) for n in range(20)))
    held = (await ledger.execute(reserve(key, "h1", 50))).result.event
    await ledger.execute(reserve(key, "h2", 60))
    capture = c.CaptureReservation(reservation_id=held.reservation_id, request_id="c1", base_micros=40)
    captured = (await ledger.execute(capture)).result.event
    await ledger.execute(c.RefundCharge(charge_id=captured.charge_id, request_id="f1", amount_micros=15))
    await ledger.execute(
        c.RotateKey(key_id=key.id, fingerprint=os.urandom(32), hint="kl_live_...", overlap_seconds=60)
    )
    other = await ledger.key(5)
    await ledger.execute(c.RevokeKey(key_id=other.id))


async def replayed(world: World) -> Process:
    """The state that results from folding the whole log into an empty one."""
    fresh = world.process()
    await fresh.ledger._saved.follower.learn_data_keys(list(world.storage.events))
    await fresh.ledger._saved.follower.catch_up()
    return fresh


async def test_rows_and_a_replay_of_the_rest_give_the_state_that_was(world: World, ledger: Process) -> None:
    await busy(ledger)
    await ledger.ledger._saved.save()
    await busy(ledger)

    loaded = world.process()
    await loaded.ledger._ownership.follow()

    assert deep_state(ledger.ledger) == deep_state(loaded.ledger)
    assert deep_state(ledger.ledger) == deep_state((await replayed(world)).ledger)
    assert 0 < (await world.rows.through()).position < ledger.ledger.books.head


async def test_a_reservation_that_was_settled_comes_back_when_it_is_asked_for(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    held = (await ledger.execute(reserve(key, "h1", 50))).result.event
    await ledger.execute(c.ReleaseReservation(reservation_id=held.reservation_id))
    await ledger.stopped()
    again = await world.process().started()
    assert held.reservation_id not in again.ledger.books.reservations

    released = (await again.execute(c.ReleaseReservation(reservation_id=held.reservation_id))).result

    assert released.replayed
    shown = await again.ledger.find_reservation(held.reservation_id)
    assert shown is not None
    assert shown.status == "released"


async def expired_then_captured_late(world: World, ledger: Process) -> str:
    """A reservation that expires, is saved, and is captured after that."""
    key = await ledger.key(100)
    held = (await ledger.execute(reserve(key, "h1", 50, seconds=1))).result.event
    world.clock.advance(2_000_000)
    await ledger.execute(c.Tick())
    await ledger.ledger._saved.save()
    capture = c.CaptureReservation(
        reservation_id=held.reservation_id, request_id="c1", base_micros=30, final=False
    )
    assert (await ledger.execute(capture)).result.code == "valid"
    reservation_id: str = held.reservation_id
    return reservation_id


async def test_a_late_capture_is_replayed_though_its_reservation_is_not_in_memory(
    world: World, ledger: Process
) -> None:
    reservation_id = await expired_then_captured_late(world, ledger)
    await ledger.killed()

    again = await world.process().started()

    assert deep_state(ledger.ledger) == deep_state(again.ledger)
    assert ledger.ledger.books.reservations[reservation_id] == again.ledger.books.reservations[reservation_id]


async def test_a_late_capture_is_followed_though_its_row_is_newer_than_the_follower(
    world: World, ledger: Process
) -> None:
    """The owner has saved the reservation as it is after an event that the follower has yet to fold."""
    key = await ledger.key(100)
    held = (await ledger.execute(reserve(key, "h1", 50, seconds=1))).result.event
    world.clock.advance(2_000_000)
    await ledger.execute(c.Tick())
    await ledger.ledger._saved.save()
    follower = world.process()
    await follower.ledger._ownership.follow()
    capture = c.CaptureReservation(
        reservation_id=held.reservation_id, request_id="c1", base_micros=30, final=False
    )
    await ledger.execute(capture)
    await ledger.ledger._saved.save()
    await ledger.execute(msgspec.structs.replace(capture, request_id="c2", base_micros=7))

    await follower.ledger._ownership.follow()

    assert deep_state(ledger.ledger) == deep_state(follower.ledger)
    mine, theirs = (one.ledger.books.reservations[held.reservation_id] for one in (ledger, follower))
    assert mine == theirs
    assert mine.captured_micros == 37


async def test_an_owner_of_old_cannot_mix_its_rows_with_its_successors(world: World, ledger: Process) -> None:
    await busy(ledger)
    await ledger.ledger._saved.save()
    await busy(ledger)
    world.storage.owner = None
    other = await world.process().started()
    await busy(other)
    await other.ledger._saved.save()

    with pytest.raises(CheckpointMovedError):
        await ledger.ledger._saved.keeper.save(dict(ledger.ledger._memory.unsaved))

    loaded = world.process()
    await loaded.ledger._ownership.follow()
    assert deep_state(other.ledger) == deep_state(loaded.ledger)


async def test_a_last_save_of_an_owner_of_old_is_put_right_by_its_successor(
    world: World, ledger: Process
) -> None:
    await busy(ledger)
    await ledger.ledger._saved.save()
    await busy(ledger)
    world.storage.owner = None
    other = await world.process().started()
    # Correct up to its position, but late.
    await ledger.ledger._saved.keeper.save(dict(ledger.ledger._memory.unsaved))
    await busy(other)

    await other.ledger._saved.save()
    await other.ledger._saved.save()

    assert (await world.rows.through()).position == other.ledger.books.head
    loaded = world.process()
    await loaded.ledger._ownership.follow()
    assert deep_state(other.ledger) == deep_state(loaded.ledger)


async def test_a_save_whose_outcome_is_not_known_is_made_good(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await busy(ledger)
    save = world.rows.save

    async def saves_and_breaks(
        through: HistoryPoint, rows: list[StateRow], removed: list[str], *, behind: HistoryPoint
    ) -> None:
        await save(through, rows, removed, behind=behind)
        raise ConnectionError

    with monkeypatch.context() as patched:
        patched.setattr(world.rows, "save", saves_and_breaks)
        with pytest.raises(ConnectionError):
            await ledger.ledger._saved.save()
    await busy(ledger)

    await ledger.ledger._saved.save()

    loaded = world.process()
    await loaded.ledger._ownership.follow()
    assert deep_state(ledger.ledger) == deep_state(loaded.ledger)


async def test_rows_of_another_shape_are_not_read_and_not_touched_by_who_only_follows(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await busy(ledger)
    await ledger.ledger._saved.save()
    monkeypatch.setattr(row_format, "_FORMAT", 99)

    newer = world.process()
    newer.start()
    await until(lambda: newer.ledger.stands_by)
    await until(lambda: newer.ledger.books.head == ledger.ledger.books.head)

    assert (await world.rows.through()).position > 0
    assert deep_state(ledger.ledger) == deep_state(newer.ledger)
    await ledger.killed()
    await until(lambda: newer.ledger.owner)
    await newer.ledger._saved.save()
    loaded = world.process()
    await loaded.ledger._ownership.follow()
    assert deep_state(newer.ledger) == deep_state(loaded.ledger)


async def test_a_first_save_of_very_much_is_written_in_parts_that_count_for_nothing_before_the_last(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_PART", 5)
    await busy(ledger)
    checkpoints: list[int] = []
    save = world.rows.save

    async def watched(
        through: HistoryPoint, rows: list[StateRow], removed: list[str], *, behind: HistoryPoint
    ) -> None:
        checkpoints.append(through.position)
        await save(through, rows, removed, behind=behind)

    monkeypatch.setattr(world.rows, "save", watched)

    await ledger.ledger._saved.save()

    *parts, last = checkpoints
    assert set(parts) == {0}
    assert last == ledger.ledger.books.head
    loaded = world.process()
    await loaded.ledger._ownership.follow()
    assert deep_state(ledger.ledger) == deep_state(loaded.ledger)


async def test_only_the_newest_settled_reservations_stay_in_memory(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SETTLED_KEPT", 3)
    key = await ledger.key(1_000)
    held = [(await ledger.execute(reserve(key, f"h{n}", 1))).result.event.reservation_id for n in range(10)]
    for reservation_id in held[:8]:
        await ledger.execute(c.ReleaseReservation(reservation_id=reservation_id))

    await ledger.ledger._saved.save()

    assert held[5:] == list(ledger.ledger.books.reservations)
    assert (await ledger.execute(c.ReleaseReservation(reservation_id=held[0]))).result.replayed


async def test_who_stands_by_keeps_no_more_than_the_owner(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SETTLED_KEPT", 3)
    other = world.process()
    other.start()
    await until(lambda: other.ledger.stands_by)
    key = await ledger.key(1_000)
    for n in range(10):
        held = (await ledger.execute(reserve(key, f"h{n}", 1))).result.event
        await ledger.execute(c.ReleaseReservation(reservation_id=held.reservation_id))
    world.clock.advance(61_000_000)
    await ledger.charge(key, "r1", 1)
    await until(lambda: other.ledger.books.head == ledger.ledger.books.head)
    await ledger.ledger._saved.save()

    for _ in range(2):
        world.clock.boottime_us += 3_000_000
        await asyncio.sleep(0.25)

    assert len(other.ledger.books.reservations) == 3
    assert sum(len(rows) for rows in other.ledger._memory.unsaved.values()) == 0
    assert other.ledger._memory.state.agenda == []


async def test_quotas_count_the_same_after_a_restart(world: World, ledger: Process) -> None:
    from keyledger_language.events import Quota  # noqa: PLC0415  # only here

    key = await ledger.key(1_000, quotas=(Quota(unit="requests", window="day", limit=3),))
    await ledger.charge(key, "r1", 1)
    await ledger.charge(key, "r2", 1)
    await ledger.stopped()
    again = await world.process().started()

    codes = [(await again.charge(key, f"r{n}", 1)).code for n in (2, 3, 4)]

    assert codes == ["valid", "valid", "api_key_quota_exceeded"]
    assert len(world.of(e.UsageCharged)) == 3
