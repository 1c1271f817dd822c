"""Ledger, NATS, edges and the network between them, and everything that happens to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import aiohttp
import msgspec

from infra.embedded import EmbeddedServers
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from keyledger_language import events as e
from tests.campaigns.cluster import Cluster
from tests.campaigns.edges.book import Control, Plan, Slot
from tests.campaigns.edges.network import Network, Way, Weather
from tests.processes import ending_with_us
from tests.servers import initialised, server_folder


class EdgeProgram:
    """One edge and its lives: after a SIGKILL comes the next, with an empty memory and a book of its own."""

    def __init__(
        self, number: int, world: World, slots: list[Slot], keyspace_id: str, mutant: str = ""
    ) -> None:
        self.number = number
        self.books: list[Path] = []
        self._world = world
        self._slots = slots
        self._keyspace_id = keyspace_id
        self._mutant = mutant
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        world = self._world
        book = world.folder / "books" / f"edge-{self.number}-{len(self.books)}"
        self.books.append(book)
        plan = Plan(
            url=f"http://127.0.0.1:{world.network.http_ports[self.number]}",
            key=world.cluster.root_key,
            keyspace_id=self._keyspace_id,
            slots=self._slots,
            book=str(book),
            control=str(world.control_path),
            mutant=self._mutant,
        )
        with (world.folder / f"edge-{self.number}.log").open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_us([sys.executable, "-m", "tests.campaigns.edges.edge_process"]),
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(plan))
        self._process.stdin.close()

    def signal(self, number: int) -> None:
        if self.alive:
            os.kill(self.pid, number)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        """Wait for its own end; its status."""
        if self._process is None:
            return 0
        try:
            return self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return -9


class World:
    """All that runs."""

    def __init__(self, folder: Path, cluster: Cluster, network: Network) -> None:
        self.folder = folder
        self.cluster = cluster
        self.network = network
        self.control_path = folder / "control"
        self.control = Control(self.control_path)
        self.edges: list[EdgeProgram] = []

    def start_edges(self, count: int, slots: list[Slot], keyspace_id: str, mutant: str = "") -> None:
        self.edges = [EdgeProgram(n, self, slots, keyspace_id, mutant) for n in range(count)]
        for edge in self.edges:
            edge.start()

    def stop_edges(self) -> list[int]:
        self.control.stop()
        for edge in self.edges:
            edge.signal(signal.SIGCONT)
        return [edge.end() for edge in self.edges]

    @property
    def books(self) -> list[Path]:
        return [book for edge in self.edges for book in edge.books if book.exists()]

    async def receipts(self) -> tuple[list[e.RevocationFenced], dict[int, int]]:
        """All receipts, and when each position was decided."""
        mapper = EventMapper(get_args(e.LedgerEvent))
        log = PostgresLog(self.cluster.database_url, wakeups=False)
        try:
            mapper.data_keys.learn(await log.data_keys())
            receipts: list[e.RevocationFenced] = []
            decided: dict[int, int] = {}
            position = 0
            while batch := await log.read(position, 5_000):
                for one in batch:
                    position = one.position
                    event = mapper.decode(one)
                    decided[position] = event.at
                    if isinstance(event, e.RevocationFenced):
                        receipts.append(event)
            return receipts, decided
        finally:
            await log.close()


@asynccontextmanager
async def world(edges: int, *, ledgers: int = 2, settings: dict[str, str]) -> AsyncGenerator[World]:
    """Everything but the edges runs; nothing of it is left afterwards."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        cluster = Cluster(folder, servers, ledgers, settings)
        nats = urlsplit(servers.nats.edge_url)
        assert nats.port is not None
        addresses = [(parts.hostname or "", parts.port or 0) for parts in map(urlsplit, cluster.addresses)]
        async with Network(edges, ("127.0.0.1", nats.port), addresses) as network:
            told = f"nats://127.0.0.1:{network.nats_port}"
            for ledger in cluster.ledgers:
                ledger.environment["KEYLEDGER_EDGE_NATS_URL"] = told
                ledger.environment["KEYLEDGER_EDGE_NATS_ISSUER"] = servers.nats.issuer_seed
            made = World(folder, cluster, network)
            supervising = asyncio.create_task(cluster.supervise())
            try:
                await cluster.start()
                yield made
            finally:
                supervising.cancel()
                for edge in made.edges:
                    if edge.alive:
                        edge.kill()
                for program in (*cluster.ledgers, cluster.worker):
                    if program.alive:
                        program.kill()
                if servers.nats.pid is not None:
                    os.kill(servers.nats.pid, signal.SIGCONT)
                made.control.close()


Fault = Callable[[], Coroutine[Any, Any, None]]


