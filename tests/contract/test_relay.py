"""The way out: what is committed is published, each event once, in order, whatever is killed."""

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any, cast

import nats
import pytest
from nats.js.errors import NotFoundError

from domain.ports import Log, OutcomeUnknownError
from domain.publishing import Place, place_in, place_message
from infra.embedded import EmbeddedNats, EmbeddedServers
from infra.memory.log import MemoryLog, MemoryStorage
from infra.nats.relay import RelayStatus, published_place, run_relay
from infra.nats.watch import PublishedWatch
from infra.wakeups import LocalWakeups
from keyledger_language.events import KeysSeen
from keyledger_language.history import RecordedEvent
from tests.contract.relay_worlds import (
    LOG_ID,
    NOON,
    ORGANIZATION,
    GrowingLog,
    Polling,
    RunningRelay,
    mapper,
    revocation,
)
from tests.contract.stream_worlds import MemoryStreamWorld, NatsStreamWorld, Stored, StreamWorld, until
from tests.servers import server_folder

WORLDS = ("memory", "nats")


@pytest.fixture(scope="module")
def own_nats() -> Iterator[EmbeddedNats]:
    """A server that this module may kill."""
    with server_folder() as folder, EmbeddedServers(folder / "data", postgres=False) as servers:
        yield servers.nats


@pytest.fixture
async def nats_world(own_nats: EmbeddedNats) -> AsyncIterator[NatsStreamWorld]:
    yield NatsStreamWorld(own_nats)
    own_nats.start()
    connection = await nats.connect(own_nats.url)
    with contextlib.suppress(NotFoundError):
        await connection.jetstream().delete_stream("KEYLEDGER")
    await connection.close()


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> StreamWorld:
    if request.param == "memory":
        return MemoryStreamWorld()
    found: NatsStreamWorld = request.getfixturevalue("nats_world")
    return found


@pytest.fixture
async def book() -> GrowingLog:
    log = MemoryLog()
    assert await log.acquire()
    return GrowingLog(log)


def assert_each_once(stored: list[Stored], head: int, *, first: int = 1, epoch: int = 1) -> None:
    assert [s.message_id for s in stored] == [f"{epoch}.0.{n}" for n in range(first, head + 1)]
    assert [s.position for s in stored] == list(range(first, head + 1))
    assert all(a.sequence + 1 == b.sequence for a, b in pairwise(stored))


# -- reading ----------------------------------------------------------------------------------------


