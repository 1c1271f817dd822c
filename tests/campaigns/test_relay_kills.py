"""Relay, NATS and PostgreSQL are killed at random, under writes; then the stream must equal the log."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from domain.ports import (
    HeadMovedError,
    LogUnavailableError,
    NotOwnerError,
    OutcomeUnknownError,
)
from domain.publishing import StreamUnavailableError
from infra.embedded import EmbeddedNats, EmbeddedPostgres, EmbeddedServers
from infra.nats.relay import published_place
from infra.postgres.log import PostgresLog
from infra.postgres.migrate import migrate
from tests.contract.relay_worlds import GrowingLog
from tests.contract.stream_worlds import read_all
from tests.processes import ending_with_us
from tests.servers import initialised, server_folder

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(1_200)]
KILLS = int(os.environ.get("KEYLEDGER_KILLS", "50"))
LOST = (HeadMovedError, LogUnavailableError, NotOwnerError, OutcomeUnknownError)


class Writer:
    """Appends without end; after a fault it takes the log as it finds it."""

    def __init__(self, conninfo: str, chance: random.Random) -> None:
        self._log = PostgresLog(conninfo)
        self._chance = chance
        self.book = GrowingLog(self._log)
        self.stop = False

    async def run(self) -> None:
        while not self.stop:
            with contextlib.suppress(*LOST):
                if not await self._log.acquire():
                    await asyncio.sleep(0.05)
                    continue
                self.book.head = await self._log.head()
                await self._write()
        await self._log.close()

    async def _write(self) -> None:
        while not self.stop:
            await self.book.charge(self._chance.randrange(1, 200))
            await asyncio.sleep(self._chance.random() * 0.02)


class Relays:
    """One relay process, or for a while two."""

    def __init__(self, conninfo: str, nats_url: str, output: Path) -> None:
        self._output = output
        self._arguments = [sys.executable, "-m", "tests.campaigns.relay_process", conninfo, nats_url]
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        with self._output.open("ab") as output:
            relay = subprocess.Popen(ending_with_us(self._arguments), stdout=output, stderr=subprocess.STDOUT)
        self._running.append(relay)

    def kill_oldest(self) -> None:
        relay = self._running.pop(0)
        relay.kill()
        relay.wait()

    def last_words(self) -> str:
        """What they were doing, and where they stand now."""
        for relay in self._running:
            relay.send_signal(signal.SIGUSR1)
        time.sleep(1)
        return self._output.read_text(encoding="utf-8")[-20_000:]

    def end(self) -> None:
        while self._running:
            self.kill_oldest()


def kill(server: EmbeddedNats | EmbeddedPostgres) -> None:
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    while server.alive:
        time.sleep(0.001)


async def strike(what: str, servers: EmbeddedServers, relays: Relays, chance: random.Random) -> None:
    if what == "relay":
        relays.kill_oldest()
        await asyncio.sleep(chance.random() * 0.3)
        relays.start()
    elif what == "second relay":
        relays.start()
        await asyncio.sleep(1 + chance.random())
        relays.kill_oldest()
    elif what == "frozen nats":
        assert servers.nats.pid is not None
        os.kill(servers.nats.pid, signal.SIGSTOP)
        await asyncio.sleep(chance.random() * 2)
        os.kill(servers.nats.pid, signal.SIGCONT)
    else:
        server = servers.nats if what == "nats" else servers.postgres
        kill(server)
        await asyncio.sleep(chance.random() * 0.5)
        server.start()


async def test_whatever_is_killed_nats_has_each_event_once_in_order() -> None:
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    struck: dict[str, int] = {}
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        migrate(servers.postgres.dsn)
        writer = Writer(servers.postgres.dsn, chance)
        relays = Relays(servers.postgres.dsn, servers.nats.url, folder / "relays.log")
        relays.start()
        writing = asyncio.create_task(writer.run())
        try:
            for _ in range(KILLS):
                await asyncio.sleep(0.2 + chance.random())
                what = chance.choice(["relay", "second relay", "nats", "frozen nats", "postgres"])
                struck[what] = struck.get(what, 0) + 1
                await strike(what, servers, relays, chance)
            writer.stop = True
            await writing
            head = await head_of(servers.postgres.dsn)
            if not await reached(servers.nats.url, head):
                pytest.fail(f"KEYLEDGER_TEST_SEED={seed}: {head} is not reached: {relays.last_words()}")
        finally:
            relays.end()
            writing.cancel()
        stored = await read_all(servers.nats.url)

    print(f"\nKEYLEDGER_TEST_SEED={seed}: {head:,} events, {struck}")
    assert [s.message_id for s in stored] == [f"1.0.{n}" for n in range(1, head + 1)]
    assert [s.position for s in stored] == list(range(1, head + 1))
    assert all(a.sequence + 1 == b.sequence for a, b in pairwise(stored))


async def head_of(conninfo: str) -> int:
    log = PostgresLog(conninfo, wakeups=False)
    head = await log.head()
    await log.close()
    return head


async def reached(nats_url: str, head: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(StreamUnavailableError):
            place = await published_place(nats_url, 0)
            if place is not None and place.number == head:
                return True
        await asyncio.sleep(0.1)
    return False
