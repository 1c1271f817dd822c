"""A log whose standby must have every commit: nothing is said to be durable, or owned, before it has it."""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest

from domain.ports import Group, LogUnavailableError, NewEvent, OutcomeUnknownError
from infra.embedded.postgres import DATABASE
from infra.postgres.confirming import CONFIRMING_CLASS
from infra.postgres.connections import UnsafeDatabaseError
from infra.postgres.log import PostgresLog
from keyledger_language.history import HistoryPoint
from tests.contract.log_worlds import (
    BrokenOff,
    MemoryStandbyWorld,
    OwnedLog,
    PostgresStandbyWorld,
    StandbyWorld,
    eventually,
)
from tests.replicas import Replicas
from tests.replicas import replicated as replicated_pair

T = TypeVar("T")

MARK = (77).to_bytes(8)
"""What the ids of groups begin with here, so that all events have one mark."""


@pytest.fixture(params=("memory", "postgres"))
async def world(request: pytest.FixtureRequest) -> AsyncIterator[StandbyWorld]:
    if request.param == "memory":
        memory = MemoryStandbyWorld()
        yield memory
        await memory.close()
        return
    async with own_database(request.getfixturevalue("pair")) as postgres:
        yield postgres


@pytest.fixture(scope="module")
def pair(replica_template: Path) -> Iterator[Replicas]:
    """One for all tests that break nothing of it which they cannot mend."""
    with replicated_pair(replica_template) as made:
        yield made


@pytest.fixture
async def replicated(pair: Replicas) -> AsyncIterator[PostgresStandbyWorld]:
    async with own_database(pair) as world:
        yield world


@pytest.fixture
async def splittable(replicated_postgres: Replicas) -> AsyncIterator[PostgresStandbyWorld]:
    world = PostgresStandbyWorld(replicated_postgres)
    yield world
    replicated_postgres.a.configure("synchronous_standby_names", "")
    await world.close()


@asynccontextmanager
async def own_database(pair: Replicas) -> AsyncGenerator[PostgresStandbyWorld]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(pair.a.conninfo("postgres"), autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}".encode())
        world = PostgresStandbyWorld(pair, name)
        yield world
        await world.close()
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def owner_of(world: StandbyWorld) -> OwnedLog:
    owner = world.session()
    assert await owner.acquire()
    return owner


def group(head: int) -> Group:
    behind = HistoryPoint(head, 77 if head else 0, 1)
    return Group(MARK + os.urandom(8), behind, [NewEvent("key_1", head + 1, "key.revoked", b"")])


async def is_waiting(asked: "asyncio.Future[Any]") -> bool:
    """It has not been answered, though there was time enough for that."""
    await asyncio.wait({asked}, timeout=0.5)
    return not asked.done()


def ask(what: Awaitable[Any]) -> "asyncio.Future[Any]":
    return asyncio.ensure_future(what)


async def test_an_append_is_answered_once_the_standby_has_it(world: StandbyWorld) -> None:
    log = await owner_of(world)
    assert await log.append(group(0)) == 1
    await world.lose_standby()

    appending = ask(log.append(group(1)))
    await world.until_an_append_waits(log)
    assert await is_waiting(appending)
    await world.return_standby()

    assert await asyncio.wait_for(appending, 30) == 2
    assert await log.confirm()


async def test_an_append_whose_wait_was_cancelled_is_not_answered_before_the_standby_has_it(
    world: StandbyWorld,
) -> None:
    """PostgreSQL says that it succeeded, and remarks only that it might not have been replicated."""
    log = await owner_of(world)
    await world.lose_standby()
    appending = ask(log.append(group(0)))
    await world.until_an_append_waits(log)

    await world.break_off(log, "cancelled")

    await eventually(lambda: _has(log, 1), "committed on this server alone")
    assert await is_waiting(appending)
    await world.return_standby()
    assert await asyncio.wait_for(appending, 30) == 1
    assert await log.append(group(1)) == 2, "the partition is held as before"


