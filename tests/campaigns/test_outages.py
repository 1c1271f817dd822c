"""NATS or PostgreSQL is away for minutes: nothing lost, published early or twice, and no restart needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import nats
import pytest
from nats.aio.msg import Msg

from infra.postgres.log import PostgresLog
from keyledger_edge import Verifier
from tests.campaigns.cluster import Cluster, cluster
from tests.campaigns.load import Client, Load
from tests.campaigns.test_crashes import compare, survived

SECONDS = float(os.environ.get("KEYLEDGER_OUTAGE_SECONDS", "300"))
_WORKERS = 8
_STALE_MS = 4_000
_NOTICED_SECONDS = 3.0
"""A killed server's sockets close at once, and an edge's lease ends a second later."""
_BACK_SECONDS = 30.0
_ENOUGH = 100
"""So many operations are acknowledged before, and so many afterwards."""


class Told(NamedTuple):
    """One answer."""

    status: int
    body: dict[str, Any]

    @property
    def missing(self) -> str | None:
        """What the ledger says that it needs."""
        return self.body.get("dependency") if self.status == 503 else None

    @property
    def without(self) -> list[str]:
        """What a process is ready without."""
        return [one["dependency"] for one in self.body["does_without"]]


class Prober:
    """A caller that asks once, with a key of its own, and takes the answer as it is."""

    def __init__(self, running: Cluster, session: aiohttp.ClientSession, key: dict[str, str]) -> None:
        self._running = running
        self._session = session
        self.key = key
        self._count = 0

    async def ask(self, address: str, method: str, path: str, body: dict[str, Any] | None = None) -> Told:
        async with self._session.request(method, address + path, json=body) as answer:
            return Told(answer.status, await answer.json(content_type=None))

    async def charge(self, address: str) -> Told:
        self._count += 1
        body = {"key_id": self.key["id"], "request_id": f"probe-{self._count}", "amount_micros": 1}
        return await self.ask(address, "POST", "/v1/charges", body)

    async def verify(self, address: str) -> Told:
        body = {"secret": self.key["secret"], "keyspace_id": self.key["keyspace_id"]}
        return await self.ask(address, "POST", "/v1/verify", body)

    async def ready(self, address: str) -> Told:
        return await self.ask(address, "GET", "/readyz")

    async def read(self, address: str) -> Told:
        return await self.ask(address, "GET", f"/v1/keys/{self.key['id']}")


class Listener:
    """Hears what is published, and looks whether the log has it already."""

    def __init__(self, running: Cluster) -> None:
        self._log = PostgresLog(running.database_url, wakeups=False)
        self._unchecked = 0
        self.heard = 0
        self.early: list[str] = []

    async def hear(self, message: Msg) -> None:
        """The position of a message, to be looked for in the log at once."""
        if (name := (message.headers or {}).get("Nats-Msg-Id")) is not None:
            self.heard += 1
            self._unchecked = max(self._unchecked, int(name.rpartition(".")[2]))

    async def check(self) -> None:
        """Without end: what was heard before the log is asked must be in it."""
        while True:
            published = self._unchecked
            with contextlib.suppress(Exception):
                head = await self._log.head()
                if published > head:
                    self.early.append(f"{published} was published when the log ended at {head}")
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self._log.close()


class Scene:
    """A cluster under load, and everybody who looks on."""

    def __init__(
        self, running: Cluster, client: Client, load: Load, prober: Prober, listener: Listener
    ) -> None:
        self.running = running
        self.client = client
        self.load = load
        self.prober = prober
        self.listener = listener
        self.working = asyncio.create_task(load.run(_WORKERS))
        self._started = {program.name: program.pid for program in (*running.ledgers, running.worker)}

    def kill(self, server: Any) -> None:
        os.kill(server.pid, signal.SIGKILL)

    async def bring_back(self, server: Any) -> None:
        server.spawn()
        await asyncio.to_thread(server.wait)

    async def grants_again(self) -> float:
        """How long it takes until every process grants a charge, without a restart."""
        began = time.monotonic()
        for address in self.running.addresses:
            while (told := await self.prober.charge(address)).status != 201:
                assert time.monotonic() - began < _BACK_SECONDS, f"{told}: {self.running.last_words()}"
                await asyncio.sleep(0.1)
        return time.monotonic() - began

    def nobody_was_restarted(self) -> None:
        programs = (*self.running.ledgers, self.running.worker)
        assert {program.name: program.pid for program in programs} == self._started
        assert [program.ended for program in programs] == [[]] * len(programs)

    async def every_answer(self, method: str) -> list[Told]:
        """What each process says, asked at once."""
        asking = [getattr(self.prober, method)(address) for address in self.running.addresses]
        return list(await asyncio.gather(*asking))


@asynccontextmanager
async def scene(seconds: float) -> AsyncGenerator[Scene]:
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(cluster(KEYLEDGER_MAX_SERVE_STALE_MS=str(_STALE_MS)))
        client = Client(running, random.Random(seed), patience=seconds + 90)
        await stack.enter_async_context(client)
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=running.authorization))
        load = Load(client, random.Random(seed + 1))
        await load.prepare()
        prober = Prober(running, session, await _own_key(client))
        listener = Listener(running)
        stack.push_async_callback(listener.close)
        connection = await nats.connect(
            running.servers.nats.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_nothing
        )
        stack.push_async_callback(connection.close)
        await connection.subscribe("keyledger.events.>", cb=listener.hear)
        made = Scene(running, client, load, prober, listener)
        tasks = [made.working, asyncio.create_task(listener.check())]
        try:
            await survived(load, made.working, _ENOUGH, running)
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _own_key(client: Client) -> dict[str, str]:
    def once(what: str) -> dict[str, str]:
        return {"Idempotency-Key": f"the prober's {what}"}

    keyspace = await client.must(
        "POST",
        "/v1/keyspaces",
        {"name": "probes", "preset": "default", "prefix": "kl_probe_"},
        **once("keyspace"),
    )
    organization = await client.must("POST", "/v1/organizations", {"name": "probes"}, **once("organization"))
    credit = {"amount_micros": 10**9, "reference": "for probes"}
    await client.must("POST", f"/v1/organizations/{organization['id']}/wallet/credits", credit)
    body = {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "probe"}
    made = await client.must("POST", "/v1/keys", body, **once("key"))
    return {"id": made["key"]["id"], "secret": made["secret"], "keyspace_id": keyspace["id"]}


async def _nothing(_: Exception) -> None:
    """That NATS is away is what this is about."""


@asynccontextmanager
async def edge(made: Scene, **terms: Any) -> AsyncGenerator[Verifier]:
    """An edge that has the prober's key in memory."""
    running, key = made.running, made.prober.key
    verifier = Verifier.at(running.addresses[0], running.root_key, patience_seconds=0.5, **terms)
    await verifier.connect()
    try:
        assert (await verifier.verify(key["secret"], keyspace_id=key["keyspace_id"])).valid
        yield verifier
    finally:
        await verifier.close()


