"""A real ledger on a PostgreSQL whose synchronous standby goes away, and on one that was deposed."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from infra.nats.relay import published_place
from services.cli.first_root_key import new_root_secret
from tests.campaigns.cluster import Program
from tests.contract.cable import Cable
from tests.contract.stream_worlds import read_all
from tests.replicas import Node, Replicas
from tests.servers import server_folder

PATIENCE_SECONDS = 60.0
LEASE_SECONDS = 1.0
WATCHED_SECONDS = 3.0
"""So long an answer is waited for that must not come: a lost outcome was looked up within a second."""


class Running:
    """One `keyledger serve`, and a client that shows its root key."""

    def __init__(
        self, name: str, database_url: str, nats_url: str, folder: Path, root_key: str, *more: str
    ) -> None:
        self.port = _free_port()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLEDGER_")}
        self.environment = kept | {
            "KEYLEDGER_DATABASE_URL": database_url,
            "KEYLEDGER_NATS_URL": nats_url,
            "KEYLEDGER_ROOT_KEY": root_key,
            "KEYLEDGER_LOG_FORMAT": "json",
            "KEYLEDGER_DATA_DIR": str(folder / "data"),
        }
        self.program = Program(name, ["serve", *more, "--port", str(self.port)], self.environment, folder)
        self.url = f"http://127.0.0.1:{self.port}"
        self.session = aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {root_key}"},
            timeout=aiohttp.ClientTimeout(total=PATIENCE_SECONDS),
        )

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.request(method, path, json=body) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text.startswith(("{", "[")) else text

    async def must(self, method: str, path: str, body: Any = None) -> Any:
        status, found = await self.ask(method, path, body)
        assert status < 300, found
        return found

    async def until_ready(self) -> None:
        async def ready() -> bool:
            # Its root key is made after it owns the log.
            with suppress(aiohttp.ClientError):
                found = [(await self.ask("GET", path))[0] for path in ("/readyz", "/v1/keyspaces")]
                return found == [200, 200]
            return False

        await until(ready, lambda: f"not ready: {self.said()[-3_000:]}")

    def said(self) -> str:
        return self.program.output.read_text(encoding="utf-8", errors="replace")

    async def close(self) -> None:
        await self.session.close()
        if self.program.alive:
            self.program.kill()


async def until(
    true: Callable[[], Awaitable[Any]], what: Callable[[], str], seconds: float = PATIENCE_SECONDS
) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := await true()):
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.05)
    return found


@asynccontextmanager
async def ledger(
    name: str, database_url: str, nats_url: str, folder: Path, root_key: str, *more: str
) -> AsyncGenerator[Running]:
    made = Running(name, database_url, nats_url, folder, root_key, *more)
    try:
        made.program.start()
        await made.until_ready()
        yield made
    finally:
        await made.close()


class Pair:
    """A ledger on a primary with a synchronous standby; it reaches the primary through a cable."""

    def __init__(self, replicas: Replicas, cable: Cable, running: Running) -> None:
        self.replicas = replicas
        self.cable = cable
        self.ledger = running
        self.organization_id = ""

    def waiting(self) -> list[int]:
        """Sessions of the ledger's writer that wait for the standby."""
        pids: str | None = self.replicas.primary.ask(
            "SELECT string_agg(pid::text, ',') FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND query LIKE '%append_p0%'"
        )
        return [int(pid) for pid in (pids or "").split(",") if pid]

    def events(self, node: Node) -> int:
        found: int = node.ask("SELECT count(*) FROM ledger.events_p0")
        return found

    def replayed(self) -> bool:
        """Does the standby show all that it was sent?"""
        return bool(self.replicas.standby.ask("SELECT pg_last_wal_receive_lsn() <= pg_last_wal_replay_lsn()"))

    def break_off(self, how: str) -> None:
        if how == "cut":
            self.cable.pull()
            self.cable.plug()
            return
        verb = {"terminated": "pg_terminate_backend", "cancelled": "pg_cancel_backend"}[how]
        [pid] = self.waiting()
        assert self.replicas.primary.ask(f"SELECT {verb}(%s)", pid)


@pytest.fixture
async def pair(replicated_postgres: Replicas, nats_url: str) -> AsyncIterator[Pair]:
    cable = Cable(replicated_postgres.a.conninfo())
    with server_folder() as folder:
        async with ledger("old", cable.conninfo, nats_url, folder, new_root_secret()) as running:
            yield Pair(replicated_postgres, cable, running)
    cable.close()


