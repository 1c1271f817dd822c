"""Asking twice is answered twice and carried out once, whatever was forgotten in between."""

import asyncio
from typing import Any

import msgspec
import pytest

from domain import commands as c
from domain.errors import IdempotencyConflictError
from domain.state import Books
from keyledger_language import events as e
from keyledger_language.instants import DAY
from services.ledger.jobs import Idempotency
from tests.ledger.world import Process, World, charge, reserve


def forget(ledger: Process) -> None:
    """As after a restart: claims are in the log, no longer in memory."""
    ledger.ledger._memory.recent.clear()


def render(result: Any, books: Books, position: int) -> bytes:
    return msgspec.json.encode({"name": result.name, "position": position})


def named(name: str, body: bytes = b"0123456789abcdef") -> Idempotency:
    return Idempotency(claim=name.encode().rjust(16, b"."), body_digest=body)


async def test_a_repetition_in_one_group_joins_the_first(world: World, ledger: Process) -> None:
    key = await ledger.key(10)

    first, again = await ledger.together(charge(key, "r1", 10), charge(key, "r1", 10))

    assert (first.result.replayed, again.result.replayed) == (False, True)
    assert first.result.event == again.result.event
    assert len(world.of(e.UsageCharged)) == 1


@pytest.mark.parametrize("forgotten", [False, True])
async def test_the_retry_of_the_charge_that_spent_the_last_credits_gets_its_first_answer(
    world: World, ledger: Process, *, forgotten: bool
) -> None:
    key = await ledger.key(10)
    first = await ledger.charge(key, "r1", 10)
    if forgotten:
        forget(ledger)

    again = await ledger.charge(key, "r1", 10)

    assert again.replayed
    assert (first.position, first.event) == (again.position, again.event)
    assert len(world.of(e.UsageCharged)) == 1


async def test_all_retries_in_one_group_get_the_first_answer(ledger: Process) -> None:
    key = await ledger.key(10)
    first = await ledger.charge(key, "r1", 10)
    forget(ledger)

    retries = await ledger.together(*(charge(key, "r1", 10) for _ in range(5)))

    assert [one.result.event for one in retries] == [first.event] * 5