class Chaos:
    """Lets something happen again and again, to edges, ledgers, NATS and the ways between them."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self.struck: Counter[str] = Counter()
        self.longest_ledger_stop = 0.0
        self._busy: set[str] = set()

    async def run(self, calm_seconds: float) -> None:
        """Until cancelled; then everything goes on as if nothing had been."""
        faults: dict[Fault, int] = {
            self._stop_edge: 15, self._kill_edge: 6, self._stop_ledger: 4, self._kill_ledger: 3,
            self._stop_nats: 3, self._kill_nats: 2, self._delay: 15, self._cut: 20, self._drip: 8,
            self._reset: 8, self._isolate: 15,
        }  # fmt: skip
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                fault = self._chance.choices(list(faults), list(faults.values()))[0]
                task = asyncio.create_task(fault())
                running.add(task)
                await asyncio.sleep(self._chance.random() * 2 * calm_seconds)
                for done in [one for one in running if one.done()]:
                    running.discard(done)
                    done.result()
        finally:
            # To their ends: what was killed must be started again.
            if running:
                await asyncio.wait(running, timeout=20)
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            for weather in (*self._world.network.nats_weather, *self._world.network.http_weather):
                weather.clear()

    def _seconds(self, most: float) -> float:
        """Mostly short, sometimes longer than any lease."""
        return 0.05 + most * self._chance.random() ** 2

    @contextlib.contextmanager
    def _alone(self, name: str) -> Generator[bool]:
        """One fault at a time for one process."""
        free = name not in self._busy
        self._busy.add(name)
        try:
            yield free
        finally:
            if free:
                self._busy.discard(name)

    # -- processes

    async def _freeze(self, name: str, pid: int, seconds: float) -> None:
        self.struck[f"SIGSTOP {name}"] += 1
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _stop_edge(self) -> None:
        edge = self._chance.choice(self._world.edges)
        with self._alone(f"edge-{edge.number}") as free:
            if free and edge.alive:
                await self._freeze("edge", edge.pid, self._seconds(3.0))

    async def _kill_edge(self) -> None:
        edge = self._chance.choice(self._world.edges)
        with self._alone(f"edge-{edge.number}") as free:
            if free:
                self.struck["SIGKILL edge"] += 1
                edge.kill()
                await asyncio.sleep(self._seconds(1.0))
                edge.start()

    async def _stop_ledger(self) -> None:
        number = self._chance.randrange(len(self._world.cluster.ledgers))
        with self._alone("ledger") as free:
            program = self._world.cluster.ledgers[number]
            if free and program.alive:
                seconds = self._seconds(4.0)
                self.longest_ledger_stop = max(self.longest_ledger_stop, seconds)
                await self._freeze("ledger", program.pid, seconds)

    async def _kill_ledger(self) -> None:
        number = self._chance.randrange(len(self._world.cluster.ledgers))
        with self._alone("ledger") as free:
            program = self._world.cluster.ledgers[number]
            if free and program.alive:
                self.struck["SIGKILL ledger"] += 1
                await self._world.cluster.strike(f"ledger-{number}", self._seconds(1.0))
                await self._until_owned()
                # Fences and leases must have time to work between two of these.
                await asyncio.sleep(3.0 * self._chance.random())

    async def _until_owned(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while True:
                for address in self._world.cluster.addresses:
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                        async with session.get(f"{address}/readyz") as answer:
                            if answer.status == 200:
                                return
                await asyncio.sleep(0.1)

    async def _stop_nats(self) -> None:
        with self._alone("nats") as free:
            pid = self._world.cluster.servers.nats.pid
            if free and pid is not None:
                await self._freeze("nats", pid, self._seconds(3.0))

    async def _kill_nats(self) -> None:
        with self._alone("nats") as free:
            if free:
                self.struck["SIGKILL nats"] += 1
                await self._world.cluster.strike("nats", self._seconds(1.0))

    # -- ways

    def _ways(self) -> list[Weather]:
        network = self._world.network
        chosen = self._chance.sample(range(len(network.nats_weather)), self._chance.randrange(1, 4))
        kinds = self._chance.choice([[network.nats_weather], [network.nats_weather], [network.http_weather]])
        return [kind[number] for kind in kinds for number in chosen]

    async def _bad_weather(self, name: str, ways: list[Weather], worsen: Callable[[Weather], None]) -> None:
        self.struck[name] += 1
        for weather in ways:
            worsen(weather)
        try:
            await asyncio.sleep(self._seconds(4.0))
        finally:
            for weather in ways:
                weather.clear()
                if self._chance.random() < 0.3:
                    weather.reset()

    async def _delay(self) -> None:
        seconds, way = self._seconds(1.5), self._way()
        await self._bad_weather("delay", self._ways(), lambda one: one.delay.update({way: seconds}))

    async def _cut(self) -> None:
        way = self._way()
        await self._bad_weather(f"cut {way}", self._ways(), lambda one: one.cut[way].clear())

    async def _drip(self) -> None:
        await self._bad_weather("drip", self._ways(), lambda one: setattr(one, "drip", True))

    async def _reset(self) -> None:
        self.struck["reset"] += 1
        for weather in self._ways():
            weather.reset()

    async def _isolate(self) -> None:
        """Cut off from NATS and ledger, both ways."""
        number, network = self._chance.randrange(len(self._world.edges)), self._world.network

        def cut(weather: Weather) -> None:
            for way in weather.cut.values():
                way.clear()

        await self._bad_weather("isolate", [network.nats_weather[number], network.http_weather[number]], cut)

    def _way(self) -> Way:
        return "up" if self._chance.random() < 0.5 else "down"
