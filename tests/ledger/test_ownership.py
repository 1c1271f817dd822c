"""Several processes on one log: one decides, the others follow, and none answers from stale memory."""

import asyncio

import pytest

from domain import commands as c
from domain.errors import NotFoundError
from domain.ports import OtherHistoryError
from keyledger_language import events as e
from services.ledger.errors import NotOwnerHereError
from services.ledger.lease_terms import LeaseTerms
from tests.ledger.world import Process, World, charge, deep_state, reserve, until


async def test_one_process_owns_and_the_other_stands_by(world: World, ledger: Process) -> None:
    other = world.process()
    other.start()
    await until(lambda: other.ledger.stands_by)

    assert not other.ledger.owner
    with pytest.raises(NotOwnerHereError):
        await other.execute(c.OpenOrganization(name="Acme"))


async def test_who_stands_by_follows_the_log(world: World, ledger: Process) -> None:
    other = world.process()
    other.start()
    key = await ledger.key(100)
    await ledger.together(*(charge(key, f"r{n}", 1) for n in range(30)))
    await ledger.execute(reserve(key, "h1", 5))
    await ledger.execute(c.RevokeKey(key_id=key.id))

    await until(lambda: other.ledger.books.head == ledger.ledger.books.head)

    assert deep_state(ledger.ledger) == deep_state(other.ledger)
    assert other.ledger.books.keys[key.id].name == "a key"  # personal fields, read with their data key


async def test_a_process_reads_personal_fields_whose_data_key_was_made_after_it_began(
    world: World, ledger: Process
) -> None:
    """Without them a key would be followed without its allowed_ips: open to the world."""
    other = world.process()
    other.start()
    await until(lambda: other.ledger.stands_by)

    key = await ledger.key(10, allowed_ips=("10.0.0.0/8",))
    await until(lambda: other.ledger.books.head == ledger.ledger.books.head)

    assert other.ledger.books.keys[key.id].allowed_ips == ("10.0.0.0/8",)


async def test_the_next_takes_over_when_the_owner_is_gone(world: World, ledger: Process) -> None:
    other = world.process()
    other.start()
    key = await ledger.key(10)
    await ledger.charge(key, "r1", 4)

    await ledger.killed()
    await until(lambda: other.ledger.confirmed and other.ledger._bus.queue.accepting)

    assert (await other.charge(key, "r1", 4)).replayed
    assert (await other.charge(key, "r2", 6)).code == "valid"
    assert (await other.charge(key, "r3", 1)).code == "billing_shortfall"


async def test_the_next_owner_listens_to_root_keys_that_may_have_edges(world: World, ledger: Process) -> None:
    await ledger.ledger.bootstrap()
    other = world.process()
    other.start()
    key = await ledger.key(10)
    await until(lambda: other.ledger.books.head == ledger.ledger.books.head)

    assert not other.ledger.speakers()

    await ledger.killed()
    await until(lambda: other.ledger.confirmed and other.ledger._bus.queue.accepting)
    speakers = other.ledger.speakers()

    assert len(speakers) == 1
    assert key.id not in speakers


async def test_what_one_revoked_the_other_refuses(world: World, ledger: Process) -> None:
    other = world.process()
    other.start()
    key = await ledger.key(10)
    await ledger.execute(c.RevokeKey(key_id=key.id))

    await ledger.stopped()
    await until(lambda: other.ledger.confirmed and other.ledger._bus.queue.accepting)

    assert (await other.charge(key, "r1", 4)).code == "revoked"
    facts = other.ledger.facts.find(other.ledger.books.keys[key.id].secrets[0].fingerprint)
    assert facts is not None
    assert facts.revoked


async def test_a_successor_waits_until_the_owner_before_it_answers_nothing_any_more(
    world: World, ledger: Process
) -> None:
    """It may live on, cut off from the log, and verify for the rest of its lease."""
    lease = LeaseTerms(lease_ms=200)
    other = world.process(lease=lease)
    other.alone = False
    ledger.log.cut_off()
    started = asyncio.get_running_loop().time()

    await other.started()

    assert asyncio.get_running_loop().time() - started >= 0.2


