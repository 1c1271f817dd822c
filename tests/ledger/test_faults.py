"""An unknown outcome is found out or reported, never guessed: a lost acknowledgement, a log that is down."""

import asyncio
from collections.abc import Sequence

import pytest

from domain import commands as c
from domain.ports import Group, LogUnavailableError, TakenClaim
from keyledger_language import events as e
from keyledger_language.history import RecordedEvent
from services.ledger import sure_append
from services.ledger.errors import NotOwnerHereError, UnavailableError, UnknownOutcomeError
from tests.ledger.world import Process, World, charge, deep_state, until


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown outcomes are given up soon."""
    monkeypatch.setattr(sure_append, "_RESOLVE_SECONDS", 0.05)
    monkeypatch.setattr(sure_append, "_RESOLVE_PAUSE_SECONDS", 0.01)


async def test_an_acknowledgement_lost_after_the_commit_is_found_in_the_log(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    ledger.log.lose_next_acknowledgement(committed=True)

    outcome = await ledger.charge(key, "r1", 4)

    assert (outcome.code, outcome.replayed) == ("valid", False)
    assert len(world.of(e.UsageCharged)) == 1
    await ledger.owns_again()
    assert (await ledger.charge(key, "r2", 4)).code == "valid"
    assert ledger.wallet(key).balance == 2


async def test_a_commit_that_was_lost_was_not_carried_out(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    ledger.log.lose_next_acknowledgement(committed=False)

    with pytest.raises(NotOwnerHereError):  # which means: not carried out, try again
        await ledger.charge(key, "r1", 4)

    assert not world.of(e.UsageCharged)
    await ledger.owns_again()
    assert (await ledger.charge(key, "r1", 4)).code == "valid"


async def test_after_a_lost_session_the_partition_is_taken_as_if_for_the_first_time(
    world: World, ledger: Process
) -> None:
    """Another process may have owned it in between, granted leases, and stopped: old grants prove nothing."""
    key = await ledger.key(10)
    fences = ledger.ledger.fences
    ledger.log.lose_next_acknowledgement(committed=True)

    await ledger.charge(key, "r1", 4)
    await until(lambda: ledger.ledger.owner and ledger.ledger.fences is not fences)

    assert fences.owner_until_ns <= world.clock.boottime_ns()


async def test_another_took_over_before_the_outcome_was_known(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is not in the log is certain once another process's event is in the group's place."""
    key = await ledger.key(10)
    other = world.process()
    committed = ledger.log.committed
    ledger.log.lose_next_acknowledgement(committed=False)

    async def committed_after_the_other_wrote(group: Group) -> bool | None:
        if other.task is None:
            await other.started()
            await other.charge(key, "r2", 10)
        return await committed(group)

    monkeypatch.setattr(ledger.log, "committed", committed_after_the_other_wrote)

    with pytest.raises(NotOwnerHereError):
        await ledger.charge(key, "r1", 4)

    assert [charged.request_id for charged in world.of(e.UsageCharged)] == ["r2"]  # type: ignore[attr-defined]  # charges


async def test_an_outcome_that_cannot_be_told_is_called_unknown(
    world: World, ledger: Process, impatient: None
) -> None:
    key = await ledger.key(10)

    def breaks() -> None:
        ledger.log.lose_next_acknowledgement(committed=True)
        asyncio.get_running_loop().call_soon(lambda: setattr(world.storage, "up", False))

    async def never(group: Group) -> bool | None:
        raise LogUnavailableError

    ledger.log.before_append = breaks
    ledger.log.committed = never  # type: ignore[method-assign]  # the log is down by then

    with pytest.raises(UnknownOutcomeError):
        await ledger.charge(key, "r1", 4)

    ledger.log.before_append = lambda: None
    del ledger.log.committed
    world.storage.up = True
    await ledger.owns_again()
    assert (await ledger.charge(key, "r1", 4)).replayed


