"""A real ledger of several processes on a real PostgreSQL and NATS, each of which can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import get_args

import aiohttp

from infra.embedded import EmbeddedServers
from infra.nats.relay import published_place
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from infra.postgres.migrate import migrate
from infra.postgres.rebuilding import Check
from infra.postgres.rebuilding import check as check_projections
from keyledger_language.events import LedgerEvent
from projections.every import every_projection
from services.cli.first_root_key import new_root_secret
from tests.campaigns.checker import Recorded, record
from tests.contract.stream_worlds import read_all
from tests.processes import ending_with_us
from tests.servers import initialised, server_folder

PROGRAM = (sys.executable, "-P", "-c", "from keyledger_boot import main; main()")


class Program:
    """`keyledger` with some arguments, in a process of its own; started again after each kill."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self.name = name
        self.output = folder / f"{name}.log"
        self._arguments = [*PROGRAM, *arguments]
        self.environment = environment
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.wanted = False
        self.ended: list[int] = []
        """Its status, each time that it ended by itself."""

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.wanted = True
        if self.alive:
            return
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(
                ending_with_us(self._arguments),
                env=self.environment,
                cwd=self._folder,
                stdout=output,
                stderr=output,
            )

    def supervise(self) -> None:
        """Start it again if it ended by itself, as whatever runs it in production does."""
        if self.wanted and self._process is not None and (status := self._process.poll()) is not None:
            self.ended.append(status)
            self.start()

    def kill(self) -> None:
        """As kill -9 does."""
        assert self._process is not None
        self.wanted = False
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """As an operator would; its status."""
        self.wanted = False
        if self._process is None:
            return 0
        self._process.terminate()
        try:
            return self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Cluster:
    """Ledger processes, a worker, and the two servers under them."""

    def __init__(
        self,
        folder: Path,
        servers: EmbeddedServers,
        ledgers: int,
        settings: dict[str, str],
        *,
        workers: int = 1,
        database_url: str | None = None,
    ) -> None:
        self.folder = folder
        self.servers = servers
        self.root_key = new_root_secret()
        self.database_url = servers.postgres.dsn if database_url is None else database_url
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLEDGER_")}
        environment = kept | {
            "KEYLEDGER_DATABASE_URL": self.database_url,
            "KEYLEDGER_NATS_URL": servers.nats.url,
            "KEYLEDGER_EDGE_NATS_URL": servers.nats.edge_url,
            "KEYLEDGER_EDGE_NATS_ISSUER": servers.nats.issuer_seed,
            "KEYLEDGER_ROOT_KEY": self.root_key,
            "KEYLEDGER_LOG_FORMAT": "json",
            **settings,
        }
        ports = [_free_port() for _ in range(ledgers)]
        self.addresses = [f"http://127.0.0.1:{port}" for port in ports]
        self.asked = self.addresses
        """Those that clients choose from; none: they wait."""
        self.ledgers = [
            Program(f"ledger-{n}", ["serve", "--no-worker", "--port", str(port)], environment.copy(), folder)
            for n, port in enumerate(ports)
        ]
        self.workers = [
            Program(f"worker-{n}" if n else "worker", ["project"], environment.copy(), folder)
            for n in range(workers)
        ]
        self.worker = self.workers[0]
        self.programs = (*self.ledgers, *self.workers)

    async def start(self) -> None:
        """Have all of it answer."""
        migrate(self.database_url)
        for program in self.programs:
            program.start()
        async with aiohttp.ClientSession() as session:
            for address in self.addresses:
                await self._until_ready(session, address)

    async def supervise(self) -> None:
        """Without end: programs that ended by themselves are started again."""
        while True:
            await asyncio.sleep(0.2)
            for program in self.programs:
                program.supervise()

    async def _until_ready(self, session: aiohttp.ClientSession, address: str) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{address}/v1/keyspaces", headers=self.authorization) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{address} is not ready: {self.last_words()}")

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.root_key}"}

    def last_words(self) -> str:
        """The end of what every process wrote."""
        outputs = [program.output for program in self.programs]
        return "\n".join(
            f"--- {output.name}\n{output.read_text(encoding='utf-8', errors='replace')[-3_000:]}"
            for output in outputs
            if output.exists()
        )

    # -- faults

    async def strike(self, what: str, pause: float) -> None:
        """Kill it, wait, start it again."""
        if what in {"postgres", "nats"}:
            server = self.servers.postgres if what == "postgres" else self.servers.nats
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            while server.alive:
                await asyncio.sleep(0.001)
            await asyncio.sleep(pause)
            server.spawn()
            await asyncio.to_thread(server.wait)
            return
        program = self.worker if what == "worker" else self.ledgers[int(what.rpartition("-")[2])]
        program.kill()
        await asyncio.sleep(pause)
        program.start()

    async def freeze(self, ledger: int, seconds: float) -> None:
        """Pause a ledger process, as a machine that swaps or is moved does."""
        os.kill(self.ledgers[ledger].pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            os.kill(self.ledgers[ledger].pid, signal.SIGCONT)

    # -- what is left

    async def recorded(self) -> tuple[list[Recorded], int]:
        """The log, as the checker reads it, and its head."""
        mapper = EventMapper(get_args(LedgerEvent))
        log = PostgresLog(self.database_url, wakeups=False)
        try:
            mapper.data_keys.learn(await log.data_keys())
            found: list[Recorded] = []
            position = 0
            while batch := await log.read(position, 5_000):
                for one in batch:
                    assert one.position == position + 1, f"a hole behind {position}"
                    position = one.position
                    event = mapper.decode(one)
                    if (recorded := record(position, event)) is not None:
                        found.append(recorded)
            return found, position
        finally:
            await log.close()

    async def published(self, head: int) -> list[str]:
        """The message ids in JetStream, once it has them all."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):
                place = await published_place(self.servers.nats.url, 0)
                if place is not None and place.number >= head:
                    return [stored.message_id for stored in await read_all(self.servers.nats.url)]
            await asyncio.sleep(0.1)
        raise AssertionError(f"NATS has not reached {head}: {self.last_words()}")

    async def projected(self, head: int) -> Check:
        """The projections beside what the log makes of them, once they have reached the head."""
        deadline = time.monotonic() + 60
        mapper = EventMapper(get_args(LedgerEvent))
        while True:
            found = await asyncio.to_thread(check_projections, self.database_url, every_projection(), mapper)
            if found.position >= head or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.2)

    def stop(self) -> list[int]:
        """Stop all processes in good order; their statuses."""
        return [program.stop() for program in self.programs if program.alive]


@asynccontextmanager
async def cluster(ledgers: int = 2, **settings: str) -> AsyncGenerator[Cluster]:
    """A running cluster; nothing of it is left afterwards."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        made = Cluster(folder, servers, ledgers, settings)
        supervising = asyncio.create_task(made.supervise())
        try:
            await made.start()
            yield made
        finally:
            supervising.cancel()
            for program in made.programs:
                if program.alive:
                    program.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
