"""Whoever waits for a position wakes when this process's state is beyond it, and not before."""

import asyncio

from services.ledger.head_watch import HeadWatch


class Book:
    def __init__(self) -> None:
        self.head = 5
        self.watch = HeadWatch(lambda: self.head)

    def grow(self) -> None:
        self.head += 1
        self.watch.moved()


async def test_what_is_there_already_is_not_waited_for() -> None:
    assert await Book().watch.wait_beyond(4) == 5


async def test_a_waiter_wakes_with_the_position_it_waits_for_and_not_with_one_before() -> None:
    book = Book()
    waiting = asyncio.create_task(book.watch.wait_beyond(6))
    await asyncio.sleep(0)

    book.grow()
    await asyncio.sleep(0.01)
    assert not waiting.done()

    book.grow()
    assert await asyncio.wait_for(waiting, 1) == 7


async def test_all_who_wait_wake() -> None:
    book = Book()
    waiting = [asyncio.create_task(book.watch.wait_beyond(5)) for _ in range(3)]
    await asyncio.sleep(0)

    book.grow()

    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [6, 6, 6]


async def test_when_the_time_is_over_the_head_is_told_as_it_is() -> None:
    book = Book()

    assert await book.watch.wait_beyond(5, 0.01) == 5
    assert book.watch._waiters == set()
