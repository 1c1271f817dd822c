"""What is due is recorded without any request; what was only observed, at most once a minute."""

import asyncio

import pytest

from domain import commands as c
from keyledger_language import Tenant, Use
from keyledger_language import events as e
from keyledger_language.instants import SECOND
from services.ledger import upkeep
from services.ledger.sightings import Refused, Sightings
from tests.ledger.world import Process, World, charge, reserve, until


async def test_a_reservation_expires_while_nobody_looks(world: World, ledger: Process) -> None:
    key = await ledger.key(100)
    await ledger.execute(reserve(key, "h1", 60, seconds=10))

    world.clock.advance(10 * SECOND)
    ledger.wake()

    await until(lambda: bool(world.of(e.ReservationExpired)))
    await until(lambda: ledger.wallet(key).reserved == 0)


async def test_what_expired_is_recorded_before_a_decision_that_rests_on_it(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(100)
    await ledger.execute(reserve(key, "h1", 60, seconds=10))
    assert (await ledger.charge(key, "r1", 50)).code == "billing_shortfall"

    world.clock.advance(10 * SECOND)

    assert (await ledger.charge(key, "r2", 50)).code == "valid"
    kinds = [type(event).__name__ for event in world.decoded()[-2:]]
    assert kinds == ["ReservationExpired", "UsageCharged"]


async def test_a_key_expires_and_an_overlap_ends_while_nobody_looks(world: World, ledger: Process) -> None:
    key = await ledger.key(expires_at=world.clock.now() + 20 * SECOND)
    await ledger.execute(
        c.RotateKey(key_id=key.id, fingerprint=b"f" * 32, hint="kl_live_...", overlap_seconds=5)
    )

    world.clock.advance(5 * SECOND)
    ledger.wake()
    await until(lambda: bool(world.of(e.SecretRetired)))
    world.clock.advance(15 * SECOND)
    ledger.wake()
    await until(lambda: bool(world.of(e.KeyExpired)))

    assert [type(event) for event in world.of(e.SecretRetired, e.KeyExpired)] == [
        e.SecretRetired,
        e.KeyExpired,
    ]


async def test_what_is_due_is_not_lost_when_its_group_comes_to_nothing(world: World, ledger: Process) -> None:
    from domain.ports import LogUnavailableError  # noqa: PLC0415  # only here

    key = await ledger.key(100)
    await ledger.execute(reserve(key, "h1", 60, seconds=10))

    def full() -> None:
        raise LogUnavailableError("PostgreSQL refused the group: No space left on device")

    ledger.log.before_append = full
    world.clock.advance(10 * SECOND)
    ledger.wake()
    await asyncio.sleep(0.05)
    assert ledger.wallet(key).reserved == 60
    ledger.log.before_append = lambda: None

    await until(lambda: ledger.wallet(key).reserved == 0)
    assert len(world.of(e.ReservationExpired)) == 1


async def test_more_that_is_due_than_one_group_takes_is_recorded_in_several(
    world: World, ledger: Process
) -> None:
    key = await ledger.key(10_000)
    await ledger.together(*(reserve(key, f"h{n}", 1, seconds=10) for n in range(2_500)))

    world.clock.advance(10 * SECOND)
    ledger.wake()

    await until(lambda: ledger.wallet(key).reserved == 0)
    assert len(world.of(e.ReservationExpired)) == 2_500


async def test_a_clock_that_steps_back_revives_nothing(world: World, ledger: Process) -> None:
    key = await ledger.key(100, expires_at=world.clock.now() + 20 * SECOND)
    world.clock.advance(21 * SECOND)
    await ledger.execute(c.Tick())

    world.clock.advance(-60 * SECOND)

    assert (await ledger.charge(key, "r1", 1)).code == "expired"
    instants = [event.at for event in world.decoded()]
    assert instants == sorted(instants)


# -- sightings


@pytest.fixture
def sightings() -> Sightings:
    return Sightings()


MINUTE = 60 * SECOND


def test_a_key_is_written_down_at_once_and_then_once_a_minute(sightings: Sightings) -> None:
    now = 1_000 * MINUTE
    sightings.seen("key_1", now)
    first = sightings.take(now)
    for n in range(59):
        sightings.seen("key_1", now + n * SECOND)
    early = sightings.take(now + 59 * SECOND)
    later = sightings.take(now + MINUTE)

    assert first is not None
    assert early is None
    assert later is not None
    assert first.seen == (("key_1", now, 1),)
    assert later.seen == (("key_1", now + 58 * SECOND, 59),)


def test_denials_are_counted_and_written_once_a_minute(sightings: Sightings) -> None:
    now = 1_000 * MINUTE
    for _ in range(5):
        sightings.denied("key_1", "rate_limited", now)
    first = sightings.take(now)
    sightings.denied("key_1", "expired", now)

    assert first is not None
    assert first.denied[0].counts == {"rate_limited": 5}
    assert sightings.take(now + 59 * SECOND) is None
    assert sightings.take(now + MINUTE) is not None


def test_a_denial_with_a_request_id_is_written_at_once_for_somebody_may_look_for_it(
    sightings: Sightings,
) -> None:
    now = 1_000 * MINUTE
    for n in range(30):
        sightings.denied("key_1", "billing_shortfall", now, f"r{n}")
    first = sightings.take(now)
    sightings.denied("key_1", "billing_shortfall", now, "one more")
    second = sightings.take(now + SECOND)

    assert first is not None
    assert second is not None
    assert first.denied[0].counts == {"billing_shortfall": 30}
    assert len(first.denied[0].requests) == 20  # a cap: an attacker cannot flood the log
    assert [one.request_id for one in second.denied[0].requests] == ["one more"]


def test_a_refused_charge_is_noted_with_all_that_it_asked_for(sightings: Sightings) -> None:
    use = Use(model="gpt-5", provider="openai", project_id="prj_1", tenant=Tenant(user_id="u-1"))
    asked = Refused("r1", 3, "1.5", use, {"trace": "t-1"})
    now = 1_000 * MINUTE
    sightings.denied("key_1", "model_denied", now, "free")
    sightings.denied("key_1", "billing_shortfall", now, asked)
    taken = sightings.take(now)

    assert taken is not None
    assert taken.denied[0].requests[1] == e.Denial(
        request_id="r1", code="billing_shortfall", at=now, base_micros=3, price_multiplier="1.5",
        amount_micros=5, model="gpt-5", provider="openai", project_id="prj_1", tenant_user_id="u-1",
    )  # fmt: skip
    assert taken.denied[0].metadata == {"1": {"trace": "t-1"}}
    sightings.put_back(taken)
    assert sightings.take(now) == taken


def test_metadata_of_refusals_is_kept_up_to_a_bound(sightings: Sightings) -> None:
    now = 1_000 * MINUTE
    large = {"x": "y" * 16_000}
    for n in range(70):
        sightings.denied(f"key_{n}", "expired", now, Refused(f"r{n}", 1, "1", Use(), large))
    first = sightings.take(now)
    sightings.denied("key_1", "expired", now, Refused("later", 1, "1", Use(), large))
    second = sightings.take(now)

    assert first is not None
    assert second is not None
    assert sum(len(one.requests) for one in first.denied) == 70
    assert sum(len(one.metadata) for one in first.denied) == 1_048_576 // 16_008
    assert second.denied[0].metadata == {"0": large}


def test_what_could_not_be_written_is_due_again(sightings: Sightings) -> None:
    now = 1_000 * MINUTE
    sightings.seen("key_1", now)
    sightings.denied("key_2", "expired", now, "r1")
    taken = sightings.take(now)
    assert taken is not None
    assert sightings.take(now) is None

    sightings.seen("key_1", now + SECOND)
    sightings.put_back(taken)
    again = sightings.take(now + SECOND)

    assert again is not None
    assert again.seen == (("key_1", now + SECOND, 2),)
    assert taken.denied == again.denied


async def test_uses_that_were_seen_reach_the_log(world: World, ledger: Process) -> None:
    key = await ledger.key(10)
    for _ in range(3):
        ledger.ledger.seen(key.id, world.clock.now())
    ledger.ledger.denied(key.id, "ip_denied")
    assert ledger.ledger.last_used_at(key.id) == world.clock.now()

    await until(lambda: bool(world.of(e.KeysSeen)) and bool(world.of(e.UsageDenied)))

    [seen] = world.of(e.KeysSeen)
    assert isinstance(seen, e.KeysSeen)
    assert seen.seen == ((key.id, world.clock.now(), 3),)
    assert (await ledger.execute(charge(key, "r1", 1))).result.code == "valid"


async def test_the_owner_lets_the_log_forget_what_nobody_asks_for_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "_FIRST_PRUNE_SECONDS", 0.01)
    monkeypatch.setattr(upkeep, "_PRUNE_SECONDS", 0.01)
    owner, follower = await world.process().started(), world.process()
    follower.start()

    await until(lambda: owner.pruned >= 2)

    assert follower.pruned == 0