class CountingLog:
    """Counts how often it is read."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.readings = 0
        self._since = time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def read_durable(self, after: int, limit: int) -> list[RecordedEvent]:
        self.readings += 1
        return await self._log.read_durable(after, limit)

    def start(self) -> None:
        self.readings, self._since = 0, time.monotonic()

    @property
    def in_idleness(self) -> float:
        """How often a relay may have read that looks twice a second."""
        return (time.monotonic() - self._since) / 0.5


async def test_what_was_committed_together_is_read_once(world: StreamWorld, book: GrowingLog) -> None:
    assert isinstance(book.log, MemoryLog)
    wakeups, log = LocalWakeups(), CountingLog(book.log)
    relay = RunningRelay(cast(Log, log), world.open, wakeups=wakeups)
    await relay.has(lambda status: status.state == "publishing")
    log.start()
    for _ in range(20):
        wakeups.hear(await book.charge(3))
        await relay.reaches(book.head)

    assert log.readings <= 20 + 1 + log.in_idleness
    await relay.end()
    assert_each_once(await world.stored(), 60)


async def test_of_a_head_that_the_log_has_not_it_does_not_ask_again_and_again(
    world: StreamWorld, book: GrowingLog
) -> None:
    assert isinstance(book.log, MemoryLog)
    wakeups, log = LocalWakeups(), CountingLog(book.log)
    await book.charge(3)
    relay = RunningRelay(cast(Log, log), world.open, wakeups=wakeups)
    await relay.reaches(3)
    log.start()
    wakeups.hear(1_000_000)
    await asyncio.sleep(1)

    assert 1 <= log.readings <= 3 + log.in_idleness
    await book.charge(1)
    await relay.reaches(4)
    await relay.end()


# -- what is on the standby ------------------------------------------------------------------------


async def test_what_a_fail_over_takes_back_was_told_to_nobody(world: StreamWorld) -> None:
    """The wait for the standby was broken off: the primary shows the event, and dies with it."""
    log = MemoryLog()
    assert await log.acquire()
    book = GrowingLog(log)
    await book.charge(1)
    relay = RunningRelay(log, world.open)
    await relay.reaches(1)
    promoted = log.storage.copy()
    log.storage.lose_standby()
    appending = asyncio.create_task(book.charge(1))
    while not await log.waits_for_standby():
        await asyncio.sleep(0)
    log.break_off("terminated")
    with pytest.raises(OutcomeUnknownError):
        await appending
    await relay.has(lambda status: status.problem is not None or status.position > 1)

    assert [one.position for one in await world.stored()] == [1]
    assert "PostgreSQL waits for its standby" in (relay.status.problem or "")
    assert relay.status.lag == 1
    log.storage.restore(promoted)
    log.storage.return_standby()
    assert await log.acquire()
    await book.append(revocation(2))
    await relay.reaches(2)
    await relay.has(lambda status: status.problem is None)
    await relay.end()
    stored = await world.stored()
    assert_each_once(stored, 2)
    assert stored[1].subject.endswith("KeyRevoked")


async def test_a_relay_that_waits_for_the_standby_can_be_stopped(
    world: StreamWorld, book: GrowingLog
) -> None:
    log = book.log
    assert isinstance(log, MemoryLog)
    await book.charge(1)
    log.storage.lose_standby()
    relay = RunningRelay(log, world.open)
    await relay.has(lambda status: status.problem is not None or status.position > 0)

    assert relay.status.position == 0
    await relay.end()
    assert relay.status.published == 0


# -- what is published ----------------------------------------------------------------------------


async def test_each_committed_event_is_published_once_in_the_order_of_the_log(
    world: StreamWorld, book: GrowingLog
) -> None:
    await book.charge(2_500)
    relay = RunningRelay(book.log, world.open)
    await relay.reaches(2_500)
    await book.append(revocation(2_501))
    await relay.reaches(2_501)
    await relay.end()

    stored = await world.stored()
    assert_each_once(stored, 2_501)
    assert stored[0].subject == f"keyledger.events.{ORGANIZATION}.key_01JD{1:022d}.UsageCharged"
    assert stored[-1].subject == f"keyledger.events.{ORGANIZATION}.key_1.KeyRevoked"
    assert (relay.status.published, relay.status.lag, relay.status.state) == (2_501, 0, "stopped")


async def test_no_personal_field_is_published(world: StreamWorld, book: GrowingLog) -> None:
    await book.append(revocation(1))
    relay = RunningRelay(book.log, world.open)
    await relay.reaches(1)
    await relay.end()

    published = (await world.stored())[0].body
    assert b"found on a public page" not in published
    assert json.loads(published)["data"] == {"key_id": "key_1"}


async def test_an_event_too_large_for_the_server_is_published_without_its_data(book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    world.storage.most_bytes = 10_000
    seen = tuple((f"key_01JD{n:022d}", NOON, 1) for n in range(1_000))
    await book.append(KeysSeen(at=NOON, seen=seen))
    await book.charge(1)
    relay = RunningRelay(book.log, world.open)
    await relay.reaches(2)
    await relay.end()

    stored = await world.stored()
    assert_each_once(stored, 2)
    assert json.loads(stored[0].body)["data"] is None


# -- going on -------------------------------------------------------------------------------------


async def test_a_new_relay_goes_on_where_the_stream_ends(world: StreamWorld, book: GrowingLog) -> None:
    await book.charge(10)
    first = RunningRelay(book.log, world.open)
    await first.reaches(10)
    await first.end()
    await book.charge(10)

    second = RunningRelay(book.log, world.open)
    await second.reaches(20)
    await second.end()

    assert_each_once(await world.stored(), 20)
    assert second.status.published == 10


async def test_while_the_stream_is_down_the_log_waits_and_the_lag_is_seen(
    world: StreamWorld, book: GrowingLog
) -> None:
    relay = RunningRelay(book.log, world.open)
    await book.charge(10)
    await relay.reaches(10)
    world.go_down()
    await book.charge(100)
    await relay.has(lambda status: status.state == "disconnected" and status.lag == 100)
    assert relay.status.problem is not None
    world.come_up()
    await relay.reaches(110)
    await relay.end()

    assert_each_once(await world.stored(), 110)
    assert relay.status.problem is None


async def test_it_starts_before_the_stream_can_be_reached(world: StreamWorld, book: GrowingLog) -> None:
    world.go_down()
    await book.charge(5)
    relay = RunningRelay(book.log, world.open)
    await relay.has(lambda status: status.state == "disconnected")
    assert not relay.status.connected
    world.come_up()
    await relay.reaches(5)
    await relay.end()

    assert_each_once(await world.stored(), 5)


async def test_while_the_log_is_down_it_waits(book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    relay = RunningRelay(book.log, world.open)
    await book.charge(5)
    await relay.reaches(5)
    assert isinstance(book.log, MemoryLog)
    book.log.storage.up = False
    await relay.has(lambda status: status.state == "disconnected", seconds=2)
    book.log.storage.up = True
    assert await book.log.acquire()
    await book.charge(5)
    await relay.reaches(10)
    await relay.end()

    assert_each_once(await world.stored(), 10)


@pytest.mark.parametrize("stored", range(0, 30, 3))
async def test_a_stream_that_dies_after_any_message_is_completed(stored: int, book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    await book.charge(30)
    world.storage.dies_after = stored
    relay = RunningRelay(book.log, world.open)
    await relay.has(lambda status: status.state == "disconnected")
    await relay.kill()
    world.come_up()
    again = RunningRelay(book.log, world.open)
    await again.reaches(30)
    await again.end()

    assert_each_once(await world.stored(), 30)


# -- not alone ------------------------------------------------------------------------------------


async def test_two_relays_publish_each_event_once_and_one_stands_by(
    world: StreamWorld, book: GrowingLog
) -> None:
    relays = [RunningRelay(book.log, world.open) for _ in range(2)]
    async with asyncio.timeout(20):
        while all(relay.status.state != "standing_by" for relay in relays):
            await book.charge(50)
            await asyncio.sleep(0.01)
    head = await book.charge(50)
    for relay in relays:
        await relay.reaches(head)
        await relay.end()

    assert_each_once(await world.stored(), head)


async def test_a_relay_that_stands_by_takes_over_from_one_that_is_killed(
    world: StreamWorld, book: GrowingLog
) -> None:
    relays = [RunningRelay(book.log, world.open) for _ in range(2)]
    async with asyncio.timeout(20):
        while all(relay.status.state != "standing_by" for relay in relays):
            await book.charge(50)
            await asyncio.sleep(0.01)
    standing_by, active = sorted(relays, key=lambda relay: relay.status.state != "standing_by")
    await active.kill()
    head = await book.charge(50)
    await standing_by.reaches(head)
    await standing_by.end()

    assert_each_once(await world.stored(), head)


# -- whose stream it is ---------------------------------------------------------------------------


async def test_a_stream_that_was_lost_is_filled_again_from_the_start(
    world: StreamWorld, book: GrowingLog
) -> None:
    await book.charge(10)
    first = RunningRelay(book.log, world.open)
    await first.reaches(10)
    await first.end()
    await world.purge()

    second = RunningRelay(book.log, world.open)
    await second.reaches(10)
    await second.end()

    assert_each_once(await world.stored(), 10)


async def test_a_stream_that_was_lost_is_filled_from_where_the_operator_says(
    world: StreamWorld, book: GrowingLog
) -> None:
    await book.charge(10)
    relay = RunningRelay(book.log, world.open, republish_after=7)
    await relay.reaches(10)
    await relay.end()

    assert_each_once(await world.stored(), 10, first=8)


async def test_a_new_epoch_is_published_whole(world: StreamWorld, book: GrowingLog) -> None:
    await book.charge(10)
    before = RunningRelay(book.log, world.open)
    await before.reaches(10)
    await before.end()
    restored = MemoryLog()
    restored.storage.raise_epoch()
    assert await restored.acquire()
    book = GrowingLog(restored)
    await book.charge(4)

    after = RunningRelay(restored, world.open)
    await after.reaches(4)
    await after.has(lambda status: status.published == 4)
    await after.end()

    assert_each_once((await world.stored())[10:], 4, epoch=2)


async def test_an_event_that_is_not_in_the_log_any_more_stops_it_until_the_epoch_is_raised(
    world: StreamWorld,
) -> None:
    log = MemoryLog()
    assert await log.acquire()
    book = GrowingLog(log)
    await book.charge(5)
    backup = log.storage.copy()
    await book.charge(3)
    before = RunningRelay(log, world.open)
    await before.reaches(8)
    await before.end()
    restore(log, backup)
    book.head = 5
    await book.charge(6)  # as many as before, and more

    relay = RunningRelay(log, world.open)
    await relay.has(lambda status: status.state == "refused")
    assert "keyledger new-epoch" in str(relay.status.problem)
    assert len(await world.stored()) == 8

    log.storage.raise_epoch()
    await relay.reaches(11)
    await relay.has(lambda status: status.published == 11)
    await relay.end()
    assert_each_once((await world.stored())[8:], 11, epoch=2)


async def test_a_log_that_is_restored_under_it_stops_it_though_it_is_longer_now(world: StreamWorld) -> None:
    log = MemoryLog()
    assert await log.acquire()
    book = GrowingLog(log)
    await book.charge(5)
    backup = log.storage.copy()
    await book.charge(3)
    relay = RunningRelay(log, world.open)
    await relay.reaches(8)

    restore(log, backup)
    book.head = 5
    await book.charge(6)  # at once: it was never seen shorter
    await relay.has(lambda status: status.state == "refused")
    await relay.end()

    assert "keyledger new-epoch" in str(relay.status.problem)
    assert len(await world.stored()) == 8


async def test_a_raised_epoch_is_noticed_while_it_runs(world: StreamWorld) -> None:
    log = MemoryLog()
    assert await log.acquire()
    book = GrowingLog(log)
    await book.charge(3)
    relay = RunningRelay(log, world.open)
    await relay.reaches(3)

    log.storage.raise_epoch()

    await relay.has(lambda status: status.published == 6)
    await relay.end()
    assert_each_once((await world.stored())[3:], 3, epoch=2)


def restore(log: MemoryLog, backup: MemoryStorage) -> None:
    """Put a backup in the place of the log; its writer is the owner still."""
    log.storage.restore(backup)
    log.storage.owner = log


REFUSED = """
    log        epoch  number   why
    another    1      3        another log
    same       2      3        lost events
    same       1      99       lost events
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines()[1:])
async def test_a_stream_that_this_log_cannot_follow_is_left_alone(
    line: str, world: StreamWorld, book: GrowingLog
) -> None:
    log_id, epoch, number, why = line.split(maxsplit=3)
    place = Place(LOG_ID if log_id == "same" else "another", int(epoch), 0, int(number))
    stream = await world.open()
    await stream.send([place_message(place, 0)], behind=0)
    await stream.settle()
    await stream.close()
    await book.charge(10)

    relay = RunningRelay(book.log, world.open)
    await relay.has(lambda status: status.state == "refused")
    await relay.end()

    assert why in str(relay.status.problem)
    stream = await world.open()
    assert (await stream.end()).sequence == 1
    await stream.close()