async def test_a_broken_off_wait_for_the_standby_is_never_answered_as_a_success(pair: Pair) -> None:
    """The backend is terminated, the wait cancelled, the connection cut: no 201 before the standby has it."""
    running, replicas = pair.ledger, pair.replicas
    organization = await running.must("POST", "/v1/organizations", {"name": "Acme"})
    path = f"/v1/organizations/{organization['id']}/wallet/credits"

    for turn, how in enumerate(("terminated", "cancelled", "cut"), start=1):
        credit = {"amount_micros": 1_000, "reference": how}
        replicas.isolate()
        # Now nothing comes any more; what came is to be seen first.
        await until(lambda: asyncio.to_thread(pair.replayed), lambda: "the standby never caught up")
        before = await asyncio.to_thread(pair.events, replicas.standby)
        asked = [asyncio.create_task(running.ask("POST", path, credit))]
        await until(lambda: asyncio.to_thread(pair.waiting), lambda: "the append never waited")
        await asyncio.to_thread(pair.break_off, how)

        ends = time.monotonic() + WATCHED_SECONDS
        while time.monotonic() < ends:
            await asyncio.wait(asked, timeout=0.5)
            answers = [one.result() for one in asked if one.done()]
            assert all(status == 503 for status, _ in answers), f"{how}: {answers}, and no standby has it"
            if len(answers) == len(asked) < 6:
                asked.append(asyncio.create_task(running.ask("POST", path, credit)))
        assert await asyncio.to_thread(pair.events, replicas.standby) == before
        assert await asyncio.to_thread(pair.events, replicas.primary) in {before, before + 1}

        replicas.reconnect()
        await asyncio.gather(*asked)
        await running.until_ready()
        await running.must("POST", path, credit)
        await asyncio.to_thread(replicas.wait_for_standby)
        wallet = await running.must("GET", f"/v1/organizations/{organization['id']}/wallet")
        assert wallet["balance_micros"] == 1_000 * turn, f"{how}: once"
        assert await asyncio.to_thread(pair.events, replicas.standby) > before


async def test_without_its_standby_nothing_is_verified_after_a_lease_and_all_say_why(pair: Pair) -> None:
    running, replicas = pair.ledger, pair.replicas
    check, _ = await a_used_key(pair)
    replicas.isolate()

    async def refused() -> bool:
        return (await running.ask("POST", "/v1/verify", check))[0] == 503

    started = time.monotonic()
    await until(refused, lambda: "it verifies still")
    assert time.monotonic() - started < 10 * LEASE_SECONDS
    await until(
        lambda: waits_for(running, "PostgreSQL waits for its standby"), lambda: "readyz says nothing of it"
    )
    status, problem = await running.ask("POST", "/v1/verify", check)
    assert (status, problem["code"], problem["dependency"]) == (503, "dependency_unavailable", "postgresql")
    assert "waits for its standby" in problem["detail"]
    assert "keyledger_waits_for_standby 1.0" in (await running.ask("GET", "/metrics"))[1]
    assert "PostgreSQL waits for its standby" in await asyncio.to_thread(doctor, running)

    replicas.reconnect()
    await running.until_ready()

    assert (await running.must("POST", "/v1/verify", check))["code"] == "valid"
    assert running.said().count('"partition.owned"') == 1, "it was the owner all the time"


async def test_a_process_stops_though_its_standby_is_away(pair: Pair) -> None:
    running, replicas = pair.ledger, pair.replicas
    organization = await running.must("POST", "/v1/organizations", {"name": "Acme"})
    replicas.isolate()
    path = f"/v1/organizations/{organization['id']}/wallet/credits"
    asked = asyncio.create_task(running.ask("POST", path, {"amount_micros": 1, "reference": "r"}))
    await until(lambda: asyncio.to_thread(pair.waiting), lambda: "the append never waited")

    running.program._process.terminate()  # type: ignore[union-attr]  # it runs

    await until(lambda: _is(not running.program.alive), running.said, 45)
    status = await asyncio.gather(asked, return_exceptions=True)
    assert not isinstance(status[0], tuple) or status[0][0] == 503