async def test_a_retry_that_would_be_granted_again_is_stopped_by_its_claim(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    first = await ledger.charge(key, "r1", 10)
    forget(ledger)

    again, other = await ledger.together(charge(key, "r1", 10), charge(key, "r2", 10))

    assert again.result.replayed
    assert first.event == again.result.event
    assert not other.result.replayed
    assert ledger.wallet(key).balance == 80
    assert len(world.of(e.UsageCharged)) == 2


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_request_id_used_for_something_else_is_a_conflict(
    ledger: Process, *, forgotten: bool
) -> None:
    key = await ledger.key(100)
    await ledger.charge(key, "r1", 10)
    if forgotten:
        forget(ledger)

    for other in (charge(key, "r1", 11), reserve(key, "r1", 10)):
        with pytest.raises(IdempotencyConflictError):
            await ledger.execute(other)

    assert ledger.wallet(key).balance == 90


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_retry_is_not_refused_by_a_scope_that_was_narrowed_since(
    ledger: Process, *, forgotten: bool
) -> None:
    from keyledger_language import Use  # noqa: PLC0415  # only here

    key = await ledger.key(100)
    use = Use(model="opus")
    first = await ledger.charge(key, "r1", 10, use=use)
    await ledger.execute(c.EditScopes(key_id=key.id, scopes=c.NewScopes(models=("haiku",))))
    if forgotten:
        forget(ledger)

    again = await ledger.charge(key, "r1", 10, use=use)
    other = await ledger.charge(key, "r2", 10, use=use)

    assert first.event == again.event
    assert other.code == "model_denied"


async def test_a_replay_never_makes_a_revoked_key_valid(ledger: Process) -> None:
    key = await ledger.key(100)
    await ledger.charge(key, "r1", 10)
    await ledger.execute(c.RevokeKey(key_id=key.id))

    assert (await ledger.charge(key, "r1", 10)).code == "revoked"
    forget(ledger)
    assert (await ledger.charge(key, "r1", 10)).code == "revoked"


async def test_captures_and_refunds_are_carried_out_once(world: World, ledger: Process) -> None:
    key = await ledger.key(100)
    reserved = (await ledger.execute(reserve(key, "r1", 50))).result.event
    capture = c.CaptureReservation(reservation_id=reserved.reservation_id, request_id="c1", base_micros=30)
    captured = (await ledger.execute(capture)).result.event
    refund = c.RefundCharge(charge_id=captured.charge_id, request_id="f1")
    refunded = (await ledger.execute(refund)).result.event
    forget(ledger)

    assert captured == (await ledger.execute(capture)).result.event
    assert refunded == (await ledger.execute(refund)).result.event
    assert (ledger.wallet(key).balance, ledger.wallet(key).reserved) == (100, 0)


async def test_a_reference_tops_up_once(ledger: Process) -> None:
    key = await ledger.key(100)
    forget(ledger)
    deposit = c.DepositCredits(
        organization_id=key.organization_id or "", amount_micros=100, reference="first"
    )

    replayed = (await ledger.execute(deposit)).result

    assert replayed.replayed
    assert ledger.wallet(key).balance == 100
    with pytest.raises(IdempotencyConflictError):
        await ledger.execute(msgspec.structs.replace(deposit, amount_micros=101))


async def test_a_refused_charge_may_be_tried_again(ledger: Process) -> None:
    key = await ledger.key(5)

    refused = await ledger.charge(key, "r1", 10)
    await ledger.execute(
        c.DepositCredits(organization_id=key.organization_id or "", amount_micros=5, reference="more")
    )
    granted = await ledger.charge(key, "r1", 10)

    assert (refused.code, granted.code, granted.replayed) == ("billing_shortfall", "valid", False)


# -- Idempotency-Key


async def test_the_first_answer_is_kept_for_an_idempotency_key(world: World, ledger: Process) -> None:
    command = c.OpenOrganization(name="Acme")
    first = await ledger.execute(command, idempotency=named("k1"), render=render)

    again = await ledger.execute(command, idempotency=named("k1"), render=render)

    assert again.replay == render(first.result, ledger.ledger.books, first.position)
    assert again.position == first.position
    assert len(world.of(e.OrganizationOpened)) == 1


async def test_the_same_idempotency_key_in_one_group_waits_for_the_first(
    world: World, ledger: Process
) -> None:
    command = c.OpenOrganization(name="Acme")

    asked = [ledger.ask(command, idempotency=named("k1"), render=render) for _ in range(6)]
    answers = await asyncio.gather(*asked)

    assert [one.replay is None for one in answers] == [True] + [False] * 5
    assert len(world.of(e.OrganizationOpened)) == 1


async def test_an_idempotency_key_with_another_body_is_a_conflict(ledger: Process) -> None:
    await ledger.execute(c.OpenOrganization(name="Acme"), idempotency=named("k1"), render=render)

    with pytest.raises(IdempotencyConflictError):
        await ledger.execute(
            c.OpenOrganization(name="Bcme"), idempotency=named("k1", b"another body....."), render=render
        )


async def test_an_idempotency_key_of_a_command_that_found_nothing_to_do_is_kept_too(
    world: World, ledger: Process
) -> None:
    key = await ledger.key()
    await ledger.execute(c.DisableKey(key_id=key.id))
    head = len(world.storage.events)

    nothing = await ledger.execute(c.DisableKey(key_id=key.id), idempotency=named("k1"), render=render)
    await ledger.execute(c.EnableKey(key_id=key.id))
    again = await ledger.execute(c.DisableKey(key_id=key.id), idempotency=named("k1"), render=render)

    assert not nothing.wrote
    assert again.replay is not None
    assert again.position == nothing.position == head
    assert not ledger.ledger.books.keys[key.id].disabled


async def test_a_refused_command_leaves_its_idempotency_key_free(ledger: Process) -> None:
    key = await ledger.key()
    await ledger.execute(c.RevokeKey(key_id=key.id))
    from domain.errors import KeyRevokedError  # noqa: PLC0415  # only here

    with pytest.raises(KeyRevokedError):
        await ledger.execute(c.DisableKey(key_id=key.id), idempotency=named("k1"), render=render)

    made = await ledger.execute(c.OpenOrganization(name="Acme"), idempotency=named("k1"), render=render)
    assert made.replay is None


async def test_an_idempotency_key_is_forgotten_after_a_day(world: World, ledger: Process) -> None:
    command = c.OpenOrganization(name="Acme")
    await ledger.execute(command, idempotency=named("k1"), render=render)

    world.clock.advance(DAY - 1)
    assert (await ledger.execute(command, idempotency=named("k1"), render=render)).replay is not None
    world.clock.advance(DAY)
    assert (await ledger.execute(command, idempotency=named("k1"), render=render)).replay is None
