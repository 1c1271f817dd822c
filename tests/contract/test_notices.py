"""Notifications of PostgreSQL: each is heard once, in order, and a broken connection is an error."""

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import psycopg
import pytest
from psycopg import AsyncConnection

from infra.postgres.notices import hear_for

CHANNEL = "of_the_test"


@pytest.fixture
async def listener(ledger_database: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(ledger_database, autocommit=True) as connection:
        await connection.execute(f"LISTEN {CHANNEL}".encode())
        yield connection


@pytest.fixture
async def teller(ledger_database: str) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(ledger_database, autocommit=True) as connection:
        yield connection


async def tell(teller: AsyncConnection, text: str) -> None:
    await teller.execute("SELECT pg_notify(%s, %s)", (CHANNEL, text))


async def test_what_comes_is_heard_at_once_and_in_order(
    listener: AsyncConnection, teller: AsyncConnection
) -> None:
    heard: list[str] = []
    hearing = asyncio.create_task(hear_for(listener, heard.append, 30))

    for number in range(20):
        await tell(teller, str(number))
    async with asyncio.timeout(10):
        while len(heard) < 20:
            await asyncio.sleep(0)

    assert heard == [str(number) for number in range(20)]
    assert not hearing.done()
    hearing.cancel()
    await asyncio.wait({hearing})


async def test_it_ends_when_the_time_is_over_and_looks_at_the_socket_no_more(
    listener: AsyncConnection, teller: AsyncConnection
) -> None:
    heard: list[str] = []

    await hear_for(listener, heard.append, 0.01)
    await tell(teller, "afterwards")
    await asyncio.sleep(0.05)

    assert heard == []
    assert not asyncio.get_running_loop().remove_reader(listener.pgconn.socket)


async def test_between_statements_none_is_lost_and_none_is_heard_twice(
    listener: AsyncConnection, teller: AsyncConnection
) -> None:
    heard: list[str] = []
    listener.add_notify_handler(lambda notice: heard.append(notice.payload))
    told = count()
    stopping = asyncio.Event()

    async def telling() -> None:
        while not stopping.is_set():
            await tell(teller, str(next(told)))

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        tasks.create_task(telling())
        while len(heard) < 200:
            await listener.execute("SELECT 1")
            await hear_for(listener, heard.append, 0.002)
        stopping.set()
    await hear_for(listener, heard.append, 0.1)

    assert heard == [str(number) for number in range(next(told))]


async def test_what_the_listener_tells_itself_comes_with_the_answer_to_its_handlers(
    listener: AsyncConnection,
) -> None:
    handled: list[str] = []
    heard: list[str] = []
    listener.add_notify_handler(lambda notice: handled.append(notice.payload))

    await tell(listener, "to myself")
    await hear_for(listener, heard.append, 0.1)

    assert handled + heard == ["to myself"]


async def test_a_connection_that_breaks_is_an_error_at_once(
    listener: AsyncConnection, teller: AsyncConnection
) -> None:
    hearing = asyncio.create_task(hear_for(listener, lambda _: None, 30))
    await asyncio.sleep(0.01)

    await teller.execute("SELECT pg_terminate_backend(%s)", (listener.info.backend_pid,))

    async with asyncio.timeout(10):
        with pytest.raises(psycopg.OperationalError):
            await hearing