async def test_the_owner_on_a_deposed_primary_verifies_nothing_after_a_lease(
    pair: Pair, nats_url: str
) -> None:
    """Split brain: the standby was promoted, the old primary lives on, and its ledger reaches only that."""
    old, replicas = pair.ledger, pair.replicas
    check, key_id = await a_used_key(pair)
    replicas.isolate()
    await asyncio.to_thread(replicas.promote, replicas.b)
    root_key = old.environment["KEYLEDGER_ROOT_KEY"]
    with server_folder() as folder:
        async with ledger("new", replicas.b.conninfo(), nats_url, folder, root_key, "--no-worker") as new:
            await new.must("POST", f"/v1/keys/{key_id}/revoke", {"reason": "leaked"})
            revoked = time.monotonic()

            accepted = 0
            while time.monotonic() - revoked < 3 * LEASE_SECONDS:
                _, verdict = await old.ask("POST", "/v1/verify", check)
                accepted += verdict["code"] == "valid"
                await asyncio.sleep(0.05)

            assert accepted == 0, f"{accepted} times a revoked key was valid on the deposed primary"
            assert (await new.must("POST", "/v1/verify", check))["code"] == "revoked"
            assert not await waits_for(new, "standby")


async def test_a_fail_over_after_a_broken_off_wait_stops_nobody_and_nats_was_told_nothing_of_it(
    replicated_postgres: Replicas, nats_url: str
) -> None:
    """Nothing acknowledged is lost: the other ledger goes on, and no operator is asked for."""
    replicas, root_key = replicated_postgres, new_root_secret()

    async def published() -> int:
        place = await published_place(nats_url, 0)
        return 0 if place is None else place.number

    with server_folder() as folder:
        async with (
            ledger("one", replicas.conninfo, nats_url, folder, root_key) as one,
            ledger("two", replicas.conninfo, nats_url, folder, root_key, "--no-worker") as two,
        ):
            pair = Pair(replicas, Cable(replicas.a.conninfo()), one)
            organization = await one.must("POST", "/v1/organizations", {"name": "Acme"})
            path = f"/v1/organizations/{organization['id']}/wallet/credits"

            async def all_published() -> bool:
                return await published() == pair.events(replicas.primary)

            await until(all_published, lambda: "NATS was not told")
            replicas.isolate()
            asked = asyncio.create_task(
                one.ask("POST", path, {"amount_micros": 1_000, "reference": "broken off"})
            )
            await until(lambda: asyncio.to_thread(pair.waiting), lambda: "the append never waited")
            pair.break_off("terminated")
            kept = pair.events(replicas.b)
            await until(lambda: _is(pair.events(replicas.a) > kept), lambda: "the event is not to be seen")
            await until(lambda: waits_for(two, "PostgreSQL waits for its standby"), two.said)
            await asyncio.sleep(WATCHED_SECONDS)

            assert await published() <= kept, "NATS was told of what no standby has"
            await asyncio.to_thread(replicas.promote, replicas.b)
            replicas.a.kill()
            await asyncio.wait({asked})

            async def credited() -> bool:
                credit = {"amount_micros": 5, "reference": "kept"}
                return (await two.ask("POST", path, credit))[0] < 300

            await until(credited, lambda: f"nobody goes on: {two.said()[-3_000:]}")
            assert "history.differs" not in one.said() + two.said()
            await until(all_published, lambda: f"NATS was not told: {one.said()[-3_000:]}")
            stored = [place.message_id for place in await read_all(nats_url) if place.body]
            assert stored == [f"1.0.{number}" for number in range(1, len(stored) + 1)]
            assert len(stored) > kept
            pair.cable.close()


async def a_used_key(pair: Pair) -> tuple[dict[str, str], str]:
    """What a use of a new key says, and the key's id; that it is used is written already.

    Else the ledger would write that soon, and an append that waits for the standby gives it away.
    """
    running = pair.ledger
    keyspace = await running.must("POST", "/v1/keyspaces", {"name": "gateway", "preset": "default"})
    organization = await running.must("POST", "/v1/organizations", {"name": "Acme"})
    body = {"keyspace_id": keyspace["id"], "organization_id": organization["id"], "name": "k"}
    made = await running.must("POST", "/v1/keys", body)
    before = pair.events(pair.replicas.primary)
    check = {"secret": made["secret"], "keyspace_id": keyspace["id"]}
    assert (await running.must("POST", "/v1/verify", check))["code"] == "valid"

    async def written() -> bool:
        return await asyncio.to_thread(pair.events, pair.replicas.primary) > before

    await until(written, lambda: "the use was never written")
    return check, made["key"]["id"]


async def waits_for(running: Running, what: str) -> bool:
    return what in json.dumps((await running.ask("GET", "/readyz"))[1])


def doctor(running: Running) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "from keyledger_boot import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=running.environment | {"KEYLEDGER_URL": running.url},
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1, done.stdout
    [found] = [one for one in json.loads(done.stdout)["findings"] if one["what"] == "durability"]
    return str(found["found"])


async def _is(true: bool) -> bool:  # noqa: FBT001  # what a caller waits for
    return true


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
