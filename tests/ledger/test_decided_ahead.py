"""While one group is being written, the next is decided on it; nothing in it counts before the first does."""

import asyncio

import msgspec
import pytest

from domain import commands as c
from keyledger_language import events as e
from services.ledger import command_queue
from services.ledger.errors import CannotAnswerError, NotOwnerHereError
from services.ledger.handlers import DECIDE
from tests.ledger.world import Process, World, charge, reserve, until


async def under_way_and_ahead(
    ledger: Process, first: list[c.Command], second: list[c.Command]
) -> tuple[list[asyncio.Task[object]], list[asyncio.Task[object]]]:
    """The first commands are held back in the log; the second ones were decided on them."""
    ledger.log.hold()
    written = [ledger.ask(command) for command in first]
    await asyncio.sleep(0)
    behind = [ledger.ask(command) for command in second]
    await ledger.log.arrived.wait()
    await until(lambda: not ledger.ledger._bus.queue)
    return written, behind  # type: ignore[return-value]  # tasks are not covariant


async def test_what_is_decided_ahead_sees_what_is_being_written_and_is_answered_after_it(
    ledger: Process,
) -> None:
    key = await ledger.key(10)

    [first], [second, third] = await under_way_and_ahead(
        ledger, [charge(key, "r1", 6)], [charge(key, "r2", 4), charge(key, "r3", 1)]
    )
    assert not any(task.done() for task in (first, second, third))
    ledger.log.gate.set()

    outcomes = [(await task).result.code for task in (first, second, third)]  # type: ignore[attr-defined]  # Done
    assert outcomes == ["valid", "valid", "billing_shortfall"]
    assert ledger.wallet(key).balance == 0


async def test_a_retry_decided_ahead_joins_the_charge_that_is_being_written(ledger: Process) -> None:
    key = await ledger.key(10)

    [first], [again] = await under_way_and_ahead(ledger, [charge(key, "r1", 6)], [charge(key, "r1", 6)])
    ledger.log.gate.set()

    assert (await again).result.replayed  # type: ignore[attr-defined]  # Done
    assert (await first).result.event == (await again).result.event  # type: ignore[attr-defined]  # Done
    assert ledger.wallet(key).balance == 4


