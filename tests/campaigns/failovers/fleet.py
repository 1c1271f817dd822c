"""Two ledgers, two workers and three edges on a replicated PostgreSQL and a NATS, each to be broken alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from domain.publishing import Place
from infra.embedded import EmbeddedServers
from infra.nats.relay import published_place
from tests.campaigns.cluster import PROGRAM, Cluster, Program
from tests.campaigns.edges.charging import LibraryEdge, SidecarEdge, edges_of
from tests.contract.cable import Cable
from tests.replicas import Node, Replicas, replicated
from tests.servers import server_folder

Edge = LibraryEdge | SidecarEdge
_COMMAND_SECONDS: Final = 60


class Fleet(Cluster):
    """All of it; every program has cables of its own to the two PostgreSQL."""

    def __init__(self, folder: Path, servers: EmbeddedServers, replicas: Replicas) -> None:
        super().__init__(folder, servers, 2, {}, workers=2, database_url=replicas.conninfo)
        self.replicas = replicas
        self.edges: list[Edge] = []
        self._environment = dict(self.ledgers[0].environment)
        self._cuts: Counter[Cable] = Counter()
        """By how many faults each cable is cut."""
        self._cables = {
            program.name: {node.name: Cable(node.conninfo()) for node in replicas.nodes}
            for program in self.programs
        }
        for program in self.programs:
            ways = self._cables[program.name]
            hosts = (ways[node.name].folder for node in replicas.nodes)
            program.environment["KEYLEDGER_DATABASE_URL"] = replicas.conninfo_through(*hosts)

    def start_edges(self, keyspace_id: str) -> None:
        self.edges = edges_of(self, keyspace_id)
        for edge in self.edges:
            edge.start()

    def cables(self, program: Program, *nodes: Node) -> Iterator[Cable]:
        """Its ways to these PostgreSQL; to all of them when none is named."""
        for node in nodes or self.replicas.nodes:
            yield self._cables[program.name][node.name]

    def unplug(self, *nodes: Node, programs: tuple[Program, ...] = ()) -> list[Cable]:
        """Cut these programs (or all) off from these PostgreSQL; the cables, for `plug`."""
        cut = [cable for program in programs or self.programs for cable in self.cables(program, *nodes)]
        for cable in cut:
            self._cuts[cable] += 1
            cable.pull()
        return cut

    def plug(self, cut: list[Cable]) -> None:
        """They carry again, but for those that another fault has cut meanwhile, or had before."""
        for cable in cut:
            self._cuts[cable] -= 1
            if not self._cuts[cable]:
                cable.plug()

    # -- what an operator does

    async def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Carry out a command of the program's, beside the running ones."""
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder,
            env=self._environment | {"KEYLEDGER_DATABASE_URL": self.replicas.conninfo,
                                     "KEYLEDGER_URL": self.addresses[0], "KEYLEDGER_API_KEY": self.root_key},
        )  # fmt: skip
        async with asyncio.timeout(_COMMAND_SECONDS):
            told, problem = await process.communicate()
        status = process.returncode
        assert status is not None
        return subprocess.CompletedProcess(arguments, status, told.decode(), problem.decode())

    async def must(self, *arguments: str) -> dict[str, Any]:
        """The JSON that a command answers, which has to succeed."""
        done = await self.command(*arguments, "--json")
        assert done.returncode == 0, f"{arguments}: {done.stdout[-2_000:]} {done.stderr[-2_000:]}"
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    # -- what is known of the log

    async def head_of(self, node: Node) -> int:
        """The last position that this PostgreSQL has."""
        return int(
            await asyncio.to_thread(
                node.ask, "SELECT coalesce(max(notification_id), 0) FROM ledger.events_p0"
            )
        )

    async def heard(self) -> Place | None:
        """The last event that NATS has, if it is there."""
        with contextlib.suppress(Exception):
            return await published_place(self.servers.nats.url, 0)
        return None

    async def owner(self) -> Program:
        """The ledger that owns the partition, or did last."""
        address = await asyncio.to_thread(self.replicas.primary.ask, "SELECT address FROM ledger.owners")
        return self.ledgers[self.addresses.index(address)]

    def others_of(self, ledger: Program) -> list[str]:
        """The addresses of all ledgers but this one."""
        return [one for n, one in enumerate(self.addresses) if self.ledgers[n] is not ledger]

    # -- light faults

    def freeze_process(self, pid: int, *, thaw: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT if thaw else signal.SIGSTOP)

    def last_words(self) -> str:
        edges = "\n".join(
            f"--- {edge.name}\n{edge.log.read_text(encoding='utf-8', errors='replace')[-1_500:]}"
            for edge in self.edges
            if edge.log.exists()
        )
        nodes = "\n".join(f"--- {node.name}\n{node.last_words()}" for node in self.replicas.nodes)
        return f"{super().last_words()}\n{edges}\n{nodes}"

    def end(self) -> None:
        for edge in self.edges:
            edge.kill()
        for program in self.programs:
            if program.alive:
                program.kill()
            for cable in self.cables(program):
                cable.close()
        if self.servers.nats.pid is not None:
            self.freeze_process(self.servers.nats.pid, thaw=True)


@asynccontextmanager
async def fleet(template: Path) -> AsyncGenerator[Fleet]:
    """All but the edges runs; nothing of it is left afterwards."""
    with (
        server_folder() as folder,
        EmbeddedServers(folder / "data", postgres=False) as servers,
        replicated(template) as replicas,
    ):
        made = Fleet(folder, servers, replicas)
        supervising = asyncio.create_task(made.supervise())
        try:
            await made.start()
            yield made
        finally:
            supervising.cancel()
            made.end()
            await asyncio.gather(*(edge.close() for edge in made.edges), return_exceptions=True)


def some(chance: random.Random, programs: tuple[Program, ...]) -> list[Program]:
    """Any of them, at least one."""
    return chance.sample(programs, chance.randrange(1, len(programs) + 1))