async def test_an_owner_that_was_paused_answers_nothing_before_it_is_sure_again(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)

    world.clock.boottime_us += 990_001  # a lease of 1 s, less 1 % for clocks that drift

    assert not ledger.ledger.confirmed
    with pytest.raises(NotOwnerHereError):
        await ledger.charge(key, "r1", 4)
    await until(lambda: ledger.ledger.confirmed)  # no other process had taken it: it continues


@pytest.mark.parametrize("micros", [4, 400])
async def test_what_was_decided_before_a_pause_is_answered_only_if_nobody_took_over(
    world: World, ledger: Process, micros: int
) -> None:
    """A charge is stopped at its append; a refusal, which appends nothing, must be stopped as well."""
    key = await ledger.key(10)
    ledger.log.hold()
    under_way = ledger.ask(charge(key, "r0", 1))
    await ledger.log.arrived.wait()
    waiting = ledger.ask(charge(key, "r1", micros))
    await asyncio.sleep(0)

    # Paused for longer than its lease: another takes over, and revokes.
    world.clock.boottime_us += 2_000_000
    world.storage.owner = None
    other = await world.process().started()
    await other.execute(c.RevokeKey(key_id=key.id))
    ledger.log.gate.set()

    for asked in (under_way, waiting):
        with pytest.raises(NotOwnerHereError):
            await asked
    assert not world.of(e.UsageCharged)


async def test_a_refusal_alone_is_not_answered_by_an_owner_that_was_overtaken(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    bus = ledger.ledger._bus
    world.clock.boottime_us += 2_000_000
    world.storage.owner = None
    other = await world.process().started()
    await other.execute(
        c.DepositCredits(organization_id=key.organization_id or "", amount_micros=990, reference="more")
    )

    with pytest.raises(NotOwnerHereError):
        await bus.queue.submit(charge(key, "r1", 400), ledger.asking)


async def test_whoever_stands_by_looks_for_owners_that_are_silent(world: World, ledger: Process) -> None:
    other = world.process()
    world.pass_time(3)
    other.start()

    await until(lambda: other.ended_silent > 0)


async def test_two_that_take_turns_write_one_history(world: World) -> None:
    first, second = world.process(), world.process()
    key = None
    for turn in range(6):
        mine = (first, second)[turn % 2]
        await mine.started()
        key = key or await mine.key(1_000)
        await mine.together(*(charge(key, f"t{turn}-{n}", 7) for n in range(20)))
        await mine.execute(reserve(key, f"h{turn}", 3))
        if turn % 3 == 0:
            await mine.killed()
        else:
            await mine.stopped()
    assert key is not None

    last = await world.process().started()

    assert last.wallet(key).balance == 1_000 - 6 * 20 * 7
    assert last.wallet(key).reserved == 6 * 3
    positions = [one.position for one in world.storage.events]
    assert positions == list(range(1, len(positions) + 1))


async def test_a_log_that_went_back_is_read_anew_once_its_epoch_was_raised(
    world: World, ledger: Process
) -> None:
    """It was restored from a backup: what was folded from it is not its history."""
    key = await ledger.key(10)
    kept = len(world.storage.events)
    restored = world.process()
    await ledger.charge(key, "r1", 4)
    await restored.ledger._ownership.follow()
    await ledger.stopped()
    del world.storage.events[kept:]
    await world.rows.clear()

    with pytest.raises(OtherHistoryError):
        await restored.ledger._ownership.follow()
    world.storage.raise_epoch()
    await restored.ledger._ownership.follow()

    assert kept == restored.ledger.books.head
    assert restored.wallet(key).balance == 10


async def test_stopping_decides_what_waits_and_leaves_nothing_to_replay(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    asked = [ledger.ask(charge(key, f"r{n}", 1)) for n in range(3)]
    await ledger.log.arrived.wait()

    stopping = asyncio.create_task(ledger.stopped())
    await asyncio.sleep(0.01)
    ledger.log.gate.set()
    await stopping

    assert [(await one).result.code for one in asked] == ["valid"] * 3
    assert (await world.rows.through()).position == len(world.storage.events)


async def test_a_root_key_is_made_once(world: World, ledger: Process) -> None:
    secret = await ledger.ledger.bootstrap()

    assert secret is not None
    assert await ledger.ledger.bootstrap() is None
    with pytest.raises(NotFoundError):
        await ledger.execute(c.RevokeKey(key_id="key_nobody"))
