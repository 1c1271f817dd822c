"""Waiting for a position: of the log, or of what is derived from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class PositionWatch:
    """Wakes the waiters for a position when it is reached, and no others.

    `position` returns the current one. It may go back: waiters that are woken by then get what was reached.
    """

    def __init__(self, position: Callable[[], int]) -> None:
        self._position = position
        self._waiting: set[tuple[int, asyncio.Future[int]]] = set()

    def moved(self) -> None:
        """Wake waiters: the position has changed."""
        if not self._waiting:
            return
        position = self._position()
        for behind, reached in self._waiting:
            if behind < position and not reached.done():
                reached.set_result(position)

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The current position, as soon as it is past `position`, or when the timeout is over."""
        now = self._position()
        if now > position:
            return now
        reached: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        waiting = position, reached
        self._waiting.add(waiting)
        try:
            async with asyncio.timeout(timeout):
                return await reached
        except TimeoutError:
            return self._position()
        finally:
            self._waiting.discard(waiting)

    async def wait_for(self, position: int, timeout: float | None = None) -> bool:
        """Whether `position` is reached before the timeout is over."""
        return await self.wait_beyond(position - 1, timeout) >= position