@pytest.mark.parametrize("how", ["terminated", "cut"])
async def test_an_append_whose_session_was_lost_is_not_known_before_the_standby_has_it(
    world: StandbyWorld, how: BrokenOff
) -> None:
    log, lost = await owner_of(world), group(0)
    await world.lose_standby()
    appending = ask(log.append(lost))
    await world.until_an_append_waits(log)

    await world.break_off(log, how)
    with pytest.raises(OutcomeUnknownError):
        await asyncio.wait_for(appending, 30)
    looking = ask(log.committed(lost))

    assert await is_waiting(looking)
    await world.return_standby()
    found = await asyncio.wait_for(looking, 30)
    while found is None:  # asked while it was under way still
        await asyncio.sleep(0.02)
        found = await log.committed(lost)
    assert found is True


async def test_what_no_commit_confirms_is_not_said_to_be_lost_either(world: StandbyWorld) -> None:
    log, never_sent = await owner_of(world), group(0)
    await world.lose_standby()

    looking = ask(log.committed(never_sent))

    assert await is_waiting(looking)
    await world.return_standby()
    assert await asyncio.wait_for(looking, 30) is False


async def test_ownership_is_confirmed_once_the_standby_has_a_later_commit(world: StandbyWorld) -> None:
    log = await owner_of(world)
    assert await log.confirm()
    assert not await log.waits_for_standby()
    await world.lose_standby()

    confirming = ask(log.confirm())

    assert await is_waiting(confirming)
    await eventually(log.waits_for_standby, "it says that it waits for the standby")
    await world.return_standby()
    assert await asyncio.wait_for(confirming, 30)
    assert not await log.waits_for_standby()


async def test_a_lock_that_is_lost_is_known_without_the_standby(world: StandbyWorld) -> None:
    log = await owner_of(world)
    await world.lose_standby()
    await world.lose_lock(log)

    assert not await asyncio.wait_for(log.confirm(), 30)


async def test_the_next_may_take_the_partition_but_is_not_confirmed_without_the_standby(
    world: StandbyWorld,
) -> None:
    first, second = await owner_of(world), world.session()
    await world.lose_standby()
    await world.lose_lock(first)

    assert await second.acquire()
    confirming = ask(second.confirm())

    assert await is_waiting(confirming)
    await world.return_standby()
    assert await asyncio.wait_for(confirming, 30)


async def test_what_is_read_as_durable_is_on_the_standby(world: StandbyWorld) -> None:
    """Broken off, an append is to be seen on the primary, and nowhere else."""
    log, reader = await owner_of(world), world.session()
    await log.append(group(0))
    assert [one.position for one in await reader.read_durable(0, 10)] == [1]
    await world.lose_standby()
    appending = ask(log.append(group(1)))
    await world.until_an_append_waits(log)
    await world.break_off(log, "terminated")
    with pytest.raises(OutcomeUnknownError):
        await asyncio.wait_for(appending, 30)

    reading = ask(reader.read_durable(0, 10))

    assert await is_waiting(reading)
    assert [one.position for one in await reader.read(0, 10)] == [1, 2]
    await eventually(reader.waits_for_standby, "it says why")
    await world.return_standby()
    assert [one.position for one in await asyncio.wait_for(reading, 30)] == [1, 2]


async def test_where_nothing_is_new_a_reader_waits_for_no_standby(world: StandbyWorld) -> None:
    log, reader = await owner_of(world), world.session()
    assert await reader.read_durable(0, 10) == []
    await log.append(group(0))
    await reader.read_durable(0, 10)
    await world.lose_standby()

    assert len(await asyncio.wait_for(reader.read_durable(0, 10), 30)) == 1
    assert await asyncio.wait_for(reader.read_durable(1, 10), 30) == []


async def _has(log: OwnedLog, position: int) -> bool:
    return await log.head() == position


# -- what only PostgreSQL does --------------------------------------------------------------------


async def test_a_confirmation_whose_wait_was_cancelled_proves_nothing(
    replicated: PostgresStandbyWorld,
) -> None:
    log = await owner_of(replicated)
    await replicated.lose_standby()
    confirming = ask(log.confirm())

    for verb in ("pg_cancel_backend", "pg_terminate_backend", "pg_cancel_backend"):
        await eventually(lambda: replicated.ask(replicated.waiting()), "it waits")
        [pid] = await replicated.ask(replicated.waiting())
        await replicated.ask(f"SELECT 1 WHERE {verb}({pid})")
        assert await is_waiting(confirming)

    await replicated.return_standby()
    assert await asyncio.wait_for(confirming, 30)


