"""Notifications of PostgreSQL: each is heard once, in order, and a broken connection is an error."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import count

import psycopg
import pytest
from psycopg import AsyncConnection, Connection

from infra.postgres.notices import hear_for, listen
from infra.postgres.wakeups import WakeupListener, WakeupSender
from keyledger_reading.notices import Listener, channel

CHANNEL = "of_the_test"
NO_POSITIONS = ("", "rubbish", "-1", "1.5", "9223372036854775808", "9" * 5_000)
"""What anybody may send who can log in to the database."""


@pytest.fixture
async def heard() -> list[int]:
    return []


@pytest.fixture
async def listener(ledger_database: str, heard: list[int]) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(ledger_database, autocommit=True) as connection:
        await listen(connection, CHANNEL, heard.append)
        yield connection


@pytest.fixture
async def teller(ledger_database: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(ledger_database, autocommit=True) as connection:
        yield connection


async def tell(teller: AsyncConnection, text: object, *, on: str = CHANNEL) -> None:
    await teller.execute("SELECT pg_notify(%s, %s)", (on, str(text)))


async def end_sessions(teller: AsyncConnection, what: str) -> None:
    """End this database's sessions with such a name, once there are some."""
    end = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE %s"
    )
    async with asyncio.timeout(10):
        while not await (await teller.execute(end, (f"%{what}",))).fetchall():
            await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


# -- hearing -----------------------------------------------------------------------------------------


async def test_what_comes_is_heard_at_once_and_in_order(
    listener: AsyncConnection, teller: AsyncConnection, heard: list[int]
) -> None:
    hearing = asyncio.create_task(hear_for(listener, heard.append, 30))

    for number in range(20):
        await tell(teller, number)
    await until(lambda: len(heard) == 20)

    assert heard == list(range(20))
    assert not hearing.done()
    hearing.cancel()
    await asyncio.wait({hearing})


async def test_it_ends_when_the_time_is_over_and_looks_at_the_socket_no_more(
    listener: AsyncConnection, teller: AsyncConnection, heard: list[int]
) -> None:
    await hear_for(listener, heard.append, 0.01)
    await tell(teller, 1)
    await asyncio.sleep(0.05)

    assert heard == []
    assert not asyncio.get_running_loop().remove_reader(listener.pgconn.socket)


async def test_between_statements_none_is_lost_and_none_is_heard_twice(
    listener: AsyncConnection, teller: AsyncConnection, heard: list[int]
) -> None:
    told = count()
    stopping = asyncio.Event()

    async def telling() -> None:
        while not stopping.is_set():
            await tell(teller, next(told))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(telling())
        while len(heard) < 200:
            await listener.execute("SELECT 1")
            await hear_for(listener, heard.append, 0.002)
        stopping.set()
    await hear_for(listener, heard.append, 0.1)

    assert heard == list(range(next(told)))


@pytest.mark.parametrize("position", [0, 7, 9223372036854775807])
async def test_what_the_listener_tells_itself_is_heard_with_the_answer(
    listener: AsyncConnection, heard: list[int], position: int
) -> None:
    await tell(listener, position)

    assert heard == [position]


async def test_what_is_no_position_is_passed_over(
    listener: AsyncConnection, teller: AsyncConnection, heard: list[int]
) -> None:
    for text in NO_POSITIONS:
        await tell(listener, text)  # comes with the answer
        await tell(teller, text)  # comes between two statements
    await tell(teller, 1)
    await hear_for(listener, heard.append, 0.1)

    assert heard == [1]


async def test_a_connection_that_breaks_is_an_error_at_once(
    listener: AsyncConnection, teller: AsyncConnection, heard: list[int]
) -> None:
    hearing = asyncio.create_task(hear_for(listener, heard.append, 30))
    await asyncio.sleep(0.01)

    await teller.execute("SELECT pg_terminate_backend(%s)", (listener.info.backend_pid,))

    async with asyncio.timeout(10):
        with pytest.raises(psycopg.OperationalError):
            await hearing


# -- hearing on a thread -----------------------------------------------------------------------------


async def test_a_thread_hears_what_came_since_and_what_comes_first(
    ledger_database: str, teller: AsyncConnection
) -> None:
    with Connection.connect(ledger_database, autocommit=True) as connection:
        listener = Listener(connection, CHANNEL)
        await tell(teller, 1)
        await tell(teller, 2)
        connection.execute("SELECT")  # both come with the answer

        assert listener.wait(30) == [1, 2]
        assert listener.wait(0.01) == []
        waiting = asyncio.create_task(asyncio.to_thread(listener.wait, 30))
        await tell(teller, 3)
        assert await waiting == [3]


