"""Hints within one process: whoever waits for a position wakes when it is there."""

from __future__ import annotations

import asyncio


class LocalHints:
    """The newest position that was heard of, and those who wait for a later one."""

    def __init__(self) -> None:
        self._waiting: set[tuple[int, asyncio.Future[None]]] = set()
        self.head = 0
        """The newest position heard of."""

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, as soon as it is beyond `position`, or what it is when the time is over."""
        if self.head <= position:
            reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            waiting = (position, reached)
            self._waiting.add(waiting)
            try:
                await asyncio.wait({reached}, timeout=timeout)
            finally:
                self._waiting.discard(waiting)
        return self.head

    async def wait_for(self, position: int, timeout: float | None = None) -> bool:
        """Has the log reached `position`, at the latest when the time is over?"""
        return await self.wait_beyond(position - 1, timeout) >= position

    def hear(self, position: int) -> None:
        """Take a hint from within this process."""
        if position <= self.head:
            return
        self.head = position
        for behind, reached in self._waiting:
            if behind < position and not reached.done():
                reached.set_result(None)