async def insistently(asking: Callable[[], Awaitable[T]]) -> T:
    """As the ledger does: a session that breaks while it connects says so, and is asked again."""
    while True:
        with suppress(LogUnavailableError):
            return await asking()
        await asyncio.sleep(0.05)


async def test_however_many_ask_one_commit_hangs(replicated: PostgresStandbyWorld) -> None:
    """Also when the processes that asked are gone: their sessions wait on."""
    log, gone, other = await owner_of(replicated), replicated.session(), replicated.session()
    await replicated.lose_standby()
    asked = [ask(insistently(partial(one.committed, group(0)))) for one in (gone, log, other, log)]
    asked.append(ask(insistently(log.confirm)))
    await eventually(lambda: replicated.ask(replicated.waiting()), "one waits")
    await replicated.break_off(log, "cut")

    await asyncio.sleep(0.5)

    assert len(await replicated.ask(replicated.waiting())) == 1
    await replicated.return_standby()
    answers = await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert answers[-1] is False, "the writer's session was cut as well"


async def test_however_many_read_one_commit_hangs_and_an_owner_does_not_wait_behind_it(
    replicated: PostgresStandbyWorld,
) -> None:
    log, readers = await owner_of(replicated), [replicated.session() for _ in range(3)]
    await log.append(group(0))
    await replicated.lose_standby()
    reading = [ask(one.read_durable(0, 10)) for one in readers]
    await eventually(lambda: replicated.ask(replicated.waiting()), "one waits")
    confirming = ask(log.confirm())

    async with asyncio.timeout(30):
        while len(await replicated.ask(replicated.waiting())) < 2:
            await asyncio.sleep(0.01)
    assert await is_waiting(confirming)
    assert len(await replicated.ask(replicated.waiting())) == 2, "one of readers, and the owner's"
    await replicated.return_standby()
    assert await asyncio.wait_for(confirming, 30)
    assert [len(found) for found in await asyncio.wait_for(asyncio.gather(*reading), 30)] == [1, 1, 1]


async def test_a_confirmation_holds_its_lock_for_as_long_as_it_waits(
    replicated: PostgresStandbyWorld,
) -> None:
    """Then nobody adds another; and a message that had no transaction id would not wait at all."""
    log = await owner_of(replicated)
    await replicated.lose_standby()
    confirming = ask(log.confirm())

    held = f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND classid = {CONFIRMING_CLASS}"
    await eventually(lambda: replicated.ask(held), "the lock is held")
    await eventually(lambda: replicated.ask(replicated.waiting()), "it waits")

    assert await replicated.ask(held) == await replicated.ask(replicated.waiting())
    await replicated.return_standby()
    await asyncio.wait_for(confirming, 30)


async def test_ownership_on_a_deposed_primary_is_never_confirmed(splittable: PostgresStandbyWorld) -> None:
    log, replicas = await owner_of(splittable), splittable.replicas
    await log.append(group(0))
    await splittable.lose_standby()
    await asyncio.to_thread(replicas.promote, replicas.b)
    new = PostgresLog(replicas.b.conninfo(), readers=1, wakeups=False)
    assert await new.acquire()
    assert await new.confirm()
    assert await new.append(group(1)) == 2

    confirming = ask(log.confirm())

    assert await is_waiting(confirming)
    await new.close()


async def test_another_server_does_not_confirm_the_session_of_this_one(
    splittable: PostgresStandbyWorld,
) -> None:
    """The writer on one of two hosts, the confirming session on the other: neither is proof."""
    log, replicas = await owner_of(splittable), splittable.replicas
    assert isinstance(log, PostgresLog)
    await splittable.lose_standby()
    await asyncio.to_thread(replicas.promote, replicas.b)
    elsewhere = PostgresLog(replicas.b.conninfo(), readers=1, wakeups=False)
    assert await elsewhere.acquire()
    elsewhere._session = log._session

    assert not await elsewhere.confirm()
    await elsewhere.close()


