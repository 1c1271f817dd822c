"""What only the log in PostgreSQL can promise: grants, dying sessions, wake-ups, safe settings."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from domain.ports import (
    Group,
    HeadMovedError,
    NewClaim,
    NewEvent,
    NotOwnerError,
    OtherHistoryError,
    OutcomeUnknownError,
    StateRow,
)
from infra.clock import SystemClock
from infra.embedded import EmbeddedPostgres, EmbeddedServers
from infra.embedded.folder import DataFolder
from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import UnsafeDatabaseError, connect
from infra.postgres.log import PostgresLog
from infra.postgres.migrate import migrate
from infra.postgres.state_rows import PostgresStateRows
from infra.postgres.wakeups import WakeupListener
from keyledger_language.history import BEGINNING, HistoryPoint
from keyledger_language.instants import DAY
from keyledger_reading.connections import ledger_conninfo
from tests.contract.log_worlds import PostgresWorld
from tests.servers import initialised, server_folder


@pytest.fixture
async def world(ledger_database: str) -> AsyncIterator[PostgresWorld]:
    world = PostgresWorld(ledger_database)
    yield world
    await world.close()


@pytest.fixture
async def log(world: PostgresWorld) -> PostgresLog:
    log = world.session()
    assert await log.acquire()
    return log


MARK = (77).to_bytes(8)


def behind(head: int) -> HistoryPoint:
    return HistoryPoint(head, 77 if head else 0, 1)


def group(head: int, version: int, *claims: NewClaim) -> Group:
    return Group(MARK + os.urandom(8), behind(head), [NewEvent("key_1", version, "key.revoked", b"")], claims)


async def test_raising_the_epoch_waits_for_the_append_under_way_and_refuses_the_next(
    log: PostgresLog, ledger_database: str
) -> None:
    await log.append(group(0, 1))
    with psycopg.connect(ledger_database) as holding, ThreadPoolExecutor(1) as other:
        # As an append does, up to its commit.
        holding.execute("SELECT epoch FROM ledger.identity")
        raising = other.submit(raise_epoch, ledger_database)
        await until_waiting(ledger_database)
        late = asyncio.create_task(append_late(log))
        await asyncio.sleep(0.1)
        assert not raising.done()
        assert not late.done()
        holding.rollback()

        assert raising.result(10) == 2
        with pytest.raises(OtherHistoryError):
            await asyncio.wait_for(late, 10)
    assert await log.end() == behind(1)._replace(epoch=2)


async def append_late(log: PostgresLog) -> None:
    await log.append(group(1, 2))


def raise_epoch(database: str) -> int:
    with connect(database, "test") as connection:
        [(epoch,)] = connection.execute("SELECT ledger.raise_epoch(1, 0)").fetchall()
        return int(epoch)


async def until_waiting(database: str) -> None:
    """Until somebody waits for the lock that the epoch is raised under."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'"
    with psycopg.connect(database, autocommit=True) as connection:
        while connection.execute(waiting).fetchone() == (0,):  # PostgreSQL tells nobody
            await asyncio.sleep(0.01)


def test_the_epoch_is_raised_beyond_what_was_seen_and_once_for_each_time_that_it_was_read(
    ledger_database: str,
) -> None:
    with connect(ledger_database, "test") as connection:
        assert connection.execute("SELECT ledger.raise_epoch(1, 4)").fetchone() == (5,)
        with pytest.raises(psycopg.DatabaseError, match="the epoch is not 1 any more"):
            connection.execute("SELECT ledger.raise_epoch(1, 0)")


# -- append-only by grant -------------------------------------------------------------------------

FORBIDDEN = (
    "INSERT INTO ledger.events_p0 VALUES (9, 9, 'key_9', 'key.revoked', '')",
    "UPDATE ledger.events_p0 SET state = ''",
    "DELETE FROM ledger.events_p0",
    "TRUNCATE ledger.events_p0",
    "ALTER TABLE ledger.events_p0 DISABLE TRIGGER ALL",
    "DROP TABLE ledger.events_p0",
    "UPDATE ledger.claims_p0 SET position = 1",
    "DELETE FROM ledger.claims_p0",
    "DELETE FROM ledger.groups_p0",
    "UPDATE ledger.data_keys SET material = ''",
    "DELETE FROM ledger.data_keys",
    "UPDATE ledger.identity SET epoch = 7",
    "DELETE FROM ledger.migrations",
    "CALL ledger.create_partition(1)",
    "CREATE TABLE ledger.mine ()",
)