async def test_a_thread_passes_over_what_is_no_position_too(
    ledger_database: str, teller: AsyncConnection
) -> None:
    with Connection.connect(ledger_database, autocommit=True) as connection:
        listener = Listener(connection, CHANNEL)
        for text in NO_POSITIONS:
            await tell(teller, text)
        connection.execute("SELECT")
        for text in NO_POSITIONS:
            await tell(teller, text)
        await tell(teller, 1)

        told: list[int] = []
        while not told:
            told = await asyncio.to_thread(listener.wait, 30)
        assert told == [1]


async def test_a_thread_is_told_of_a_broken_connection(ledger_database: str, teller: AsyncConnection) -> None:
    with Connection.connect(ledger_database, autocommit=True) as connection:
        listener = Listener(connection, CHANNEL)
        await teller.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

        with pytest.raises(psycopg.OperationalError):  # noqa: PT012 - the server's last words come first
            listener.wait(10)
            listener.wait(10)


# -- sending -----------------------------------------------------------------------------------------


async def test_of_many_positions_that_come_at_once_few_are_sent_and_the_newest_is(
    ledger_database: str, teller: AsyncConnection, heard: list[int]
) -> None:
    sender = WakeupSender(ledger_database, 0)
    await listen(teller, channel(0), heard.append)
    hearing = asyncio.create_task(hear_for(teller, heard.append, 30))

    for position in range(1, 100):
        sender.send(position)
    await until(lambda: 99 in heard)
    for position in range(100, 200):
        sender.send(position)
    await until(lambda: 199 in heard)

    # The first hundred came while it connected; the second while its answer was under way, or just after.
    assert heard in ([99, 199], [99, 100, 199])
    await sender.close()
    hearing.cancel()
    await asyncio.wait({hearing})


async def test_after_a_fail_over_that_lost_events_the_lower_head_is_told(
    ledger_database: str, teller: AsyncConnection, heard: list[int]
) -> None:
    sender = WakeupSender(ledger_database, 0)
    await listen(teller, channel(0), heard.append)
    hearing = asyncio.create_task(hear_for(teller, heard.append, 30))

    for position in (100, 50, 51):
        sender.send(position)
        await until(lambda position=position: bool(heard) and heard[-1] == position)  # type: ignore[misc]

    assert heard == [100, 50, 51]
    await sender.close()
    hearing.cancel()
    await asyncio.wait({hearing})


async def test_a_sender_whose_session_ended_opens_another(
    ledger_database: str, teller: AsyncConnection, listener: AsyncConnection
) -> None:
    sender = WakeupSender(ledger_database, 0)
    heard: list[int] = []
    await listen(listener, channel(0), heard.append)
    hearing = asyncio.create_task(hear_for(listener, heard.append, 30))
    sender.send(1)
    await until(lambda: heard == [1])

    await end_sessions(teller, "p0 wake-ups")
    async with asyncio.timeout(10):
        for position in count(2):
            sender.send(position)
            await asyncio.sleep(0.01)
            if heard[-1] > 1:
                break

    await sender.close()
    hearing.cancel()
    await asyncio.wait({hearing})


async def test_a_sender_that_is_closed_opens_nothing(ledger_database: str, teller: AsyncConnection) -> None:
    sender = WakeupSender(ledger_database, 0)
    sender.send(1)
    await sender.close()
    sender.send(2)
    await asyncio.sleep(0.1)

    sessions = await teller.execute(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
    )
    assert not [name for (name,) in await sessions.fetchall() if name.endswith("wake-ups")]


# -- wake-ups ----------------------------------------------------------------------------------------


async def test_wake_ups_go_on_whatever_is_sent_on_their_channel(
    ledger_database: str, teller: AsyncConnection
) -> None:
    async with WakeupListener(ledger_database, poll_seconds=0.001) as wakeups:
        await wakeups.listening()
        for text in NO_POSITIONS * 20:
            await tell(teller, text, on=channel(0))
        await tell(teller, 5, on=channel(0))

        assert await wakeups.wait_for(5, timeout=10)
        assert wakeups.head == 5


async def test_a_head_that_the_log_has_not_is_forgotten_with_the_connection(
    ledger_database: str, teller: AsyncConnection
) -> None:
    """A fail-over that loses commits ends every session, and what was heard of them is not true any more."""
    async with WakeupListener(ledger_database) as wakeups:
        await wakeups.listening()
        await tell(teller, 10**9, on=channel(0))
        assert await wakeups.wait_for(10**9, timeout=10)

        await end_sessions(teller, "p0 listener")

        await until(lambda: wakeups.head == 0)
