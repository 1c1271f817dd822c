"""Hints within one process: whoever waits for a position wakes when it is there."""

from __future__ import annotations

import asyncio
import contextlib


class LocalHints:
    """The newest position that was heard of, and those who wait for a later one."""

    def __init__(self) -> None:
        self._heard = asyncio.Condition()
        self.head = 0
        """The newest position heard of."""

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, as soon as it is beyond `position`, or what it is when the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout), self._heard:
                await self._heard.wait_for(lambda: self.head > position)
        return self.head

    async def wait_for(self, position: int, timeout: float | None = None) -> bool:
        """Has the log reached `position`, at the latest when the time is over?"""
        return await self.wait_beyond(position - 1, timeout) >= position

    async def hear(self, position: int) -> None:
        """Take a hint from within this process."""
        if position > self.head:
            async with self._heard:
                self.head = max(self.head, position)
                self._heard.notify_all()
