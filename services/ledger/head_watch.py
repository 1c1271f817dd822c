"""Who waits for the log to go on, within one process: streams of events, above all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable


class HeadWatch:
    """Wakes those who wait for a position as soon as this process's state is beyond it."""

    def __init__(self, head: Callable[[], int]) -> None:
        self._head = head
        self._waiters: set[asyncio.Future[None]] = set()

    def moved(self) -> None:
        """The state went on."""
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        """The head, as soon as it is beyond `position`, or what it is when the seconds are over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._head() <= position:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiters.add(waiter)
                    try:
                        await waiter
                    finally:
                        self._waiters.discard(waiter)
        return self._head()
