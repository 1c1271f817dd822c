"""No answer depends on what is not durable, and one bad command harms no other."""

import asyncio

import pytest

from domain import commands as c
from domain.errors import InvalidError, LedgerError, NotFoundError
from domain.ids import placed_id
from domain.ports import NewEvent
from keyledger_language import events as e
from services.ledger import group as groups
from services.ledger.errors import OverloadedError
from services.ledger.handlers import DECIDE
from tests.ledger.world import Process, World, charge, reserve


def decisions() -> dict[object, object]:
    """The table of decisions, to be changed by a test."""
    return DECIDE  # type: ignore[return-value]  # keys and values are what they were


async def test_nothing_is_answered_before_the_commit_neither_a_grant_nor_a_refusal_that_rests_on_it(
    ledger: Process,
) -> None:
    key = await ledger.key(10)
    ledger.log.hold()

    granted, refused = ledger.ask(charge(key, "r1", 10)), ledger.ask(charge(key, "r2", 1))
    replayed = ledger.ask(charge(key, "r1", 10))
    await ledger.log.arrived.wait()
    await asyncio.sleep(0.02)

    assert not granted.done()
    assert not refused.done()
    assert not replayed.done()
    assert ledger.wallet(key).balance == 10

    ledger.log.gate.set()

    assert (await granted).result.code == "valid"
    assert (await refused).result.code == "billing_shortfall"
    assert (await replayed).result.replayed
    assert ledger.wallet(key).balance == 0


async def test_commands_that_wait_together_are_one_group(ledger: Process) -> None:
    key = await ledger.key(1_000)
    before = len(ledger.log.groups)

    await ledger.together(*(charge(key, f"r{n}", 1) for n in range(200)))

    assert len(ledger.log.groups) == before + 1
    assert len(ledger.log.groups[-1].events) == 200
    assert ledger.wallet(key).balance == 800


async def test_a_group_takes_a_thousand_commands(ledger: Process) -> None:
    key = await ledger.key(10_000)

    await ledger.together(*(charge(key, f"r{n}", 1) for n in range(2_500)))

    assert [len(group.events) for group in ledger.log.groups[-3:]] == [1_000, 1_000, 500]


async def test_exactly_what_the_wallet_covers_is_granted(ledger: Process) -> None:
    key = await ledger.key(100)

    outcomes = await ledger.together(*(charge(key, f"r{n}", 3) for n in range(64)))

    codes = [outcome.result.code for outcome in outcomes]
    assert codes.count("valid") == 33
    assert codes.count("billing_shortfall") == 31
    assert ledger.wallet(key).balance == 1


async def test_a_command_that_fails_is_left_out_and_the_others_are_not_harmed(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)

    def records_and_fails(desk: object, command: object) -> None:
        DECIDE[c.ReserveCredits](desk, reserve(key, "poison", 7))  # type: ignore[arg-type]  # the desk it is
        raise ZeroDivisionError

    monkeypatch.setitem(decisions(), c.ReportLeak, records_and_fails)
    poison = c.ReportLeak(fingerprint=b"", source="test")

    first, failed, second, failed_too = await ledger.together(
        charge(key, "r1", 4), poison, charge(key, "r2", 6), poison
    )

    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(failed_too, ZeroDivisionError)
    assert first.result.code == second.result.code == "valid"
    assert ledger.wallet(key).balance == ledger.wallet(key).reserved == 0


