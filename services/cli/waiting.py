"""A start without PostgreSQL waits for it, logs that, and answers 503 meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from threading import Thread
from typing import Any, Final

import psycopg
import structlog

from infra.postgres.absence import is_absent
from services.api.serving.not_yet import NotYet
from services.api.serving.server import serve

log = structlog.get_logger()

_PAUSES_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)
_TOLD_SECONDS: Final = 60.0
"""How often the log line is repeated at least."""


async def wait_for_postgresql(
    attempt: Callable[[], Any],
    stop: asyncio.Event,
    *,
    most_seconds: float | None,
    listeners: Sequence[socket.socket] = (),
) -> bool:
    """Repeat `attempt` until PostgreSQL answers; False if `stop` is set before.

    Raises an error that waiting cannot fix, and any error after `most_seconds`. Meanwhile requests on
    `listeners` are answered with what is missing.
    """
    began = time.monotonic()
    told, told_at, failures = "", began, 0
    async with AsyncExitStack() as meanwhile:
        while (error := await _failure(attempt, stop)) is not None:
            waited = time.monotonic() - began
            left = None if most_seconds is None else most_seconds - waited
            if not is_absent(error) or (left is not None and left <= 0):
                raise error
            problem = _one_line(error)
            if problem != told or time.monotonic() - told_at > _TOLD_SECONDS:
                told, told_at = problem, time.monotonic()
                log.warning("postgresql.awaited", problem=problem, waited_seconds=round(waited, 1))
            if failures == 0:
                await meanwhile.enter_async_context(_answering(listeners))
            pause = _PAUSES_SECONDS[min(failures, len(_PAUSES_SECONDS) - 1)]
            failures += 1
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause if left is None else min(pause, left))
        if failures and not stop.is_set():
            log.info("postgresql.found", waited_seconds=round(time.monotonic() - began, 1))
    return not stop.is_set()


async def _failure(attempt: Callable[[], Any], stop: asyncio.Event) -> psycopg.Error | None:
    """Why the attempt failed; None if it succeeded, or if `stop` is set."""
    if stop.is_set():
        return None
    attempted = _in_background(attempt)
    stopping = asyncio.create_task(stop.wait())
    both: set[asyncio.Future[Any]] = {attempted, stopping}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if attempted.done():
            await attempted
    except psycopg.Error as error:
        return error
    finally:
        stopping.cancel()
        attempted.cancel()
    return None


def _in_background(attempt: Callable[[], Any]) -> asyncio.Future[None]:
    """Run it in a thread that an exit does not wait for: a connection without an answer takes seconds."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        failed: BaseException | None = None
        try:
            attempt()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            failed = error
        with contextlib.suppress(RuntimeError):  # nothing waits any more: the loop is closed
            loop.call_soon_threadsafe(tell, failed)

    Thread(target=work, name="waiting for PostgreSQL", daemon=True).start()
    return done


@asynccontextmanager
async def _answering(listeners: Sequence[socket.socket]) -> AsyncGenerator[None]:
    """Answer requests on these sockets, and leave the sockets open for the ledger."""
    if not listeners:
        yield
        return
    done = asyncio.Event()
    app = NotYet("postgresql", "PostgreSQL cannot be reached.")
    # A server closes its sockets when it ends, so it gets copies.
    serving = asyncio.create_task(serve(app, [one.dup() for one in listeners], done, grace_seconds=1))
    try:
        yield
    finally:
        done.set()
        await serving


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
