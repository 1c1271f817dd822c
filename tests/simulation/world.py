"""Virtual time, and machines in it whose clocks drift, that stop, die and start again.

Each machine is an asyncio event loop of its own, so the real classes run unchanged: futures
and tasks are asyncio's, only time and wake-ups are ours.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import Any

MS = 1_000_000
SECOND = 1_000 * MS

Callback = Callable[..., object]


class World:
    """One timeline. Everything random comes from its seed, so a seed is a history."""

    def __init__(self, seed: int) -> None:
        self.now = 0
        self.random = Random(seed)
        self._queue: list[tuple[int, int, Machine | None, int, Callback, tuple[Any, ...]]] = []
        self._sequence = 0
        self.failure: BaseException | None = None
        """The first thing that went wrong anywhere; the run ends with it."""

    def at(self, when: int, machine: Machine | None, callback: Callback, *args: Any) -> None:
        """Let something happen on a machine (or to the world) at `when`."""
        self._sequence += 1
        life = machine.life if machine is not None else 0
        heappush(self._queue, (when, self._sequence, machine, life, callback, args))

    def after(self, delay: int, machine: Machine | None, callback: Callback, *args: Any) -> None:
        """Let something happen `delay` nanoseconds from now."""
        self.at(self.now + delay, machine, callback, *args)

    def run(self, until: int) -> None:
        """Live through it."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            when, _, machine, life, callback, args = heappop(queue)
            if machine is None:
                self.now = when
                callback(*args)
            elif life != machine.life:
                continue  # The process that this was for is dead.
            elif machine.stopped_until > when:
                self._sequence += 1
                heappush(queue, (machine.stopped_until, self._sequence, machine, life, callback, args))
            else:
                self.now = when
                machine.run(callback, args)
                if self.failure is not None:
                    raise self.failure
        self.now = until


class Machine(asyncio.AbstractEventLoop):
    """One process on one machine: a clock that drifts and an event loop that can stop."""

    def __init__(self, world: World, name: str, *, rate: float) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.offset = world.random.randrange(1, 1_000_000) * SECOND
        self.life = 0
        self.stopped_until = 0
        self.cached_ns = self.offset
        self._ready: deque[asyncio.Handle] = deque()

    def run(self, callback: Callback, args: tuple[Any, ...]) -> None:
        _set_running_loop(self)
        try:
            try:
                callback(*args)
            except AssertionError as failure:
                self.world.failure = self.world.failure or failure
            ready = self._ready
            while ready:
                handle = ready.popleft()
                if not handle._cancelled:
                    handle._run()
        finally:
            _set_running_loop(None)
        if self.world.now != self.stopped_until:
            # (For a mutant.) A loop's idea of the time: after a stop, one round late.
            self.cached_ns = self.boottime_ns()

    def stop_for(self, duration: int) -> None:
        """SIGSTOP, and SIGCONT later."""
        self.stopped_until = max(self.stopped_until, self.world.now + duration)

    def die(self) -> None:
        """SIGKILL: whatever was planned does not happen."""
        self.life += 1
        self.stopped_until = 0
        self._ready.clear()

    # -- its two clocks --------------------------------------------------------------------

    def boottime_ns(self) -> int:
        return self.offset + int(self.world.now * self.rate)

    def now(self) -> int:
        """The time of day, which the simulation lets drift like the other."""
        return 1_700_000_000_000_000 + int(self.world.now * self.rate) // 1000

    def world_time_of(self, boottime_ns: int) -> int:
        return int((boottime_ns - self.offset) / self.rate) + 1

    # -- what asyncio wants of a loop -----------------------------------------------------------

    def time(self) -> float:
        return self.world.now / SECOND

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]  # as loosely as asyncio calls it
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and self.world.failure is None:
            self.world.failure = error

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)