async def mark(book: GrowingLog) -> int:
    return (await book.log.end()).mark


async def test_before_its_last_message_is_too_old_the_place_is_repeated(book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    world.storage.most_age_seconds = 0.4
    world.storage.stored_at = 0.0
    await book.charge(3)
    relay = RunningRelay(book.log, world.open)
    await relay.reaches(3)
    async with asyncio.timeout(5):
        while world.storage.last_sequence == 3:
            await asyncio.sleep(0.05)
    last = world.storage.last_sequence
    assert place_in(world.storage.messages[last].headers) == Place(LOG_ID, 1, 0, 3, await mark(book))
    assert world.storage.messages[last].subject == "keyledger.relay"
    await book.charge(3)
    await relay.reaches(6)
    await relay.end()

    events = [s for s in await world.stored() if s.subject != "keyledger.relay"]
    assert [s.position for s in events] == [1, 2, 3, 4, 5, 6]


async def test_an_event_that_cannot_be_read_stops_the_stream_and_is_named(book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    await book.charge(3)
    assert isinstance(book.log, MemoryLog)
    unknown = book.log.storage.events[1]._replace(type="key.sung")
    book.log.storage.events[1] = unknown
    relay = RunningRelay(book.log, world.open)
    await relay.has(lambda status: status.state == "refused")
    await relay.end()

    assert "key.sung" in str(relay.status.problem)


async def test_a_log_with_a_hole_is_not_published_beyond_it(book: GrowingLog) -> None:
    world = MemoryStreamWorld()
    await book.charge(3)
    assert isinstance(book.log, MemoryLog)
    del book.log.storage.events[1]
    relay = RunningRelay(book.log, world.open)
    await relay.has(lambda status: status.state == "refused")
    await relay.end()

    assert "misses positions" in str(relay.status.problem)
    assert await world.stored() == []


# -- the whole way --------------------------------------------------------------------------------


async def test_it_runs_on_a_url_and_a_doctor_sees_how_far_it_is(
    nats_world: NatsStreamWorld, book: GrowingLog
) -> None:
    stop, status, url = asyncio.Event(), RelayStatus(), nats_world.server.url
    await book.charge(10)
    running = asyncio.create_task(
        run_relay(
            book.log,
            mapper().decode,
            url,
            log_id=LOG_ID,
            partition=0,
            wakeups=Polling(book.log),
            stop=stop,
            status=status,
        )
    )
    async with asyncio.timeout(10):
        while status.position < 10:
            await asyncio.sleep(0.01)
    stop.set()
    await running

    assert await published_place(url, 0) == Place(LOG_ID, 1, 0, 10, await mark(book))


async def test_a_watch_sees_how_far_it_is_from_another_process(
    nats_world: NatsStreamWorld, book: GrowingLog
) -> None:
    stop, watch = asyncio.Event(), PublishedWatch(nats_world.server.url, 0, log_id=LOG_ID, epoch=lambda: 1)
    watching = asyncio.create_task(watch.run(stop))
    await until(lambda: watch.position == 0)
    await book.charge(10)
    relay = RunningRelay(book.log, nats_world.open)
    await until(lambda: watch.position == 10)
    await relay.end()
    nats_world.kill()
    await until(lambda: not watch.reachable)
    nats_world.come_up()
    await until(lambda: watch.reachable)
    stop.set()
    await asyncio.wait_for(watching, 5)

    assert watch.position == 10


async def test_whatever_is_killed_each_event_is_there_once_in_order(
    nats_world: NatsStreamWorld, book: GrowingLog
) -> None:
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"KEYLEDGER_TEST_SEED={seed}")
    chance = random.Random(seed)
    relay = RunningRelay(book.log, nats_world.open)
    for _ in range(12):
        for _ in range(chance.randrange(1, 6)):
            await book.charge(chance.randrange(1, 400))
            await asyncio.sleep(chance.random() * 0.02)
        match chance.choice(["relay", "nats", "freeze", "both"]):
            case "relay":
                await relay.kill()
                relay = RunningRelay(book.log, nats_world.open)
            case "nats":
                nats_world.kill()
                await book.charge(10)
                nats_world.come_up()
            case "freeze":
                await freeze(nats_world, chance.random())
            case _:
                nats_world.kill()
                await relay.kill()
                nats_world.come_up()
                relay = RunningRelay(book.log, nats_world.open)
    await relay.reaches(book.head, seconds=30)
    await relay.end()

    assert_each_once(await nats_world.stored(), book.head)


async def freeze(world: NatsStreamWorld, seconds: float) -> None:
    pid = world.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def test_a_place_is_read_only_from_a_relays_own_message() -> None:
    good = place_message(Place("log", 1, 0, 42), 7).headers

    assert place_in(good) == Place("log", 1, 0, 42)
    assert place_in(None) is None
    assert place_in({}) is None
    assert place_in({"Nats-Msg-Id": "1.0.42"}) is None
    for odd in ("1.0", "a.b.c", "1.0.x", "-1.0.2", ""):
        assert place_in(good | {"Nats-Msg-Id": odd}) is None