@pytest.mark.parametrize("statement", FORBIDDEN)
def test_the_service_cannot(ledger_database: str, statement: str) -> None:
    with (
        connect(ledger_database, "test") as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        connection.execute(statement.encode())


@pytest.mark.parametrize("verb", ["UPDATE ledger.events_p0 SET state = ''", "DELETE FROM ledger.events_p0"])
async def test_even_the_owner_of_the_table_is_stopped(
    log: PostgresLog, ledger_database: str, verb: str
) -> None:
    await log.append(group(0, 1))

    with (
        psycopg.connect(ledger_database) as owner,
        pytest.raises(psycopg.DatabaseError, match="the log is append-only"),
    ):
        owner.execute(verb.encode())


def test_the_service_may_make_what_is_derived(ledger_database: str) -> None:
    with connect(ledger_database, "test") as connection:
        connection.execute("CREATE TABLE projections.usage (n int)")
        connection.execute("CREATE SCHEMA projections_next")
        connection.execute("DROP SCHEMA projections CASCADE")
        connection.execute("ALTER SCHEMA projections_next RENAME TO projections")


def test_a_conninfo_keeps_what_it_says(ledger_database: str) -> None:
    given = conninfo_to_dict(ledger_conninfo(f"{ledger_database} keepalives_idle=60", "keyledger test"))

    assert given["keepalives_idle"] == "60"
    assert given["keepalives_count"] == "3"
    assert given["application_name"] == "keyledger test"


def test_a_url_that_is_none_is_refused_without_being_quoted() -> None:
    with pytest.raises(ValueError, match="not a valid URL or conninfo of libpq") as refusal:
        ledger_conninfo("host=localhost hunter2", "keyledger test")

    assert "hunter2" not in str(refusal.value)


# -- one owner ------------------------------------------------------------------------------------


async def test_sessions_that_race_for_the_lock_have_one_winner(world: PostgresWorld) -> None:
    sessions = [world.session() for _ in range(6)]

    for _ in range(5):
        won = await asyncio.gather(*(session.acquire() for session in sessions))
        assert sum(won) == 1
        await sessions[won.index(True)].release()


async def test_the_head_protects_even_two_that_believe_they_own_it(
    log: PostgresLog, ledger_database: str
) -> None:
    await log.append(group(0, 1))
    assert log._writer is not None
    log._writer.execute("SELECT pg_advisory_unlock_all()")
    other = PostgresLog(ledger_database)
    assert await other.acquire()
    await other.append(group(1, 2))

    with pytest.raises(NotOwnerError):
        await log.append(group(1, 2))
    await other.release()
    log._writer, log._owned = connect(ledger_database, "believer"), True
    register_packed_arrays(log._writer)
    with pytest.raises(HeadMovedError):
        await log.append(group(1, 2))
    await other.close()


async def test_confirm_notices_a_lock_that_is_gone_though_the_session_lives(log: PostgresLog) -> None:
    assert await log.confirm()
    assert log._writer is not None

    log._writer.execute("SELECT pg_advisory_unlock_all()")

    assert not await log.confirm()


# -- dying sessions -------------------------------------------------------------------------------


@contextmanager
def blocked_appends(database: str) -> Generator[None]:
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE ledger.groups_p0 IN ACCESS EXCLUSIVE MODE")
        yield
        connection.rollback()


async def test_a_backend_killed_amid_an_append_leaves_the_outcome_unknown(
    world: PostgresWorld, log: PostgresLog
) -> None:
    lost = group(0, 1)

    with blocked_appends(world.database):
        appending = asyncio.ensure_future(log.append(lost))
        await until_an_append_waits(world.database)
        world.kill_backend(log)
        with pytest.raises(OutcomeUnknownError):
            await appending

    assert await log.acquire()
    assert await log.committed(lost) is False
    assert await log.append(lost) == 1
    assert await log.committed(lost)


async def test_a_cancelled_append_wrote_nothing_and_the_owner_stays(
    world: PostgresWorld, log: PostgresLog
) -> None:
    with blocked_appends(world.database):
        appending = asyncio.ensure_future(log.append(group(0, 1)))
        await until_an_append_waits(world.database)
        assert log._writer is not None
        with psycopg.connect(world.database) as administrator:
            administrator.execute("SELECT pg_cancel_backend(%s)", (log._writer.info.backend_pid,))
        with pytest.raises(Exception, match="canceling"):
            await appending

    assert await log.confirm()
    assert await log.append(group(0, 1)) == 1


async def until_an_append_waits(database: str) -> None:
    query = "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'ledger.groups_p0'::regclass"
    deadline = time.monotonic() + 5
    with psycopg.connect(database, autocommit=True) as connection:
        while not connection.execute(query).fetchall():
            assert time.monotonic() < deadline, "the append never waited"
            await asyncio.sleep(0.01)


async def test_a_server_that_crashes_is_recovered_from_without_a_restart() -> None:
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
        postgres = servers.postgres
        migrate(postgres.dsn)
        log, rows = PostgresLog(postgres.dsn), PostgresStateRows(postgres.dsn)
        await log.acquire()
        await log.append(group(0, 1))
        await rows.save(behind(1), [StateRow("key_1", b"")], [], behind=BEGINNING)

        crash(postgres)
        with pytest.raises(OutcomeUnknownError):
            await log.append(group(1, 2))
        postgres.start()

        assert await log.acquire()
        assert await log.append(group(await log.head(), 2)) == 2
        assert [e.version for e in await log.read(0, 10)] == [1, 2]
        assert await rows.through() in {BEGINNING, behind(1)}
        await log.close()
        await rows.close()


def crash(postgres: EmbeddedPostgres) -> None:
    assert postgres.pid is not None
    os.kill(postgres.pid, 9)
    while postgres.alive:
        time.sleep(0.01)


async def test_a_session_that_would_not_wait_for_the_disk_is_refused(ledger_database: str) -> None:
    log = PostgresLog(f"{ledger_database} options='-c synchronous_commit=off'")

    with pytest.raises(UnsafeDatabaseError, match=r"^PostgreSQL runs with synchronous_commit=off"):
        await log.acquire()

    await log.close()


async def test_a_server_that_could_lose_what_it_acknowledged_is_refused() -> None:
    with server_folder() as path, DataFolder(path / "data") as folder:
        server = EmbeddedPostgres(folder, settings={"fsync": "off", "full_page_writes": "off"})
        server.start()
        log = PostgresLog(server.dsn)

        with pytest.raises(UnsafeDatabaseError, match=r"with fsync=off and full_page_writes=off"):
            await log.acquire()

        await log.close()
        server.stop()


# -- pruning --------------------------------------------------------------------------------------


async def test_pruning_forgets_expired_claims_and_old_groups_but_no_event(
    world: PostgresWorld, log: PostgresLog
) -> None:
    now = world.clock.now()
    for version in range(1, 4):
        expires_at = None if version == 3 else now + version * DAY
        await log.append(group(version - 1, version, NewClaim(bytes([version]) * 16, 0, expires_at)))

    tomorrow = SystemClock().now() + DAY  # groups are dated by the server
    pruned = await log.prune(groups_before=tomorrow, claims_before=now + 2 * DAY)

    assert pruned == 3 + 1
    assert set(await log.claims([bytes([n]) * 16 for n in range(1, 4)])) == {b"\2" * 16, b"\3" * 16}
    assert await log.head() == 3


# -- wake-ups -------------------------------------------------------------------------------------


async def test_a_listener_hears_of_a_commit_before_it_would_have_polled(ledger_database: str) -> None:
    log = PostgresLog(ledger_database)
    await log.acquire()
    async with WakeupListener(ledger_database, poll_seconds=30) as wakeups:
        await wakeups.listening()
        await log.append(group(0, 1))

        assert await wakeups.wait_for(1, timeout=5)
        assert wakeups.head == 1
    await log.close()


async def test_a_listener_that_hears_nothing_polls(ledger_database: str) -> None:
    log = PostgresLog(ledger_database, wakeups=False)
    await log.acquire()
    async with WakeupListener(ledger_database) as wakeups:
        await wakeups.listening()
        assert not await wakeups.wait_for(1, timeout=0.01)
        await log.append(group(0, 1))

        assert await wakeups.wait_beyond(0, timeout=5) == 1
    await log.close()


async def test_a_listener_is_woken_from_within_its_process(ledger_database: str) -> None:
    async with WakeupListener(ledger_database, poll_seconds=30) as wakeups:
        waiting = asyncio.create_task(wakeups.wait_for(7, timeout=5))
        await asyncio.sleep(0)
        wakeups.hear(7)

        assert await waiting


async def test_a_listener_survives_the_loss_of_its_connection(world: PostgresWorld, log: PostgresLog) -> None:
    async with WakeupListener(world._cable.conninfo, poll_seconds=0.05) as wakeups:
        await wakeups.listening()
        world.go_down()
        await asyncio.sleep(0.1)
        world.come_up()
        assert await log.acquire()
        await log.append(group(0, 1))

        assert await wakeups.wait_for(1, timeout=5)