async def said(verifier: Verifier, made: Scene) -> str:
    key = made.prober.key
    return (await verifier.verify(key["secret"], keyspace_id=key["keyspace_id"])).code


async def finish(made: Scene, what: str, seconds: float, granted: int, back: float) -> None:
    """Everything that was said is compared with the log, wallets, projections and the stream."""
    await survived(made.load, made.working, _ENOUGH, made.running)
    made.load.stopping = True
    await asyncio.wait_for(made.working, 120)
    made.nobody_was_restarted()
    print(f"{what} away for {seconds:.0f} s: {granted:,} acknowledged meanwhile, back after {back:.1f} s")
    await compare(made.running, made.load, made.client, Counter({what: 1}), seconds)
    assert made.listener.heard > 0
    assert made.listener.early == []
    print(f"heard {made.listener.heard:,} messages as they were published, none before its commit")


async def nats_is_away(seconds: float) -> None:
    """Charges go on; afterwards the stream has every position once, in order."""
    async with scene(seconds) as made, edge(made) as near:
        server = made.running.servers.nats
        before, ends = made.load.acknowledged, time.monotonic() + seconds
        made.kill(server)
        await asyncio.sleep(_NOTICED_SECONDS)
        while time.monotonic() < ends:
            acknowledged = made.load.acknowledged
            for told in await made.every_answer("charge") + await made.every_answer("verify"):
                assert told.status in {200, 201}, told
            for told in await made.every_answer("ready"):
                assert (told.status, told.without) == (200, ["nats"]), told
            # Without a lease an edge asks the ledger.
            assert (await said(near, made), near.ready) == ("valid", False)
            await asyncio.sleep(min(1.0, max(0.1, ends - time.monotonic())))
            assert made.load.acknowledged > acknowledged, made.running.last_words()
        granted = made.load.acknowledged - before
        await made.bring_back(server)
        back = await made.grants_again()
        async with asyncio.timeout(_BACK_SECONDS):
            while not near.ready or any(told.without for told in await made.every_answer("ready")):
                await asyncio.sleep(0.05)
        await finish(made, "nats", seconds, granted, back)


async def postgresql_is_away(seconds: float) -> None:
    """Writes and verdicts are refused, with the reason; memory is read; edges serve as far as they may."""
    async with scene(seconds) as made, edge(made) as strict, edge(made, serve_stale_ms=_STALE_MS) as lenient:
        server = made.running.servers.postgres
        made.kill(server)
        killed = time.monotonic()
        await asyncio.sleep(_NOTICED_SECONDS)
        granted = made.load.acknowledged
        assert await said(lenient, made) == "valid"
        assert await said(strict, made) == "ledger_unreachable"
        while time.monotonic() < killed + seconds:
            for told in await made.every_answer("charge") + await made.every_answer("verify"):
                assert told.missing == "postgresql", told
            assert {told.status for told in await made.every_answer("read")} == {200}
            assert {told.status for told in await made.every_answer("ready")} == {503}
            assert (await said(strict, made), await said(lenient, made)) == ("ledger_unreachable",) * 2
            assert made.load.acknowledged == granted
            await asyncio.sleep(min(1.0, max(0.0, killed + seconds - time.monotonic())))
        await made.bring_back(server)
        back = await made.grants_again()
        async with asyncio.timeout(_BACK_SECONDS):
            while not (strict.ready and lenient.ready):
                await asyncio.sleep(0.05)
        assert (await said(strict, made), await said(lenient, made)) == ("valid", "valid")
        await finish(made, "postgres", seconds, 0, back)


@pytest.mark.campaign
@pytest.mark.timeout(SECONDS + 600)
async def test_nats_is_away_for_minutes() -> None:
    await nats_is_away(SECONDS)


@pytest.mark.campaign
@pytest.mark.timeout(SECONDS + 600)
async def test_postgresql_is_away_for_minutes() -> None:
    await postgresql_is_away(SECONDS)


@pytest.mark.slow
async def test_nats_is_away_for_seconds() -> None:
    await nats_is_away(6)


@pytest.mark.slow
async def test_postgresql_is_away_for_seconds() -> None:
    await postgresql_is_away(10)
