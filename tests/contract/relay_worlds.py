"""A log that grows, and relays that are started and killed on it."""

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable
from typing import Any, get_args

from domain.ports import Group, Log, LogUnavailableError
from infra.memory.log import MemoryLog
from infra.nats.relay import Open, Relay, RelayStatus
from infra.postgres.mapper import EventMapper
from keyledger_language.events import (
    Event,
    KeyDisabled,
    KeyRevoked,
    LedgerEvent,
    Private,
    UsageCharged,
    stream_of,
)

NOON = 1_700_000_000_000_000
ORGANIZATION = "org_01JD0000000000000000000000"
LOG_ID = "0b6a1f6e-4a52-4a37-9a53-6c7e4f8f8d11"


def mapper() -> EventMapper[Event]:
    return EventMapper(get_args(LedgerEvent))


def charge(number: int) -> UsageCharged:
    return UsageCharged(
        at=NOON + number,
        organization_id=ORGANIZATION,
        key_id=f"key_01JD{number % 1000:022d}",
        charge_id=f"chg_01JD{number:022d}",
        request_id=f"request-{number}",
        base_micros=100,
        price_multiplier="1.25",
        amount_micros=125,
        balance_micros=1_000_000 - number,
        reserved_micros=0,
        model="gpt-5",
        provider="openai",
    )


def revocation(number: int) -> KeyRevoked:
    private = Private(reason="found on a public page")
    return KeyRevoked(at=NOON + number, organization_id=ORGANIZATION, key_id="key_1", private=private)


class GrowingLog:
    """Appends events with the mapper's own bytes."""

    def __init__(self, log: Log | None = None) -> None:
        self.log: Log = MemoryLog() if log is None else log
        self.head = 0
        self._writer = mapper()
        self._versions = itertools.count(1)

    async def append(self, *events: Event) -> int:
        new = [self._writer.new_event(stream_of(event), next(self._versions), event) for event in events]
        keys = self._writer.take_new_data_keys()
        self.head = await self.log.append(Group(os.urandom(16), await self.log.end(), new, (), keys))
        return self.head

    async def charge(self, count: int) -> int:
        return await self.append(*(charge(self.head + n) for n in range(1, count + 1)))

    async def disable(self, count: int) -> int:
        return await self.append(*(KeyDisabled(at=NOON, key_id="key_1") for _ in range(count)))


class Polling:
    """Wakes by asking the log, as a listener does that has missed its wake-up."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._head = 0

    async def wait_beyond(self, position: int, timeout: float | None = None) -> int:
        for _ in range(max(1, int((timeout or 0) / 0.01))):
            with contextlib.suppress(LogUnavailableError):
                self._head = await self._log.head()
            if self._head > position:
                break
            await asyncio.sleep(0.01)
        return self._head


class RunningRelay:
    """A relay in a task of its own, which may be killed at any await."""

    def __init__(self, log: Log, open_stream: Open, **overrides: Any) -> None:
        self.status = RelayStatus()
        self.stop = asyncio.Event()
        settings: dict[str, Any] = {"log_id": LOG_ID, "partition": 0, "wakeups": Polling(log)}
        settings |= overrides
        self.relay = Relay(log, mapper().decode, open_stream, stop=self.stop, status=self.status, **settings)
        self.task = asyncio.create_task(self.relay.run())

    async def has(self, condition: Callable[[RelayStatus], bool], *, seconds: float = 15) -> None:
        async with asyncio.timeout(seconds):
            while not condition(self.status):
                await asyncio.sleep(0.005)

    async def reaches(self, position: int, *, seconds: float = 15) -> None:
        await self.has(lambda status: status.position >= position, seconds=seconds)

    async def kill(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=10)
        assert self.task.done()

    async def end(self) -> None:
        self.stop.set()
        await asyncio.wait_for(self.task, 10)
