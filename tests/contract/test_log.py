"""What every log promises: one owner, one order without holes, all of a group or nothing."""

import os
from collections.abc import AsyncIterator

import pytest

from domain.ports import (
    ClaimTakenError,
    Group,
    HeadMovedError,
    LogUnavailableError,
    NewClaim,
    NewDataKey,
    NewEvent,
    NotOwnerError,
    OtherHistoryError,
    OutcomeUnknownError,
    TakenClaim,
)
from infra.owners import Owner
from keyledger_language.history import HistoryPoint, RecordedEvent, mark_of
from keyledger_language.instants import DAY, SECOND
from tests.contract.log_worlds import LogWorld, MemoryWorld, OwnedLog, PostgresWorld

WORLDS = ("memory", "postgres")
DIGEST = bytes(range(16))
MARK = (77).to_bytes(8)
"""What the ids of groups begin with here, so that all events have one mark."""


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[LogWorld]:
    if request.param == "memory":
        yield MemoryWorld()
        return
    postgres = PostgresWorld(request.getfixturevalue("ledger_database"))
    yield postgres
    await postgres.close()


@pytest.fixture
async def log(world: LogWorld) -> OwnedLog:
    owner = world.session()
    assert await owner.acquire()
    return owner


def behind(head: int) -> HistoryPoint:
    return HistoryPoint(head, 77 if head else 0, 1)


def group(head: int, *events: NewEvent, claims: tuple[NewClaim, ...] = ()) -> Group:
    return Group(MARK + os.urandom(8), behind(head), events, claims)


def event(stream: str, version: int, data: bytes = b"data") -> NewEvent:
    return NewEvent(stream, version, "key.revoked", data)


def claim(digest: bytes = DIGEST, *, expires_at: int | None = None) -> NewClaim:
    return NewClaim(digest, 0, expires_at, b"first answer")


# -- order ----------------------------------------------------------------------------------------


async def test_an_empty_log_has_the_head_0(log: OwnedLog) -> None:
    assert await log.head() == 0
    assert await log.read(0, 10) == []


async def test_events_get_the_positions_behind_the_head_in_their_order(log: OwnedLog) -> None:
    assert await log.append(group(0, event("key_1", 1), event("org_1", 1))) == 2
    assert await log.append(group(2, event("key_1", 2, b"\x00\xff"))) == 3

    assert await log.read(0, 10) == [
        RecordedEvent(1, "key_1", 1, "key.revoked", b"data", 77),
        RecordedEvent(2, "org_1", 1, "key.revoked", b"data", 77),
        RecordedEvent(3, "key_1", 2, "key.revoked", b"\x00\xff", 77),
    ]
    assert await log.head() == 3


async def test_text_and_bytes_come_back_as_they_were(log: OwnedLog) -> None:
    odd = NewEvent("schlüssel_✓", 1, "key.revoked", bytes(range(256)) * 40)

    await log.append(group(0, odd))

    assert (await log.read(0, 1))[0][1:5] == odd


async def test_it_is_read_in_pages(log: OwnedLog) -> None:
    await log.append(group(0, *(event("key_1", n) for n in range(1, 8))))

    assert [e.position for e in await log.read(0, 3)] == [1, 2, 3]
    assert [e.position for e in await log.read(3, 3)] == [4, 5, 6]
    assert [e.position for e in await log.read(6, 3)] == [7]
    assert await log.read(7, 3) == []


async def test_events_are_read_by_position_and_those_that_do_not_exist_are_left_out(log: OwnedLog) -> None:
    await log.append(group(0, *(event("key_1", n) for n in range(1, 8))))

    assert [e.position for e in await log.read_at([6, 2, 99, 0, 2])] == [2, 6]


async def test_a_writer_that_is_behind_writes_nothing(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))

    with pytest.raises(HeadMovedError):
        await log.append(group(0, event("key_1", 2)))
    with pytest.raises(HeadMovedError):
        await log.append(group(2, event("key_1", 2)))

    assert await log.head() == 1


async def test_every_event_has_the_mark_of_its_group(log: OwnedLog) -> None:
    first = Group(os.urandom(16), await log.end(), [event("key_1", 1), event("key_1", 2)])
    await log.append(first)
    second = Group(os.urandom(16), first.end, [event("key_1", 3)])
    await log.append(second)

    marks = [mark_of(first.group_id), mark_of(first.group_id), mark_of(second.group_id)]
    assert [e.mark for e in await log.read(0, 10)] == marks
    assert [e.mark for e in await log.read_at([1, 2, 3])] == marks
    assert await log.end() == second.end == HistoryPoint(3, marks[-1], 1)


