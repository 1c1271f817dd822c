"""What every public stream promises: an order, no hole, no second copy, and it tells where it ends."""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import nats
import pytest
from nats.js.api import DiscardPolicy
from nats.js.errors import NotFoundError

from domain.publishing import (
    Message,
    Place,
    PublicStream,
    StreamConflictError,
    StreamRefusedError,
    StreamUnavailableError,
    place_in,
    place_message,
)
from infra.embedded import EmbeddedNats, EmbeddedServers
from infra.nats.public_stream import peek
from infra.nats.streams import StreamLimits
from tests.contract.stream_worlds import MemoryStreamWorld, NatsStreamWorld, StreamWorld, until
from tests.servers import server_folder

WORLDS = ("memory", "nats")


@pytest.fixture(scope="module")
def own_nats() -> Iterator[EmbeddedNats]:
    """A server that this module may kill."""
    with server_folder() as folder, EmbeddedServers(folder / "data", postgres=False) as servers:
        yield servers.nats


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[StreamWorld]:
    if request.param == "memory":
        yield MemoryStreamWorld()
        return
    server: EmbeddedNats = request.getfixturevalue("own_nats")
    world = NatsStreamWorld(server)
    yield world
    server.start()
    await delete_stream(server.url)


async def delete_stream(url: str) -> None:
    connection = await nats.connect(url)
    with contextlib.suppress(NotFoundError):
        await connection.jetstream().delete_stream("KEYLEDGER")
    await connection.close()


def message(number: int, body: bytes = b"{}") -> Message:
    place = Place("log", 1, 0, number)
    headers = place_message(place, 0).headers | {"Nats-Msg-Id": f"1.0.{number}"}
    return Message("keyledger.events._._.KeyRevoked", headers, body)


async def send(stream: PublicStream, *numbers: int, behind: int) -> None:
    await stream.send([message(number) for number in numbers], behind=behind)
    await stream.settle()


async def test_a_new_stream_ends_at_0_and_holds_no_place(world: StreamWorld) -> None:
    stream = await world.open()
    end = await stream.end()
    await stream.close()

    assert (end.sequence, end.headers) == (0, None)


async def test_messages_are_stored_in_their_order_and_the_last_one_says_where_it_ends(
    world: StreamWorld,
) -> None:
    stream = await world.open()
    await send(stream, 1, 2, 3, behind=0)
    await send(stream, 4, behind=3)
    end = await stream.end()
    await stream.close()

    assert stream.acknowledged == 4
    assert end.sequence == 4
    assert place_in(end.headers) == Place("log", 1, 0, 4)
    assert [stored.message_id for stored in await world.stored()] == ["1.0.1", "1.0.2", "1.0.3", "1.0.4"]


async def test_many_are_under_way_at_once(world: StreamWorld) -> None:
    stream = await world.open()
    for behind in range(0, 10_000, 1000):
        await stream.send([message(behind + n) for n in range(1, 1001)], behind=behind)
    await stream.settle()
    await stream.close()

    assert stream.acknowledged == 10_000


async def test_what_does_not_follow_the_end_is_not_stored_nor_anything_behind_it(world: StreamWorld) -> None:
    first, second = await world.open(), await world.open()
    await send(first, 1, 2, behind=0)

    with pytest.raises(StreamConflictError):
        await send(second, 3, 4, behind=1)
    with pytest.raises(StreamConflictError):
        second.check()
    await first.close()
    await second.close()

    assert len(await world.stored()) == 2


async def test_a_message_whose_place_was_taken_takes_those_behind_it_along(world: StreamWorld) -> None:
    # By the sequence alone 4 would fit: it expects two messages before it, and finds two.
    first, second = await world.open(), await world.open()
    await send(first, 1, 2, behind=0)
    await send(second, 99, behind=2)

    with pytest.raises(StreamConflictError):
        await send(first, 3, 4, 5, behind=2)
    await first.close()
    await second.close()

    assert [stored.message_id for stored in await world.stored()] == ["1.0.1", "1.0.2", "1.0.99"]


async def test_the_same_message_is_not_stored_twice(world: StreamWorld) -> None:
    first, second = await world.open(), await world.open()
    await send(first, 1, 2, behind=0)

    with pytest.raises(StreamConflictError):
        await send(second, 1, behind=0)
    third = await world.open()
    with pytest.raises(StreamConflictError):
        await send(third, 2, behind=2)
    for stream in (first, second, third):
        await stream.close()

    assert len(await world.stored()) == 2