async def test_more_failing_commands_than_a_group_is_tried_do_not_cost_the_partition(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)

    def fails(desk: object, command: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(decisions(), c.ReportLeak, fails)

    *failed, charged = await ledger.together(
        *(c.ReportLeak(fingerprint=b"", source="test") for _ in range(55)), charge(key, "r1", 1)
    )

    assert all(isinstance(one, ZeroDivisionError) for one in failed)
    assert charged.result.code == "valid"
    assert ledger.ledger.owner


async def test_a_command_that_cannot_be_encoded_is_left_out(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await ledger.key(10)
    encode = ledger.mapper.new_event

    def refuses_one(stream: str, version: int, event: e.Event) -> NewEvent:
        if getattr(event, "request_id", None) == "cursed":
            raise OverflowError
        return encode(stream, version, event)

    monkeypatch.setattr(ledger.mapper, "new_event", refuses_one)

    charged, failed, other = await ledger.together(
        charge(key, "r1", 4), charge(key, "cursed", 4), charge(key, "r2", 4)
    )

    assert charged.result.code == other.result.code == "valid"
    assert isinstance(failed, OverflowError)
    assert ledger.wallet(key).balance == 2


@pytest.mark.parametrize(
    "charge_id",
    ["nonsense", "chg_", "chg_UUUU", "ILOU", "", placed_id("chg", 0, partition=0, position=10**9)],
)
async def test_a_refund_of_a_charge_that_is_none_is_not_found_and_harms_nobody(
    ledger: Process, charge_id: str
) -> None:
    key = await ledger.key(10)

    refused, charged = await ledger.together(
        c.RefundCharge(charge_id=charge_id, request_id="f1"), charge(key, "r1", 4)
    )

    assert isinstance(refused, NotFoundError)
    assert charged.result.code == "valid"


async def test_a_refund_names_a_charge_of_this_partition_only(ledger: Process) -> None:
    key = await ledger.key(10)
    charged = await ledger.charge(key, "r1", 4)
    elsewhere = placed_id("chg", 0, partition=1, position=charged.position)

    with pytest.raises(NotFoundError):
        await ledger.execute(c.RefundCharge(charge_id=elsewhere, request_id="f1"))


async def test_more_than_may_wait_is_refused_at_once(world: World) -> None:
    ledger = await world.process(max_waiting=5).started()
    key = await ledger.key(100)
    ledger.log.hold()
    under_way = ledger.ask(charge(key, "r0", 1))
    await ledger.log.arrived.wait()

    waiting = [ledger.ask(charge(key, f"w{n}", 1)) for n in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError):
        await ledger.charge(key, "one more", 1)
    ledger.log.gate.set()

    assert {(await one).result.code for one in [under_way, *waiting]} == {"valid"}
    assert ledger.wallet(key).balance == 94


async def test_a_group_that_would_grow_too_big_is_cut_in_order(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MOST_EVENTS", 10)
    key = await ledger.key(1_000)

    outcomes = await ledger.together(*(charge(key, f"r{n}", 1) for n in range(35)))

    assert [len(group.events) for group in ledger.log.groups[-4:]] == [10, 10, 10, 5]
    positions = [outcome.result.position for outcome in outcomes]
    assert positions == sorted(positions)


async def test_a_command_that_would_change_too_much_at_once_is_refused(
    ledger: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [await ledger.key() for _ in range(4)]
    monkeypatch.setattr(groups, "MOST_EVENTS_OF_A_COMMAND", 3)

    refused, charged = await ledger.together(
        c.RevokeKeys(key_ids=tuple(key.id for key in keys)), charge(keys[0], "r1", 0)
    )

    assert isinstance(refused, InvalidError)
    assert charged.result.code == "valid"
    assert [key.revoked_at for key in ledger.ledger.books.keys.values()] == [None] * 4


async def test_revoking_more_keys_than_one_commit_holds_is_refused_by_name(ledger: Process) -> None:
    with pytest.raises(InvalidError, match="key_ids"):
        await ledger.execute(c.RevokeKeys(key_ids=tuple(f"key_{n}" for n in range(4_001))))


async def test_a_caller_that_hangs_up_does_not_undo_what_it_asked_for(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    asked = ledger.ask(charge(key, "r1", 4))
    await ledger.log.arrived.wait()

    asked.cancel()
    ledger.log.gate.set()
    replayed = await ledger.charge(key, "r1", 4)

    assert replayed.replayed
    assert len(world.of(e.UsageCharged)) == 1


async def test_a_refusal_writes_nothing(world: World, ledger: Process) -> None:
    key = await ledger.key(3)
    head = ledger.ledger.books.head

    outcome = await ledger.charge(key, "r1", 4)
    with pytest.raises(LedgerError):
        await ledger.execute(c.RevokeKey(key_id="key_unknown"))

    assert outcome.code == "billing_shortfall"
    assert head == len(world.storage.events)


def charged(world: World) -> list[str]:
    return [event.request_id for event in world.decoded() if isinstance(event, e.UsageCharged)]


async def test_whoever_gives_up_before_it_is_decided_is_not_charged(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    first = ledger.ask(charge(key, "r1", 1))
    await ledger.log.arrived.wait()
    fence = ledger.ask(c.DisableKey(key_id=key.id))  # what changes a setting is not decided ahead
    abandoned = ledger.ledger.execute(charge(key, "r2", 4), ledger.asking)
    await asyncio.sleep(0)

    abandoned.cancel()
    ledger.log.gate.set()
    await asyncio.gather(first, fence)

    assert charged(world) == ["r1"]


async def test_whoever_gives_up_after_it_was_decided_is_charged_all_the_same(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10)
    ledger.log.hold()
    abandoned = ledger.ledger.execute(charge(key, "r1", 4), ledger.asking)
    await ledger.log.arrived.wait()

    abandoned.cancel()
    ledger.log.gate.set()
    await ledger.charge(key, "r2", 1)

    assert charged(world) == ["r1", "r2"]
    assert ledger.wallet(key).balance == 5