async def test_a_group_of_claims_alone_changes_no_mark(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))
    nothing = Group(os.urandom(16), await log.end(), [], [NewClaim(DIGEST, -1, None, b"answer")])

    assert await log.append(nothing) == 1
    assert await log.end() == nothing.end == behind(1)


async def test_a_writer_with_the_right_number_of_another_history_writes_nothing(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))

    for mark in (0, 78, -77):
        other = behind(1)._replace(mark=mark)
        with pytest.raises(OtherHistoryError):
            await log.append(Group(os.urandom(16), other, [event("key_1", 2)]))

    assert await log.end() == behind(1)


async def test_a_writer_of_an_epoch_that_is_over_writes_nothing(world: LogWorld, log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))
    world.raise_epoch()

    with pytest.raises(OtherHistoryError):
        await log.append(group(1, event("key_1", 2)))

    assert await log.end() == behind(1)._replace(epoch=2)
    await log.append(Group(os.urandom(16), await log.end(), [event("key_1", 2)]))


async def test_a_version_that_a_stream_has_is_a_mistake_and_nothing_is_written(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))

    with pytest.raises(ValueError, match="version"):
        await log.append(group(1, event("key_2", 1), event("key_1", 1)))

    assert await log.head() == 1


async def test_refused_groups_leave_no_holes(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1), claims=(claim(),)))
    for _ in range(3):
        with pytest.raises(ClaimTakenError):
            await log.append(group(1, event("key_1", 2), claims=(claim(),)))
    await log.append(group(1, event("key_1", 2)))

    assert [e.position for e in await log.read(0, 10)] == [1, 2]


async def test_a_group_of_ten_thousand_fits_and_one_more_does_not(log: OwnedLog) -> None:
    many = [event("org_1", version) for version in range(1, 10_002)]

    with pytest.raises(ValueError, match="10000"):
        await log.append(group(0, *many))
    assert await log.append(group(0, *many[:10_000])) == 10_000


# -- claims ---------------------------------------------------------------------------------------


async def test_a_claim_points_to_its_event_and_keeps_its_answer(log: OwnedLog) -> None:
    claims = (NewClaim(DIGEST, 1, None, b"the answer"), NewClaim(b"b" * 16, 0))
    await log.append(group(0, event("key_1", 1)))

    await log.append(group(1, event("key_1", 2), event("key_1", 3), claims=claims))

    assert await log.claims([DIGEST, b"b" * 16, b"c" * 16]) == {
        DIGEST: TakenClaim(3, b"the answer"),
        b"b" * 16: TakenClaim(2, None),
    }
    assert await log.claims([]) == {}


async def test_an_empty_answer_is_an_answer(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1), claims=(NewClaim(DIGEST, 0, None, b""),)))

    assert await log.claims([DIGEST]) == {DIGEST: TakenClaim(1, b"")}


async def test_a_taken_claim_refuses_the_whole_group(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1), claims=(claim(),)))

    with pytest.raises(ClaimTakenError):
        await log.append(group(1, event("key_1", 2), claims=(claim(b"new" + bytes(13)), claim())))

    assert await log.head() == 1
    assert await log.claims([b"new" + bytes(13)]) == {}


async def test_one_group_cannot_take_a_claim_twice(log: OwnedLog) -> None:
    with pytest.raises(ClaimTakenError):
        await log.append(group(0, event("key_1", 1), event("key_1", 2), claims=(claim(), claim())))

    assert await log.head() == 0


async def test_an_expired_claim_is_free_again(log: OwnedLog, world: LogWorld) -> None:
    expires_at = world.clock.now() + DAY
    await log.append(group(0, event("key_1", 1), claims=(claim(expires_at=expires_at),)))

    world.clock.set(expires_at - 1)
    assert DIGEST in await log.claims([DIGEST])
    with pytest.raises(ClaimTakenError):
        await log.append(group(1, event("key_1", 2), claims=(claim(),)))

    world.clock.set(expires_at)
    assert await log.claims([DIGEST]) == {}
    await log.append(group(1, event("key_1", 2), claims=(claim(),)))

    world.clock.advance(1_000 * DAY)
    assert await log.claims([DIGEST]) == {DIGEST: TakenClaim(2, b"first answer")}


async def test_a_claim_may_stand_without_an_event(log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))

    head = await log.append(group(1, claims=(NewClaim(DIGEST, -1, None, b"nothing changed"),)))

    assert head == 1
    assert await log.claims([DIGEST]) == {DIGEST: TakenClaim(1, b"nothing changed")}