async def test_without_a_named_standby_nothing_is_written_to_confirm(ledger_database: str) -> None:
    log = PostgresLog(ledger_database, readers=1, wakeups=False)
    await log.acquire()
    await log.confirm()
    with psycopg.connect(ledger_database, autocommit=True) as connection:
        written = "SELECT pg_current_wal_insert_lsn()"
        for _ in range(10):  # the server itself writes now and then: every 15 s, and as it cleans up
            before = connection.execute(written).fetchone()
            for _ in range(20):
                assert await log.confirm()
            if connection.execute(written).fetchone() == before:
                break
        else:
            pytest.fail("something is written each time")
    await log.close()


async def test_without_a_named_standby_nothing_is_written_to_read(ledger_database: str) -> None:
    log = PostgresLog(ledger_database, readers=1, wakeups=False)
    await log.acquire()
    with psycopg.connect(ledger_database, autocommit=True) as connection:
        written = "SELECT pg_current_wal_insert_lsn()"
        for head in range(3):
            await log.append(group(head))
            for _ in range(10):
                before = connection.execute(written).fetchone()
                log._proven = None  # as if it had read nothing yet
                assert len(await log.read_durable(head, 10)) == 1
                if connection.execute(written).fetchone() == before:
                    break
            else:
                pytest.fail("something is written each time")
    assert log._confirming._connection is None, "not even a session"
    await log.close()


async def test_a_fail_over_while_a_reader_waits_takes_back_what_it_waits_with(
    replicated_postgres: Replicas,
) -> None:
    replicas, world = replicated_postgres, PostgresStandbyWorld(replicated_postgres)
    log = await owner_of(world)
    await log.append(group(0))
    reader = PostgresLog(replicas.conninfo, readers=1, wakeups=False)
    await world.lose_standby()
    appending = ask(log.append(group(1)))
    await world.until_an_append_waits(log)
    await world.break_off(log, "terminated")
    with pytest.raises(OutcomeUnknownError):
        await asyncio.wait_for(appending, 30)
    reading = ask(reader.read_durable(0, 10))
    assert await is_waiting(reading)

    await asyncio.to_thread(replicas.promote, replicas.b)
    replicas.a.kill()

    with pytest.raises(LogUnavailableError, match="event 2"):
        await asyncio.wait_for(reading, 30)
    assert [one.position for one in await reader.read_durable(0, 10)] == [1]
    await reader.close()
    await world.close()


async def test_a_reader_and_its_confirming_session_on_two_servers_prove_nothing_and_connect_anew(
    splittable: PostgresStandbyWorld,
) -> None:
    """The brain is split: the events of the deposed primary are not on the one that answers commits."""
    log, replicas = await owner_of(splittable), splittable.replicas
    await splittable.lose_standby()
    await asyncio.to_thread(replicas.promote, replicas.b)
    appending = ask(log.append(group(0)))
    await splittable.until_an_append_waits(log)
    await splittable.break_off(log, "terminated")
    with pytest.raises(OutcomeUnknownError):
        await asyncio.wait_for(appending, 30)
    reader = PostgresLog(replicas.a.conninfo(), readers=1, wakeups=False)
    reader._confirming._conninfo = replicas.b.conninfo()
    assert len(await reader.read(0, 10)) == 1
    reader._readers._conninfo = replicas.b.conninfo()

    with pytest.raises(LogUnavailableError, match="not on the primary"):
        await asyncio.wait_for(reader.read_durable(0, 10), 30)

    assert await asyncio.wait_for(reader.read_durable(0, 10), 30) == []
    await reader.close()


async def test_a_server_whose_commits_do_not_wait_for_the_named_standby_is_refused(
    pair: Replicas,
) -> None:
    conninfo = pair.a.conninfo()
    log = PostgresLog(f"{conninfo} options='-c synchronous_commit=local'")

    with pytest.raises(UnsafeDatabaseError, match=r"names synchronous standbys \(\*\).*=local"):
        await log.acquire()

    await log.close()


@pytest.mark.parametrize("given, used", [("remote_write", "on"), ("remote_apply", "remote_apply")])
async def test_the_writer_waits_for_the_standbys_disk_at_least(
    ledger_database: str, given: str, used: str
) -> None:
    log = PostgresLog(f"{ledger_database} options='-c synchronous_commit={given}'", wakeups=False)
    await log.acquire()
    assert log._writer is not None

    assert log._writer.execute("SHOW synchronous_commit").fetchone() == (used,)
    await log.close()