async def test_an_emptied_stream_knows_its_sequence_and_no_place(world: StreamWorld) -> None:
    stream = await world.open()
    await send(stream, 1, 2, behind=0)
    await world.purge()
    end = await stream.end()
    await stream.close()

    assert (end.sequence, end.headers) == (2, None)


async def test_a_connection_that_was_lost_says_so_and_a_new_one_goes_on(world: StreamWorld) -> None:
    stream = await world.open()
    await send(stream, 1, 2, behind=0)
    world.go_down()

    with pytest.raises(StreamUnavailableError):
        await send(stream, 3, behind=2)
    await until(lambda: _fails(stream))
    await stream.close()
    with pytest.raises(StreamUnavailableError):
        await world.open()
    world.come_up()
    again = await world.open()
    end = await again.end()
    await send(again, 3, behind=end.sequence)
    await again.close()

    assert [stored.message_id for stored in await world.stored()] == ["1.0.1", "1.0.2", "1.0.3"]


def _fails(stream: PublicStream) -> bool:
    try:
        stream.check()
    except StreamUnavailableError:
        return True
    return False


# -- JetStream only -------------------------------------------------------------------------------


@pytest.fixture
async def nats_world(own_nats: EmbeddedNats) -> AsyncIterator[NatsStreamWorld]:
    yield NatsStreamWorld(own_nats)
    own_nats.start()
    await delete_stream(own_nats.url)


async def send_without_end(stream: PublicStream) -> None:
    for behind in itertools.count(1, 100):
        await stream.send([message(behind + n, b"x" * 10_000) for n in range(1, 101)], behind=behind)


async def test_a_frozen_server_is_noticed_with_data_unsent_and_let_go_of(nats_world: NatsStreamWorld) -> None:
    stream = await nats_world.open()
    await send(stream, 1, behind=0)
    pid = nats_world.server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    try:
        with pytest.raises(StreamUnavailableError):
            await send_without_end(stream)
        await stream.close()
        seconds = time.monotonic() - started
    finally:
        os.kill(pid, signal.SIGCONT)

    assert seconds < 4  # nats-py's own reconnecting hung for more than 10
    # What lay in its socket's buffer may still arrive; in order, if so.
    ids = [stored.message_id for stored in await nats_world.stored()]
    assert ids == [f"1.0.{n}" for n in range(1, len(ids) + 1)]


async def test_a_restarted_server_has_what_it_acknowledged(nats_world: NatsStreamWorld) -> None:
    stream = await nats_world.open()
    await send(stream, *range(1, 501), behind=0)
    nats_world.kill()
    await stream.close()
    nats_world.come_up()

    again = await nats_world.open()
    assert (await again.end()).sequence == 500
    await send(again, 501, 502, behind=500)
    await again.close()


async def test_limits_can_be_changed_and_what_else_an_operator_set_stays(nats_world: NatsStreamWorld) -> None:
    await (await nats_world.open()).close()
    connection = await nats.connect(nats_world.server.url)
    config = (await connection.jetstream().stream_info("KEYLEDGER")).config
    config.description = "ours"
    await connection.jetstream().update_stream(config)

    nats_world.limits = StreamLimits(max_bytes=1 << 20, max_age_seconds=60.0)
    stream = await nats_world.open()
    await stream.close()
    found = (await connection.jetstream().stream_info("KEYLEDGER")).config
    await connection.close()

    assert (found.max_bytes, found.max_age, found.description) == (1 << 20, 60.0, "ours")
    assert stream.most_age_seconds == 60.0


async def test_a_stream_that_would_refuse_new_messages_is_refused(nats_world: NatsStreamWorld) -> None:
    connection = await nats.connect(nats_world.server.url)
    await connection.jetstream().add_stream(
        name="KEYLEDGER", subjects=["keyledger.events.>"], discard=DiscardPolicy.NEW
    )
    await connection.close()

    with pytest.raises(StreamRefusedError, match="delete it"):
        await nats_world.open()


async def test_a_stream_that_is_not_there_is_not_made_by_looking(nats_world: NatsStreamWorld) -> None:
    assert (await peek(nats_world.server.url, 0)).sequence == 0

    with contextlib.suppress(NotFoundError):
        assert not await nats_world.stored()