async def test_stopping_in_the_middle_of_an_append_never_says_that_nothing_was_written(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    asked = ledger.ask(charge(key, "r1", 4))
    await ledger.log.arrived.wait()

    await ledger.killed()

    with pytest.raises(UnknownOutcomeError):
        await asked


async def test_losing_the_lock_does_not_cut_off_the_append_under_way(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    asked = ledger.ask(charge(key, "r1", 4))
    await ledger.log.arrived.wait()
    waiting = ledger.ask(charge(key, "r2", 4))
    await asyncio.sleep(0)

    ledger.log.cut_off()
    await until(lambda: not ledger.ledger.owner)
    with pytest.raises(NotOwnerHereError):
        await waiting
    assert not asked.done()
    ledger.log.gate.set()

    with pytest.raises(NotOwnerHereError):
        await asked
    assert not world.of(e.UsageCharged)


async def test_while_the_log_is_down_callers_are_told_so_and_it_recovers_without_a_restart(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    world.storage.up = False

    with pytest.raises((UnavailableError, NotOwnerHereError)):
        await ledger.charge(key, "r1", 4)
    await until(lambda: not ledger.ledger.reachable)
    with pytest.raises(UnavailableError) as refused:
        await ledger.charge(key, "r1", 4)

    assert refused.value.dependency == "postgresql"
    world.storage.up = True
    await ledger.owns_again()
    assert (await ledger.charge(key, "r1", 4)).code == "valid"


async def test_a_log_that_refuses_to_write_does_not_cost_the_partition(world: World, ledger: Process) -> None:
    """A full disk: the server is up, and reports that it rolled back."""
    key = await ledger.key(10)

    def full() -> None:
        raise LogUnavailableError("PostgreSQL refused the group: No space left on device")

    ledger.log.before_append = full
    with pytest.raises(UnavailableError, match="No space left"):
        await ledger.charge(key, "r1", 4)

    assert ledger.ledger.owner
    assert (await ledger.charge(key, "r2", 40)).code == "billing_shortfall"
    ledger.log.before_append = lambda: None
    assert (await ledger.charge(key, "r1", 4)).code == "valid"


async def test_claims_that_cannot_be_looked_up_refuse_the_group_not_the_partition(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)

    async def fails(digests: Sequence[bytes]) -> dict[bytes, TakenClaim]:
        raise LogUnavailableError

    with monkeypatch.context() as patched:
        patched.setattr(ledger.log, "claims", fails)
        with pytest.raises(UnavailableError):
            await ledger.charge(key, "r1", 40)

    assert ledger.ledger.owner
    assert (await ledger.charge(key, "r1", 4)).code == "valid"


async def test_a_head_that_moved_means_that_somebody_else_wrote(world: World, ledger: Process) -> None:
    """Safety does not depend on the lock: a process that is behind decides again, as a new owner."""
    key = await ledger.key(10)
    thief = world.process()
    thief.alone = True
    world.storage.owner = None
    await thief.started()
    await thief.execute(c.RevokeKey(key_id=key.id))
    world.storage.owner = ledger.log  # both believe that they own the partition now

    with pytest.raises(NotOwnerHereError):
        await ledger.ledger._bus.queue.submit(charge(key, "r1", 4), ledger.asking)

    assert not world.of(e.UsageCharged)
    await thief.stopped()
    await ledger.owns_again()
    assert (await ledger.charge(key, "r1", 4)).code == "revoked"


async def test_a_stale_owner_cannot_append(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    asked = ledger.ask(charge(key, "r1", 10))
    await ledger.log.arrived.wait()
    other = world.process()
    world.storage.owner = None
    await other.started()
    await other.execute(c.RevokeKey(key_id=key.id))
    ledger.log.gate.set()

    with pytest.raises(NotOwnerHereError):
        await asked

    assert not world.of(e.UsageCharged)


async def test_rate_limits_are_given_back_when_a_group_comes_to_nothing(
    world: World, ledger: Process
) -> None:
    from keyledger_language import RateLimit  # noqa: PLC0415  # only here

    limits = (RateLimit(name="burst", limit=2, window_seconds=60),)
    key = await ledger.key(100, rate_limits=limits)
    ledger.log.before_append = _full

    for n in range(5):
        with pytest.raises(UnavailableError):
            await ledger.charge(key, f"r{n}", 1, count_rate=True)
    ledger.log.before_append = lambda: None

    codes = [(await ledger.charge(key, f"r{n}", 1, count_rate=True)).code for n in range(3)]
    assert codes == ["valid", "valid", "rate_limited"]


def _full() -> None:
    raise LogUnavailableError("PostgreSQL refused the group: No space left on device")


async def test_a_failure_nobody_foresaw_makes_the_ledger_read_its_state_anew(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)

    def breaks(position: int, changes: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(ledger.ledger.standing, "committed", breaks)
        with pytest.raises((UnknownOutcomeError, NotOwnerHereError)):
            await ledger.charge(key, "r1", 4)
    await ledger.owns_again()

    fresh = world.process()
    await fresh.ledger._ownership.follow()
    assert deep_state(fresh.ledger) == deep_state(ledger.ledger)


async def test_a_process_knows_what_was_committed_once_it_has_read_the_log_to_its_end(
    world: World, ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: what it has loaded until then is as old as its rows, and must not be used for answers."""
    await ledger.key(10)
    await ledger.ledger._saved.save()
    other = world.process()
    held, read = asyncio.Event(), other.log.read

    async def slow(after: int, limit: int) -> list[RecordedEvent]:
        await held.wait()
        return await read(after, limit)

    monkeypatch.setattr(other.log, "read", slow)
    other.start()
    await until(lambda: other.ledger.books.head > 0)
    assert (other.ledger.caught_up, other.ledger.reachable) == (False, False)

    held.set()
    await until(lambda: other.ledger.reachable)
    assert other.ledger.caught_up

    world.storage.up = False
    await until(lambda: not other.ledger.reachable)
    assert other.ledger.caught_up
    await other.stopped()
