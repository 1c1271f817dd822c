"""Recent refusals are remembered for a bounded time, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from domain import commands as c
from domain.desk import SYSTEM_ASKING
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from keyledger_language import Use
from services.ledger.errors import RefusedLatelyError
from services.ledger.jobs import WAITED_PAST
from services.ledger.recent_refusals import KEPT_SECONDS, RecentRefusals
from tests.api.quick.world import Owned, World, running_world


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def claim(number: int) -> bytes:
    return number.to_bytes(16, "big")


def test_a_refusal_is_found_for_two_minutes_at_least_and_four_at_most() -> None:
    clock = Clock()
    refusals = RecentRefusals(clock)
    refusals.note(claim(1))
    clock.now = KEPT_SECONDS + 1
    refusals.note(claim(2))

    assert (refusals.find(claim(1)), refusals.find(claim(2)), refusals.find(claim(3))) == (1, 2, 0)

    clock.now = 2 * KEPT_SECONDS + 2
    refusals.note(claim(3))

    assert (refusals.find(claim(1)), refusals.find(claim(2)), refusals.find(claim(3))) == (0, 2, 3)
    assert refusals.any

    clock.now = 5 * KEPT_SECONDS

    assert not refusals.any


def test_a_flood_of_refusals_takes_bounded_memory_and_the_newest_are_kept() -> None:
    refusals = RecentRefusals(Clock(), most=100)
    for number in range(1_000):
        refusals.note(claim(number))

    assert len(refusals) <= 200
    assert all(refusals.find(claim(number)) for number in range(900, 1_000))


# -- deciding


@pytest.fixture
async def shop() -> AsyncIterator[tuple[World, Organization, Owned]]:
    async with running_world() as world:
        keyspace: Keyspace = await world.make_keyspace()
        poor: Organization = await world.make_organization()
        yield world, poor, await world.make_key(keyspace, poor)


async def tried(world: World, owned: Owned, request_id: str, waited_past: int | None) -> str:
    """One try; `waited_past`: forwarded by a process that knows that its client waited past this refusal."""
    token = WAITED_PAST.set(waited_past)
    command = c.ChargeUsage(key_id=owned.id, request_id=request_id, base_micros=10, use=Use())
    try:
        done = await world.ledger.execute(command, SYSTEM_ASKING)
    finally:
        WAITED_PAST.reset(token)
    code: str = done.result.code
    return code


async def pay_in(world: World, organization: Organization) -> None:
    await world.do(c.DepositCredits(organization_id=organization.id, amount_micros=10, reference="r"))


async def test_an_older_try_that_was_passed_on_is_not_decided_behind_a_refusal(
    shop: tuple[World, Organization, Owned],
) -> None:
    world, poor, owned = shop
    first = await tried(world, owned, "r1", None)
    await pay_in(world, poor)
    with pytest.raises(RefusedLatelyError) as late:
        await tried(world, owned, "r1", 0)

    assert (first, world.balance(poor)) == ("billing_shortfall", 10)

    # Its client still waits, so it is a try of its own, which is decided again.
    assert await tried(world, owned, "r1", late.value.number) == "valid"
    assert world.balance(poor) == 0


@pytest.mark.parametrize("waited_past", [None, 0])
async def test_a_new_try_and_another_request_are_decided_as_ever(
    shop: tuple[World, Organization, Owned], waited_past: int | None
) -> None:
    world, poor, owned = shop
    await tried(world, owned, "r1", waited_past)
    await pay_in(world, poor)

    request_id = "r1" if waited_past is None else "r2"

    assert await tried(world, owned, request_id, waited_past) == "valid"


async def test_a_granted_request_is_replayed_whatever_was_refused_before(
    shop: tuple[World, Organization, Owned],
) -> None:
    world, poor, owned = shop
    await tried(world, owned, "r1", None)
    await pay_in(world, poor)
    await tried(world, owned, "r1", None)

    assert await tried(world, owned, "r1", 0) == "valid"
    assert world.balance(poor) == 0
