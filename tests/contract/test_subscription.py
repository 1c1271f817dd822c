"""A subscription to the log: every event once and in order, whatever happens to connections."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from domain.ports import Group
from infra.embedded import EmbeddedServers
from infra.postgres.log import PostgresLog
from infra.postgres.migrate import migrate
from keyledger_language.events import KeyDisabled, KeyRevoked
from keyledger_reading import subscription as subscription_module
from keyledger_reading.datastore import PooledDatastore
from keyledger_reading.errors import DifferentPastError
from keyledger_reading.positions import LogPosition
from keyledger_reading.recorder import ReadingRecorder
from keyledger_reading.subscription import LedgerSubscription
from tests.contract.projected_worlds import mapper
from tests.histories import NOON
from tests.servers import initialised, server_folder

PATIENCE = 60.0
NEVER = 600.0
"""A poll that no test waits for."""


async def append(log: PostgresLog, count: int, *, revoked: bool = False) -> None:
    end = await log.end()
    event = KeyRevoked(at=NOON, key_id="key_1") if revoked else KeyDisabled(at=NOON, key_id="key_1")
    first = end.position + 1
    new = [mapper().new_event(f"key_{first + n}", 1, event) for n in range(count)]
    await log.append(Group(os.urandom(16), end, new))


@contextmanager
def subscribed(
    database: str, gt: int | None = None, *, poll_seconds: float = NEVER, **options: Any
) -> Generator[LedgerSubscription]:
    with PooledDatastore(database) as datastore:
        recorder = ReadingRecorder(datastore)
        position = None if gt is None else in_history(recorder, gt)
        with LedgerSubscription(
            recorder, recorder.new_session, gt=position, poll_seconds=poll_seconds, **options
        ) as subscription:
            yield subscription


def in_history(recorder: ReadingRecorder, position: int) -> LogPosition:
    """As a view noted it, when it counted that event."""
    mark = next((one.mark for one in recorder.select_at([position])), 0)
    return LogPosition(position, log_id=recorder.log_id(), epoch=recorder.end().epoch, mark=mark)


class Following:
    """Takes events on a thread of its own."""

    def __init__(self, subscription: Iterator[Any]) -> None:
        self.positions: list[int] = []
        self.error: BaseException | None = None
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(subscription,))
        self._thread.start()

    def _run(self, subscription: Iterator[Any]) -> None:
        try:
            for one in subscription:
                with self._more:
                    self.positions.append(one.id)
                    self._more.notify_all()
        except DifferentPastError as error:
            self.error = error

    async def until(self, position: int) -> list[int]:
        """Beside the event loop, which sends the wake-ups."""
        return await asyncio.to_thread(self.wait_until, position)

    def wait_until(self, position: int) -> list[int]:
        with self._more:
            there = self._more.wait_for(lambda: self.positions[-1:] >= [position], PATIENCE)
        assert there, f"came no further than {self.positions[-1:]}"
        return self.positions

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def following(ledger_database: str) -> Iterator[Callable[..., Following]]:
    """Starts to follow; stopped at the end."""
    open_ones: list[Any] = []

    def follow(gt: int | None = None, **options: Any) -> Following:
        manager = subscribed(ledger_database, gt, **options)
        subscription = manager.__enter__()
        one = Following(subscription)
        open_ones.append((manager, subscription, one))
        return one

    yield follow
    for manager, subscription, one in open_ones:
        subscription.stop()
        one.join()
        manager.__exit__(None, None, None)


@pytest.fixture
async def log(ledger_database: str) -> Any:
    log = PostgresLog(ledger_database)
    assert await log.acquire()
    yield log
    await log.close()


def sessions_of(database: str, *, end: bool = False) -> int:
    """How many subscriptions' sessions there are; they are ended if that is asked for."""
    what = "pg_terminate_backend(pid, 5000)" if end else "true"
    select = f"SELECT {what} FROM pg_stat_activity WHERE application_name LIKE '%subscription'"
    with psycopg.connect(database) as connection:
        return len(connection.execute(f"{select} AND datname = current_database()".encode()).fetchall())


async def test_what_is_there_comes_first_and_then_what_is_committed(
    log: PostgresLog, following: Callable[..., Following]
) -> None:
    await append(log, 2_500)
    one, other = following(), following(gt=2_499)

    assert await one.until(2_500) == list(range(1, 2_501))
    await append(log, 3)
    assert (await one.until(2_503))[-3:] == [2_501, 2_502, 2_503]
    assert await other.until(2_503) == [2_500, 2_501, 2_502, 2_503]


