"""The command queue: commands that wait to be decided, in order, each with the future of its caller."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from domain import commands as c
from domain.commands import Asking, Command
from services.ledger.errors import NotOwnerHereError, OverloadedError
from services.ledger.jobs import Done, Idempotency, Job, Render

MAX_GROUP = 1_000
_WORTH_HALVING = 256
"""With more callers than this, two groups under way beat one (docs/benchmarks.md)."""


class CommandQueue:
    """Bounded; takes commands only while this process owns the partition."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: deque[Job] = deque()
        self._woken = asyncio.Event()
        self.accepting = False
        """False while this process does not own the partition."""

    def __len__(self) -> int:
        """How many commands wait."""
        return len(self._waiting)

    def submit(
        self,
        command: Command,
        asking: Asking,
        idempotency: Idempotency | None = None,
        render: Render | None = None,
    ) -> asyncio.Future[Done]:
        """Carry out a command; the future is done when what it wrote is durable.

        The future raises LedgerError (refused), or CannotAnswerError (ask again later), as this does.
        """
        if not self.accepting:
            raise NotOwnerHereError("This process does not own the partition.")
        if len(self._waiting) >= self._most:
            raise OverloadedError(f"{self._most} commands are waiting already.")
        future: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting.append(Job(command, asking, future, idempotency, render))
        self._woken.set()
        return future

    def take_group(self) -> list[Job]:
        """The jobs to decide next: all that wait, or one half while the other is being written.

        Jobs whose callers have hung up are left out: an abandoned use that is granted late would surprise.
        """
        waiting = len(self._waiting)
        count = waiting if waiting <= _WORTH_HALVING else (waiting + 1) // 2
        taken = [self._waiting.popleft() for _ in range(min(MAX_GROUP, count))]
        return [job for job in taken if not job.future.done()]

    def take_simple(self) -> list[Job]:
        """The first jobs, as far as they can be decided without a look-up."""
        jobs: list[Job] = []
        waiting = self._waiting
        while waiting and len(jobs) < MAX_GROUP and _is_simple(waiting[0]):
            job = waiting.popleft()
            if not job.future.done():
                jobs.append(job)
        return jobs

    def put_back(self, jobs: Iterable[Job]) -> None:
        """To its front, in their order."""
        self._waiting.extendleft(reversed(list(jobs)))

    def refuse(self, answer: Exception) -> None:
        """Answer all that wait with this error."""
        while self._waiting:
            fail(self._waiting.popleft(), answer)

    def wake(self) -> None:
        """End a wait that is under way."""
        self._woken.set()

    def forget_wakes(self) -> None:
        """From here on `wait` ends by what comes, not by what came before."""
        self._woken.clear()

    async def wait(self, seconds: float) -> None:
        """Until a command comes, somebody wakes it, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()


def _is_simple(job: Job) -> bool:
    return isinstance(job.command, c.ChargeUsage | c.ReserveCredits) and job.idempotency is None


def fail(job: Job, answer: Exception) -> None:
    """Answer a job with an error, if its caller still waits."""
    if not job.future.done():
        job.future.set_exception(answer)


def fail_all(jobs: Iterable[Job], answer: Exception) -> None:
    """The same for several."""
    for job in jobs:
        fail(job, answer)
