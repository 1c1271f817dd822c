"""A task that waits for a position wakes when it is reached, and not before."""

import asyncio

import pytest

from infra.position_watch import PositionWatch
from infra.wakeups import LocalWakeups


class Book:
    def __init__(self) -> None:
        self.head = 5
        self.watch = PositionWatch(lambda: self.head)

    def move(self, head: int) -> None:
        self.head = head
        self.watch.moved()


async def test_what_is_there_already_is_not_waited_for() -> None:
    assert await Book().watch.wait_beyond(4) == 5
    assert await Book().watch.wait_for(5)


async def test_a_waiter_wakes_with_the_position_it_waits_for_and_not_with_one_before() -> None:
    book = Book()
    waiting = asyncio.create_task(book.watch.wait_beyond(6))
    await asyncio.sleep(0)

    book.move(6)
    await asyncio.sleep(0.01)
    assert not waiting.done()

    book.move(7)
    assert await asyncio.wait_for(waiting, 1) == 7


async def test_all_who_wait_wake() -> None:
    book = Book()
    waiting = [asyncio.create_task(book.watch.wait_beyond(5)) for _ in range(3)]
    await asyncio.sleep(0)

    book.move(6)

    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [6, 6, 6]


async def test_what_was_reached_is_told_though_it_went_back_since() -> None:
    book = Book()
    waiting = asyncio.create_task(book.watch.wait_for(7))
    await asyncio.sleep(0)

    book.move(7)
    book.move(3)

    assert await asyncio.wait_for(waiting, 1)


async def test_when_the_time_is_over_the_position_is_told_as_it_is() -> None:
    book = Book()

    assert await book.watch.wait_beyond(5, 0.01) == 5
    assert not await book.watch.wait_for(6, 0.01)
    assert book.watch._waiting == set()


async def test_whoever_gives_up_is_forgotten() -> None:
    book = Book()
    waiting = asyncio.create_task(book.watch.wait_beyond(5))
    await asyncio.sleep(0)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    book.move(6)
    assert book.watch._waiting == set()


async def test_an_old_wake_up_changes_nothing() -> None:
    wakeups = LocalWakeups()
    wakeups.hear(5)
    wakeups.hear(4)

    assert await wakeups.wait_beyond(4) == 5
    assert not await wakeups.wait_for(6, 0.01)
