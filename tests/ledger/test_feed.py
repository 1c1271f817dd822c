"""The change feed: what is committed, in order, from any position of a reader."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from domain.ports import Log
from domain.projecting import FoundEvent
from infra.memory.log import MemoryLog
from infra.postgres.mapper import EventMapper
from keyledger_language.events import Event
from services.ledger import feed as feeds
from services.ledger import tail as tails
from services.ledger.feed import MOST_SCANNED, Feed, UnknownTypeError, tags_of
from services.ledger.tail import EventFilter
from tests.contract.relay_worlds import ORGANIZATION, GrowingLog, Polling, revocation

EVERYTHING = EventFilter(tags_of(()))


class MemoryEvents:
    def __init__(self, log: Log, mapper: EventMapper[Event]) -> None:
        self._log = log
        self._mapper = mapper
        self.reads: list[int] = []
        self.decoded: list[int] = []

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[FoundEvent]:
        self.reads.append(first)
        recorded = await self._log.read(first - 1, last - first + 1)
        wanted = (organization_id or "").encode()
        found = [r for r in recorded if r.type in types and wanted in r.data]
        self.decoded += [r.position for r in found]
        return [FoundEvent(r.position, r.version, self._mapper.decode(r)) for r in found]


@pytest.fixture
async def book() -> GrowingLog:
    log = MemoryLog()
    assert await log.acquire()
    return GrowingLog(log)


@pytest.fixture
def events(book: GrowingLog) -> MemoryEvents:
    return MemoryEvents(book.log, book._writer)


@pytest.fixture
def feed(book: GrowingLog, events: MemoryEvents) -> Feed:
    return Feed(
        events,
        lambda: book.head,
        Polling(book.log),
        partition=0,
        epoch=lambda: 1,
        source="urn:keyledger:test",
    )


def only(*names: str) -> EventFilter:
    return EventFilter(tags_of(names))


def of(organization_id: str) -> EventFilter:
    return EVERYTHING._replace(organization_id=organization_id, like="all of it")


async def test_an_empty_log_has_an_empty_page_and_says_where_to_go_on(feed: Feed) -> None:
    assert await feed.page(after=0, wanted=EVERYTHING, limit=50) == ([], 0)


async def test_behind_the_end_there_is_nothing_yet(feed: Feed, book: GrowingLog) -> None:
    await book.charge(5)

    assert await feed.page(after=99, wanted=EVERYTHING, limit=50) == ([], 99)


async def test_pages_follow_each_other_to_the_end(feed: Feed, book: GrowingLog) -> None:
    await book.charge(5)

    first, seen_first = await feed.page(after=0, wanted=EVERYTHING, limit=3)
    second, seen_second = await feed.page(after=3, wanted=EVERYTHING, limit=3)

    assert [item.position for item in first] == ["0-1", "0-2", "0-3"]
    assert [item.sequence for item in second] == [4, 5]
    assert (seen_first, seen_second) == (3, 5)
    assert await feed.page(after=5, wanted=EVERYTHING, limit=3) == ([], 5)


async def test_personal_fields_are_shown(feed: Feed, book: GrowingLog) -> None:
    await book.append(revocation(1))

    items, _ = await feed.page(after=0, wanted=EVERYTHING, limit=1)

    assert items[0].data == {"key_id": "key_1", "reason": "found on a public page"}


async def test_types_are_chosen_by_either_name(feed: Feed, book: GrowingLog) -> None:
    await book.charge(3)
    await book.append(revocation(4))
    await book.charge(3)

    for name in ("KeyRevoked", "keyledger.KeyRevoked"):
        items, seen = await feed.page(after=0, wanted=only(name), limit=50)
        assert [item.position for item in items] == ["0-4"]
        assert seen == 7


async def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(UnknownTypeError, match="KeySung"):
        tags_of(["KeySung"])


async def test_an_organization_sees_its_own_events_only(feed: Feed, book: GrowingLog) -> None:
    await book.charge(2)
    await book.disable(2)  # of no organization

    own, _ = await feed.page(after=0, wanted=of(ORGANIZATION), limit=50)

    assert [item.sequence for item in own] == [1, 2]
    assert await feed.page(after=0, wanted=of("org_else"), limit=50) == ([], 4)


async def test_a_full_page_goes_on_behind_its_last_event(feed: Feed, book: GrowingLog) -> None:
    for n in range(4):
        await book.charge(10)
        await book.append(revocation(n))
    found, after = [], 0
    for _ in range(4):
        items, after = await feed.page(after=after, wanted=only("KeyRevoked"), limit=1)
        found += [item.sequence for item in items]

    assert found == [11, 22, 33, 44]
    assert await feed.page(after=after, wanted=only("KeyRevoked"), limit=1) == ([], 44)


async def test_a_page_looks_at_so_many_events_and_no_more(feed: Feed, book: GrowingLog) -> None:
    for _ in range(MOST_SCANNED // 1_000 + 1):
        await book.charge(1_000)
    await book.append(revocation(1))

    assert await feed.page(after=0, wanted=only("KeyRevoked"), limit=50) == ([], MOST_SCANNED)


# -- Server-Sent Events ---------------------------------------------------------------------------


async def test_a_stream_begins_behind_its_position_and_follows_the_log(feed: Feed, book: GrowingLog) -> None:
    await book.charge(3)
    stop = asyncio.Event()
    stream = feed.stream(after=1, wanted=EVERYTHING, goes_on=lambda: not stop.is_set())

    assert await anext(stream) == b"retry: 1000\n\n"
    messages = parse(await anext(stream))
    assert [m["id"] for m in messages] == ["0-2", "0-3"]
    assert messages[0]["event"] == "keyledger.UsageCharged"
    assert json.loads(messages[0]["data"])["sequence"] == 2
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    await book.append(revocation(4))
    assert [m["id"] for m in parse(await asyncio.wait_for(waiting, 2))] == ["0-4"]
    stop.set()
    assert [chunk async for chunk in stream] == []


async def test_a_quiet_stream_beats_and_moves_the_reader_on(
    feed: Feed, book: GrowingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.05)
    await book.charge(3)
    stream = feed.stream(after=0, wanted=only("KeyRevoked"), goes_on=always)

    assert await anext(stream) == b"retry: 1000\n\n"
    assert await asyncio.wait_for(anext(stream), 2) == b": heartbeat\nid: 0-3\n\n"
    assert await asyncio.wait_for(anext(stream), 2) == b": heartbeat\n\n"
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator


async def test_nothing_is_read_ahead_for_a_slow_reader(
    feed: Feed, book: GrowingLog, events: MemoryEvents
) -> None:
    await book.charge(1_000)
    stream = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
    await anext(stream)
    await anext(stream)
    await asyncio.sleep(0.02)

    assert events.reads == [1]
    assert parse(await anext(stream))[0]["id"] == "0-101"


async def test_when_the_log_cannot_be_reached_the_stream_ends_and_the_reader_comes_back(
    feed: Feed, book: GrowingLog
) -> None:
    await book.charge(2)
    stream = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
    await anext(stream)
    last = parse(await anext(stream))[-1]["id"]
    assert isinstance(book.log, MemoryLog)
    await book.charge(1)
    book.log.storage.up = False

    assert [chunk async for chunk in stream] == []
    assert last == "0-2"


def always() -> bool:
    return True


def parse(chunk: bytes) -> list[dict[str, str]]:
    blocks = chunk.decode().strip().split("\n\n")
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


# -- many at once ---------------------------------------------------------------------------------


async def ids_of(stream: AsyncIterator[bytes], until: int) -> list[int]:
    """The positions that a stream sends, up to this one."""
    found: list[int] = []
    while until not in found:
        chunk = await asyncio.wait_for(anext(stream), 5)
        found += [int(m["id"].removeprefix("0-")) for m in parse(chunk) if "data" in m]
    return found


async def test_what_is_new_is_decoded_once_however_many_follow(
    feed: Feed, book: GrowingLog, events: MemoryEvents
) -> None:
    await book.charge(3)
    wishes = [EVERYTHING, of(ORGANIZATION), only("UsageCharged"), only("KeyRevoked", "UsageCharged")]
    streams = [feed.stream(after=3, wanted=wishes[n % 4], goes_on=always) for n in range(40)]
    for stream in streams:
        await anext(stream)
    following = [asyncio.create_task(ids_of(stream, 23)) for stream in streams]
    await asyncio.sleep(0.05)
    await book.charge(10)
    await asyncio.sleep(0.1)
    await book.charge(10)

    assert await asyncio.gather(*following) == [list(range(4, 24))] * 40
    assert events.decoded == list(range(4, 24))
    await asyncio.gather(*(stream.aclose() for stream in streams))  # type: ignore[attr-defined]  # generators


async def test_who_comes_while_the_log_grows_misses_nothing_and_sees_nothing_twice(
    feed: Feed, book: GrowingLog
) -> None:
    async def follow(delay: float) -> list[int]:
        await asyncio.sleep(delay)
        stream = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
        found = await ids_of(stream, 600)
        await stream.aclose()  # type: ignore[attr-defined]  # an async generator
        return found

    following = [asyncio.create_task(follow(n * 0.007)) for n in range(40)]
    for _ in range(100):
        await book.charge(6)
        await asyncio.sleep(0.002)

    assert await asyncio.gather(*following) == [list(range(1, 601))] * 40


def test_who_comes_while_a_batch_is_handed_out_is_not_told_its_events_twice() -> None:
    channel = tails.Channel(EVERYTHING)
    channel.begin(0)
    channel.add(1, b"one")
    channel.add(2, b"two")

    told, seen = channel.behind(0, 100)
    channel.add(3, b"three")
    channel.reach(3)

    assert (told, seen) == ([b"one", b"two"], 2)
    assert channel.behind(seen, 100) == ([b"three"], 3)


async def test_a_slow_reader_keeps_nothing_and_goes_on_from_the_log(
    feed: Feed, book: GrowingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "_MOST_KEPT_BYTES", 20_000)
    slow = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
    quick = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
    await anext(slow)
    await book.charge(1)
    assert await ids_of(slow, 1) == [1]
    for _ in range(20):
        end = await book.charge(50)
        await ids_of(quick, end)

    channel = feed._tail.join(EVERYTHING)
    assert channel._size < 60_000
    assert not channel.covers(1)
    feed._tail.leave(channel)
    assert await ids_of(slow, 1_001) == list(range(2, 1_002))


async def test_nobody_who_follows_means_that_nothing_is_read(
    feed: Feed, book: GrowingLog, events: MemoryEvents
) -> None:
    stream = feed.stream(after=0, wanted=EVERYTHING, goes_on=always)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.02)
    waiting.cancel()
    await asyncio.wait({waiting})
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    await book.charge(5)
    await asyncio.sleep(0.1)

    assert events.reads == []
    assert feed._tail.followers == 0


async def test_what_belongs_to_others_is_not_even_decoded(
    feed: Feed, book: GrowingLog, events: MemoryEvents
) -> None:
    await book.charge(2)
    await book.disable(50)  # of no organization
    stream = feed.stream(after=0, wanted=of(ORGANIZATION), goes_on=always)
    await anext(stream)
    assert await ids_of(stream, 2) == [1, 2]
    waiting = asyncio.create_task(ids_of(stream, 103))
    await asyncio.sleep(0.05)
    await book.disable(50)
    await book.charge(1)

    assert await waiting == [103]
    assert events.decoded == [1, 2, 103]
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
