"""Waiting for the log, however long the log waits for its standby."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import structlog

from domain.ports import Log, LogUnavailableError
from services.ledger.bus import Bus
from services.ledger.errors import WaitsForStandbyError
from services.ledger.standing import Standing

log = structlog.get_logger()

T = TypeVar("T")

_LOOK_SECONDS = 1.0
"""A confirmation takes milliseconds: after this time we ask what it waits for, and then at this interval."""
_LONGEST_APPEND_SECONDS = 5.0
"""If an append waits for a standby, its callers learn after this time that its outcome is unknown."""


class StandbyWatch:
    """Finds out why the log takes long; meanwhile leases run out, and callers learn the reason."""

    def __init__(self, log_: Log, standing: Standing, bus: Bus) -> None:
        self._log = log_
        self._standing = standing
        self._bus = bus

    async def outlast_reading(self, reading: asyncio.Task[Any], stopping: asyncio.Task[Any] | None) -> bool:
        """Wait until everything is read; false if the process stops before."""
        either: set[asyncio.Task[Any]] = {reading} if stopping is None else {reading, stopping}
        looked = False
        try:
            while not reading.done() and not (stopping and stopping.done()):
                await asyncio.wait(either, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if not reading.done():
                    looked = True
                    await self._look(hurry=stopping is not None and stopping.done())
            if not reading.done():
                return False
            reading.result()
            return True
        finally:
            if looked:
                self._standing.waits_for_standby = False

    async def answer_of(
        self, asking: Coroutine[Any, Any, T], stopping: asyncio.Task[Any], *, till_the_end: bool = False
    ) -> T | None:
        """The log's answer; None if the process stops before, unless it is to be awaited `till_the_end`."""
        began = asyncio.get_running_loop().time()
        answering = asyncio.ensure_future(asking)
        either: set[asyncio.Future[Any]] = {answering} if till_the_end else {answering, stopping}
        try:
            while True:
                await asyncio.wait(either, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if answering.done():
                    return answering.result()
                if stopping.done() and not till_the_end:
                    return None
                seconds = asyncio.get_running_loop().time() - began
                await self._look(hurry=stopping.done() or seconds >= _LONGEST_APPEND_SECONDS)
        finally:
            answering.cancel()
            self._standing.waits_for_standby = False

    async def look_now(self) -> None:
        """Ask whether the log waits, while another process owns the partition."""
        self._standing.waits_for_standby = await self._log.waits_for_standby()

    async def _look(self, *, hurry: bool) -> None:
        """`hurry`: callers whose append is under way learn, too, that its outcome is unknown."""
        standing = self._standing
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                waits = await self._log.waits_for_standby()
        except (LogUnavailableError, TimeoutError):
            return
        standing.reachable = True
        if waits and not standing.waits_for_standby:
            log.warning("log.waits_for_standby")
        standing.waits_for_standby = waits
        if waits:
            self._bus.give_up_waiting(WaitsForStandbyError(), on_appends=hurry)