async def test_what_was_decided_ahead_of_a_group_that_failed_never_was(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    head = ledger.ledger.books.head

    [first], [second] = await under_way_and_ahead(ledger, [reserve(key, "r1", 6)], [charge(key, "r2", 4)])
    world.storage.owner = None
    ledger.log.gate.set()

    for task in (first, second):
        with pytest.raises(CannotAnswerError):
            await task
    assert ledger.ledger.books.head == head
    assert ledger.wallet(key).balance == 10
    assert ledger.wallet(key).reserved == 0


async def test_a_claim_that_was_taken_meanwhile_is_looked_up_and_what_was_decided_ahead_is_decided_anew(
    ledger: Process,
) -> None:
    key = await ledger.key(10)
    await ledger.charge(key, "r1", 6)
    ledger.ledger._memory.recent.clear()

    [again], [second] = await under_way_and_ahead(ledger, [charge(key, "r1", 4)], [charge(key, "r2", 4)])
    ledger.log.gate.set()

    with pytest.raises(Exception, match="used before"):
        await again
    assert (await second).result.code == "valid"  # type: ignore[attr-defined]  # Done
    assert ledger.wallet(key).balance == 0


async def test_one_that_fails_while_deciding_ahead_is_left_out_and_the_others_are_not_harmed(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)
    table: dict[object, object] = DECIDE  # type: ignore[assignment]  # to be changed by a test
    meter = DECIDE[c.ChargeUsage]

    def stumbles(desk: object, command: c.ChargeUsage) -> object:
        if command.request_id == "cursed":
            raise ZeroDivisionError
        return meter(desk, command)  # type: ignore[arg-type]  # the desk it is

    monkeypatch.setitem(table, c.ChargeUsage, stumbles)

    ledger.log.hold()
    first = ledger.ask(charge(key, "r1", 1))
    await asyncio.sleep(0)
    # With metadata, so that it is decided the long way.
    strange = msgspec.structs.replace(charge(key, "cursed", 1), metadata={"trace": "7"})
    cursed, second = ledger.ask(strange), ledger.ask(charge(key, "r2", 1))
    await ledger.log.arrived.wait()
    ledger.log.gate.set()

    with pytest.raises(ZeroDivisionError):
        await cursed
    assert (await first).result.code == (await second).result.code == "valid"
    assert ledger.wallet(key).balance == 8


async def test_a_revoke_that_waits_behind_charges_is_not_overtaken_by_those_behind_it(
    ledger: Process,
) -> None:
    key = await ledger.key(10)

    ledger.log.hold()
    first = ledger.ask(charge(key, "r1", 1))
    await asyncio.sleep(0)
    revoked = ledger.ask(c.RevokeKey(key_id=key.id))
    late = ledger.ask(charge(key, "r2", 1))
    await ledger.log.arrived.wait()
    ledger.log.gate.set()

    assert (await first).result.code == "valid"
    await revoked
    assert (await late).result.code == "revoked"


async def test_with_many_callers_one_half_is_decided_while_the_other_is_written(ledger: Process) -> None:
    count = 2 * command_queue._WORTH_HALVING
    key = await ledger.key(count)
    before = len(ledger.log.groups)

    await ledger.together(*(charge(key, f"r{n}", 1) for n in range(count)))

    assert [len(group.events) for group in ledger.log.groups[before:]] == [count // 2, count // 2]
    assert ledger.wallet(key).balance == 0


async def test_a_ledger_that_stops_answers_everyone_also_those_decided_ahead(ledger: Process) -> None:
    key = await ledger.key(10)
    [first], [second] = await under_way_and_ahead(ledger, [charge(key, "r1", 6)], [charge(key, "r2", 4)])

    stopping = asyncio.create_task(ledger.stopped())
    await asyncio.sleep(0.01)
    ledger.log.gate.set()
    await stopping

    assert (await first).result.code == "valid"  # type: ignore[attr-defined]  # Done
    done = await asyncio.gather(second, return_exceptions=True)
    assert isinstance(done[0], NotOwnerHereError) or done[0].result.code == "valid"  # type: ignore[attr-defined]  # Done


async def test_whoever_was_decided_ahead_is_answered_when_the_session_is_lost(ledger: Process) -> None:
    """The first is known to be written; the second never was, and does not wait forever."""
    key = await ledger.key(10)
    [first], [second] = await under_way_and_ahead(ledger, [charge(key, "r1", 6)], [charge(key, "r2", 4)])
    ledger.log.lose_next_acknowledgement(committed=True)

    ledger.log.gate.set()

    assert (await first).result.code == "valid"  # type: ignore[attr-defined]  # Done
    with pytest.raises(NotOwnerHereError):
        await asyncio.wait_for(second, 5)
    await ledger.owns_again()
    assert (await ledger.charge(key, "r2", 4)).code == "valid"
    assert ledger.wallet(key).balance == 0


async def test_what_was_decided_ahead_is_sent_before_the_state_knows_of_what_it_rests_on(
    ledger: Process,
) -> None:
    """Otherwise the log would wait while those under way are answered."""
    key = await ledger.key(10)
    head = ledger.ledger.books.head
    heads: list[int] = []
    ledger.log.on_send = lambda: heads.append(ledger.ledger.books.head)
    [first], [second] = await under_way_and_ahead(ledger, [charge(key, "r1", 6)], [charge(key, "r2", 4)])

    ledger.log.gate.set()
    await asyncio.gather(first, second)

    assert heads == [head, head]
    assert [group.behind.position for group in ledger.log.groups[-2:]] == [head, head + 1]
    assert ledger.wallet(key).balance == 0


async def test_what_was_sent_ahead_and_meets_a_claim_of_another_is_decided_anew(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    await ledger.charge(key, "r0", 3)
    ledger.ledger._memory.recent.clear()

    [first], [again] = await under_way_and_ahead(ledger, [charge(key, "r1", 4)], [charge(key, "r0", 3)])
    ledger.log.gate.set()

    assert (await first).result.code == "valid"  # type: ignore[attr-defined]  # Done
    assert (await again).result.replayed  # type: ignore[attr-defined]  # Done
    assert ledger.wallet(key).balance == 3


async def test_the_outcome_of_what_was_sent_ahead_is_found_out_when_its_acknowledgement_is_lost(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    [first], [second] = await under_way_and_ahead(ledger, [charge(key, "r1", 6)], [charge(key, "r2", 4)])
    written: list[int] = []

    def lose_the_second() -> None:
        written.append(len(world.storage.events))
        if len(written) == 2:
            ledger.log.lose_next_acknowledgement(committed=True)

    ledger.log.before_append = lose_the_second
    ledger.log.gate.set()

    assert (await first).result.code == "valid"  # type: ignore[attr-defined]  # Done
    assert (await second).result.code == "valid"  # type: ignore[attr-defined]  # Done
    assert len(world.of(e.UsageCharged)) == 2