async def test_only_events_of_the_types_that_are_asked_for(
    log: PostgresLog, following: Callable[..., Following]
) -> None:
    await append(log, 3)
    one = following(topics=("key.revoked",))
    await append(log, 1, revoked=True)
    await append(log, 1)
    await append(log, 1, revoked=True)

    assert await one.until(6) == [4, 6]


async def test_an_event_whose_wake_up_was_lost_comes_with_the_next_look(
    ledger_database: str, following: Callable[..., Following]
) -> None:
    silent = PostgresLog(ledger_database, wakeups=False)
    assert await silent.acquire()
    one = following(poll_seconds=0.1)
    await append(silent, 1)

    assert await one.until(1) == [1]
    await silent.close()


async def test_an_event_between_the_first_look_and_the_wait_is_told_by_its_wake_up(
    log: PostgresLog,
    ledger_database: str,
    following: Callable[..., Following],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a subscription that would look again in ten minutes only: it listens before it looks."""
    looked, go_on = threading.Event(), threading.Event()
    select = ReadingRecorder.select_notifications

    def pause_after_the_first(self: ReadingRecorder, *args: Any, **options: Any) -> Any:
        found = select(self, *args, **options)
        if not looked.is_set():
            looked.set()
            go_on.wait(PATIENCE)
        return found

    monkeypatch.setattr(ReadingRecorder, "select_notifications", pause_after_the_first)
    one = following()
    assert looked.wait(PATIENCE)
    with psycopg.connect(ledger_database, autocommit=True) as other:
        await append(log, 1)
        other.execute("SELECT pg_notify('ledger_p0', '1')")
    go_on.set()

    assert await one.until(1) == [1]


async def test_a_listener_that_was_cut_off_listens_anew(
    log: PostgresLog, ledger_database: str, following: Callable[..., Following]
) -> None:
    one = following()
    await append(log, 1)
    await one.until(1)
    for position in (2, 3):
        assert sessions_of(ledger_database, end=True) == 1
        await append(log, 1)
        await one.until(position)

    assert one.positions == [1, 2, 3]


def test_it_goes_on_when_postgresql_comes_back() -> None:
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
        database = servers.postgres.dsn
        migrate(database)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, appended(database, 2)).result(PATIENCE)
            with subscribed(database) as subscription:
                one = Following(subscription)
                one.wait_until(2)
                servers.postgres.stop()
                time.sleep(0.3)  # it tries to connect meanwhile, several times
                servers.postgres.start()
                pool.submit(asyncio.run, appended(database, 2)).result(PATIENCE)

                assert one.wait_until(4) == [1, 2, 3, 4]
                subscription.stop()
                one.join()


async def appended(database: str, count: int) -> None:
    log = PostgresLog(database)
    assert await log.acquire()
    await append(log, count)
    await log.close()


async def test_a_log_of_another_past_ends_it_with_a_sentence(
    log: PostgresLog, ledger_database: str, following: Callable[..., Following]
) -> None:
    await append(log, 5)
    one = following()
    await one.until(5)
    with psycopg.connect(ledger_database) as owner:
        owner.execute("ALTER TABLE ledger.events_p0 DISABLE TRIGGER append_only")
        owner.execute("UPDATE ledger.events_p0 SET mark = mark + 1 WHERE notification_id = 5")
    sessions_of(ledger_database, end=True)
    one.join()

    assert "Event 5, up to which the log was followed, is no longer in it" in str(one.error)


async def test_a_position_that_the_log_does_not_have_is_refused(
    log: PostgresLog, ledger_database: str
) -> None:
    await append(log, 5)

    with subscribed(ledger_database, 5):
        pass
    with pytest.raises(DifferentPastError, match="Event 6"), subscribed(ledger_database, 6):
        pass


async def test_one_that_waits_ends_at_once_when_it_is_stopped_and_leaves_no_session(
    ledger_database: str,
) -> None:
    with subscribed(ledger_database) as subscription:
        one = Following(subscription)
        subscription.stop()
        one.join()
        assert list(subscription) == []
        subscription.stop()

    assert one.positions == []
    assert sessions_of(ledger_database) == 0


async def test_it_does_not_wake_while_nothing_happens(
    log: PostgresLog, following: Callable[..., Following], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    read = LedgerSubscription._read

    def counted(self: LedgerSubscription) -> Any:
        looks.append(time.monotonic())
        return read(self)

    monkeypatch.setattr(LedgerSubscription, "_read", counted)
    one = following(poll_seconds=subscription_module._POLL_SECONDS)
    await append(log, 1)
    await one.until(1)
    before = len(looks)
    time.sleep(2.5)

    assert 1 <= len(looks) - before <= 4  # the library's would be at 25
