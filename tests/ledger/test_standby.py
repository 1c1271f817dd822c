"""PostgreSQL's standby goes away and comes back: nothing is promised meanwhile, and nothing is lost."""

import asyncio

import pytest

from domain import commands as c
from keyledger_edge import UNKNOWN
from keyledger_language import KeyFacts
from keyledger_language import events as e
from services.ledger import ownership, standby_watch, sure_append
from services.ledger.errors import NotOwnerHereError, UnknownOutcomeError, WaitsForStandbyError
from services.ledger.lease_terms import LeaseTerms
from services.ledger.owned_facts import OwnedFacts
from tests.ledger.world import Process, World, charge, until


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger asks at once whether PostgreSQL waits."""
    monkeypatch.setattr(standby_watch, "_LOOK_SECONDS", 0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_watch, "_LONGEST_APPEND_SECONDS", 0.02)
    monkeypatch.setattr(sure_append, "_RESOLVE_SECONDS", 0.2)


async def test_an_owner_that_cannot_confirm_answers_nothing_from_memory_after_its_lease(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    digest = key.secrets[0].fingerprint
    facts = OwnedFacts(ledger.ledger.standing, ledger.ledger.facts.find, world.clock)
    world.storage.lose_standby()
    assert isinstance(facts.facts_of(digest), KeyFacts), "the lease of the last confirmation still runs"

    world.pass_time(1)
    await until(lambda: ledger.ledger.waits_for_standby)

    assert not ledger.ledger.confirmed
    assert facts.facts_of(digest) is UNKNOWN
    assert ledger.ledger.standing.owner_until_ns <= world.clock.boottime_ns()
    with pytest.raises(WaitsForStandbyError, match="waits for its standby"):
        await ledger.charge(key, "r1", 4)


async def test_it_goes_on_by_itself_and_as_the_same_owner_when_the_standby_is_back(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    fences = ledger.ledger.fences
    world.storage.lose_standby()
    world.pass_time(60)
    await until(lambda: ledger.ledger.waits_for_standby)
    assert ledger.ledger.owner

    world.storage.return_standby()
    await ledger.owns_again()

    assert ledger.ledger.fences is fences, "the partition was not taken anew"
    assert not ledger.ledger.waits_for_standby
    assert (await ledger.charge(key, "r1", 4)).code == "valid"


async def test_whoever_waits_while_an_append_waits_is_told_so_and_the_append_goes_on(
    world: World, ledger: Process, impatient: None
) -> None:
    key = await ledger.key(10)
    world.storage.lose_standby()
    under_way = ledger.ask(charge(key, "r1", 4))
    await until(lambda: ledger.log._waiting is not None)
    behind = ledger.ask(charge(key, "r2", 1))

    with pytest.raises(UnknownOutcomeError):
        await under_way
    with pytest.raises(WaitsForStandbyError):
        await behind
    world.storage.return_standby()
    world.pass_time(1)
    await ledger.owns_again()

    assert (await ledger.charge(key, "r1", 4)).replayed
    assert [charged.request_id for charged in world.of(e.UsageCharged)] == ["r1"]  # type: ignore[attr-defined]  # charges


@pytest.mark.parametrize("how", ["terminated", "cancelled"])
async def test_a_broken_off_wait_is_no_success(
    world: World, ledger: Process, impatient: None, how: str
) -> None:
    """The event is in the log of this server; it must be on the standby before it is reported to anybody."""
    key = await ledger.key(10)
    world.storage.lose_standby()
    asked = ledger.ask(charge(key, "r1", 4))
    await until(lambda: ledger.log._waiting is not None)

    ledger.log.break_off("terminated" if how == "terminated" else "cancelled")
    await until(lambda: len(world.of(e.UsageCharged)) == 1)
    with pytest.raises(UnknownOutcomeError):
        await asyncio.wait_for(asked, 10)
    assert ledger.wallet(key).balance == 10, "nothing is answered from it"
    world.storage.return_standby()
    world.pass_time(1)
    await ledger.owns_again()

    assert (await ledger.charge(key, "r1", 4)).replayed


async def test_an_answer_that_writes_nothing_waits_as_well(
    world: World, ledger: Process, impatient: None
) -> None:
    key = await ledger.key(10)
    world.storage.lose_standby()
    world.pass_time(1)
    asked = ledger.ledger._bus.queue.submit(charge(key, "r1", 400), ledger.asking)

    with pytest.raises(WaitsForStandbyError):
        await asked
    world.storage.return_standby()
    await ledger.owns_again()
    assert (await ledger.charge(key, "r1", 400)).code == "billing_shortfall"


async def test_a_new_owner_answers_nothing_before_the_standby_has_what_it_read(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    world.storage.lose_standby()
    asked = ledger.ask(charge(key, "r1", 4))
    await until(lambda: ledger.log._waiting is not None)
    other = world.process()
    ledger.log.break_off("terminated")
    await until(lambda: len(world.of(e.UsageCharged)) == 1)
    await ledger.killed()
    asked.cancel()

    other.start()
    await until(lambda: other.ledger.waits_for_standby)

    assert other.ledger.books.head < len(world.storage.events), "it takes nothing that no standby has"
    assert not other.ledger.owner
    with pytest.raises(WaitsForStandbyError):
        await other.charge(key, "r2", 1)
    world.storage.return_standby()
    await other.owns_again()
    assert (await other.charge(key, "r1", 4)).replayed


async def test_who_stands_by_takes_nothing_that_a_fail_over_takes_back(
    world: World, ledger: Process, impatient: None
) -> None:
    """The wait was broken off: the primary shows the event, and the standby is promoted without it."""
    key = await ledger.key(10)
    other = world.process()
    other.start()
    await until(lambda: other.ledger.stands_by and other.ledger.books.head == len(world.storage.events))
    known = other.ledger.books.head
    promoted = world.storage.copy()
    world.storage.lose_standby()
    asked = ledger.ask(charge(key, "lost", 4))
    await until(lambda: ledger.log._waiting is not None)
    ledger.log.break_off("terminated")
    await until(lambda: len(world.storage.events) > known)
    await until(lambda: other.ledger.waits_for_standby or other.ledger.books.head > known)

    assert other.ledger.books.head == known
    await ledger.killed()
    await asyncio.gather(asked, return_exceptions=True)
    world.storage.restore(promoted)
    world.storage.return_standby()
    await other.owns_again()

    assert other.ledger.other_history is None
    assert not other.ledger.waits_for_standby
    assert (await other.charge(key, "kept", 1)).code == "valid"


async def test_who_waits_to_read_can_be_stopped(world: World, ledger: Process, impatient: None) -> None:
    key = await ledger.key(10)
    world.storage.lose_standby()
    asked = ledger.ask(charge(key, "r1", 4))
    await until(lambda: ledger.log._waiting is not None)
    ledger.log.break_off("terminated")
    other = world.process()
    other.start()
    await until(lambda: other.ledger.waits_for_standby)
    assert not other.ledger.caught_up

    await asyncio.wait_for(other.stopped(), 5)
    world.storage.return_standby()
    await asyncio.gather(asked, return_exceptions=True)


async def test_a_process_that_waits_for_the_standby_can_be_stopped(world: World) -> None:
    world.storage.lose_standby()
    process = world.process()
    process.start()
    await until(lambda: process.ledger.waits_for_standby)

    await asyncio.wait_for(process.stopped(), 5)


async def test_who_stands_by_says_so_as_well_and_forwards_still(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_LOOK_FOR_SILENCE_SECONDS", 0.0)
    other = world.process()
    other.start()
    await until(lambda: other.ledger.stands_by)

    async def waits() -> bool:
        return world.storage.standby_away

    monkeypatch.setattr(other.log, "waits_for_standby", waits)
    world.storage.lose_standby()
    await until(lambda: other.ledger.waits_for_standby)
    with pytest.raises(NotOwnerHereError):
        other.ledger.must_own()

    world.storage.return_standby()
    await until(lambda: not other.ledger.waits_for_standby)


async def test_load_adds_no_confirmations(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An append that returned was sent by the owner: it counts as a confirmation from that time."""
    key = await ledger.key(1_000)
    confirmed, confirm = [0], ledger.log.confirm

    async def counted() -> bool:
        confirmed[0] += 1
        return await confirm()

    monkeypatch.setattr(ledger.log, "confirm", counted)
    for n in range(30):
        world.clock.boottime_us += 100_000
        await ledger.charge(key, f"r{n}", 1)
        await asyncio.sleep(0.02)
        assert ledger.ledger.confirmed

    assert confirmed[0] <= 1


async def test_an_append_counts_from_when_it_was_sent(world: World) -> None:
    ledger = await world.process(lease=LeaseTerms(lease_ms=100_000)).started()
    key = await ledger.key(10)
    ledger.log.hold()
    asked = ledger.ask(charge(key, "r1", 1))
    await ledger.log.arrived.wait()
    sent = world.clock.boottime_ns()
    world.pass_time(50)

    ledger.log.gate.set()
    await asked

    assert ledger.ledger.standing.owner_until_ns == sent + ledger.ledger.terms.lease.granted_ns


async def test_a_revocation_is_not_answered_before_the_standby_has_it(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    world.storage.lose_standby()

    asked = ledger.ask(c.RevokeKey(key_id=key.id))
    await until(lambda: ledger.log._waiting is not None)
    await asyncio.sleep(0.05)

    assert not asked.done()
    world.storage.return_standby()
    await asked