async def test_a_group_is_in_the_log_once(log: OwnedLog) -> None:
    first = group(0, event("key_1", 1))
    await log.append(first)

    with pytest.raises(ClaimTakenError):
        await log.append(first._replace(behind=first.end, events=[event("key_1", 2)]))

    assert await log.head() == 1


async def test_data_keys_are_written_with_the_group_that_needs_them(log: OwnedLog) -> None:
    keys = (NewDataKey("org_1", b"k" * 32), NewDataKey("platform", b"p" * 32))

    with pytest.raises(HeadMovedError):
        await log.append(group(7, event("org_1", 1))._replace(data_keys=keys))
    assert await log.data_keys() == {}

    await log.append(group(0, event("org_1", 1))._replace(data_keys=keys))
    assert await log.data_keys() == {"org_1": b"k" * 32, "platform": b"p" * 32}


# -- owning ---------------------------------------------------------------------------------------


async def test_of_two_sessions_one_is_the_owner(world: LogWorld) -> None:
    first, second = world.session(), world.session()

    assert await first.acquire()
    assert await first.acquire(), "asking twice is fine"
    assert not await second.acquire()
    assert await first.confirm()
    assert not await second.confirm()


async def test_a_released_partition_goes_to_the_next(world: LogWorld, log: OwnedLog) -> None:
    second = world.session()

    await log.release()

    assert await second.acquire()
    assert not await log.confirm()
    assert not await log.acquire()


async def test_only_the_owner_appends_and_anyone_reads(world: LogWorld, log: OwnedLog) -> None:
    other = world.session()
    await log.append(group(0, event("key_1", 1)))

    with pytest.raises(NotOwnerError):
        await other.append(group(1, event("key_1", 2)))
    await other.acquire()
    with pytest.raises(NotOwnerError):
        await other.append(group(1, event("key_1", 2)))

    assert len(await other.read(0, 10)) == 1


async def test_an_owner_that_lost_its_session_cannot_append(world: LogWorld, log: OwnedLog) -> None:
    await world.end(log)
    next_owner = world.session()
    assert await next_owner.acquire()
    await next_owner.append(group(0, event("key_1", 1)))

    assert not await log.confirm()
    with pytest.raises((NotOwnerError, OutcomeUnknownError)):
        await log.append(group(1, event("key_1", 2)))

    assert await next_owner.head() == 1


async def test_the_owner_says_where_it_answers(world: LogWorld, log: OwnedLog) -> None:
    other = world.session()
    assert await other.owner() is None

    await log.announce("http://10.0.0.1:8700", "incarnation-1")

    assert await other.owner() == Owner("http://10.0.0.1:8700", "incarnation-1", os.getpid())
    with pytest.raises(NotOwnerError):
        await other.announce("http://10.0.0.2:8700", "incarnation-2")


async def test_a_log_has_an_identity_and_an_epoch(log: OwnedLog, world: LogWorld) -> None:
    identity = await log.identity()

    assert identity.epoch == 1
    assert identity == await world.session().identity()


# -- losing the connection ------------------------------------------------------------------------


@pytest.mark.parametrize("committed", [True, False])
async def test_a_lost_acknowledgement_is_looked_up_by_the_group(
    world: LogWorld,
    log: OwnedLog,
    committed: bool,  # noqa: FBT001  # the case
) -> None:
    await log.append(group(0, event("key_1", 1)))
    lost = group(1, event("key_1", 2))

    world.lose_acknowledgement(log, committed=committed)
    with pytest.raises(OutcomeUnknownError):
        await log.append(lost)
    with pytest.raises(NotOwnerError):
        await log.append(lost)
    assert await log.acquire(), "the partition is taken again, on a new connection"

    assert await log.committed(lost) is committed
    assert await log.head() == (2 if committed else 1)


async def test_it_recovers_when_its_storage_does(world: LogWorld, log: OwnedLog) -> None:
    await log.append(group(0, event("key_1", 1)))

    world.go_down()
    with pytest.raises((LogUnavailableError, OutcomeUnknownError)):
        await log.append(group(1, event("key_1", 2)))
    with pytest.raises(LogUnavailableError):
        await log.head()
    with pytest.raises(LogUnavailableError):
        await log.acquire()
    assert not await log.confirm()

    world.come_up()
    assert await log.acquire()
    await log.append(group(await log.head(), event("key_1", 3)))
    assert [e.version for e in await log.read(0, 10)][-1] == 3


async def test_a_clock_that_goes_on_does_not_matter_to_claims_for_ever(
    world: LogWorld, log: OwnedLog
) -> None:
    await log.append(group(0, event("key_1", 1), claims=(claim(),)))

    world.clock.advance(100 * 365 * DAY + SECOND)

    assert DIGEST in await log.claims([DIGEST])
