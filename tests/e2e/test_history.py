"""A database that is restored, or loses events in a fail-over, under real processes that live on."""

from __future__ import annotations

import json
import shutil
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.embedded import EmbeddedServers
from infra.postgres.migrate import migrate
from keyledger_edge import Verifier
from tests.e2e.ledgers import Place, place, until
from tests.servers import initialised, server_folder

ROOT_KEY = "kl_root_0123456789012345678901234567890pV6Ps"
COMMAND = "keyledger new-epoch"


@pytest.fixture
def servers() -> Iterator[EmbeddedServers]:
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        migrate(servers.postgres.dsn)
        yield servers


@pytest.fixture
def here(servers: EmbeddedServers) -> Iterator[Place]:
    own = {
        "KEYLEDGER_DATABASE_URL": servers.postgres.dsn,
        "KEYLEDGER_NATS_URL": servers.nats.url,
        "KEYLEDGER_EDGE_NATS_URL": servers.nats.edge_url,
        "KEYLEDGER_ROOT_KEY": ROOT_KEY,
        "KEYLEDGER_API_KEY": ROOT_KEY,
    }
    with place(**own, KEYLEDGER_LOG_FORMAT="json") as here:
        yield here


class Backup:
    """A copy of the data folder of a PostgreSQL that was stopped for it."""

    def __init__(self, servers: EmbeddedServers, where: Path) -> None:
        self._servers = servers
        self._folder = servers.folder.path / "postgres"
        self._copy = where / "backup"
        servers.postgres.stop()
        shutil.copytree(self._folder, self._copy, symlinks=True)
        _own_alike(self._folder, self._copy)
        servers.postgres.start()

    def restore(self) -> None:
        """What was written since the copy is lost; every process but PostgreSQL lives on."""
        self._servers.postgres.stop()
        shutil.rmtree(self._folder)
        shutil.copytree(self._copy, self._folder, symlinks=True)
        _own_alike(self._copy, self._folder)
        self._servers.postgres.start()


def _own_alike(source: Path, copy: Path) -> None:
    owner = source.stat() if source.exists() else copy.stat()
    for path in (copy, *copy.rglob("*")):
        shutil.chown(path, owner.st_uid, owner.st_gid)


def ask(url: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {ROOT_KEY}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def done(url: str, method: str, path: str, body: Any = None) -> Any:
    """Ask until it is carried out: a ledger may be taking over."""
    deadline = time.monotonic() + 30
    while True:
        status, found = ask(url, method, path, body)
        if status < 300:
            return found
        assert status == 503, found
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


class Shop:
    """A keyspace and an organization, and keys of them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keyspace_id = done(url, "POST", "/v1/keyspaces", {"name": "gateway", "preset": "default"})["id"]
        self.organization_id = done(url, "POST", "/v1/organizations", {"name": "Acme"})["id"]

    def key(self) -> tuple[str, str]:
        body = {"keyspace_id": self.keyspace_id, "organization_id": self.organization_id, "name": "k"}
        made = done(self.url, "POST", "/v1/keys", body)
        return made["key"]["id"], made["secret"]

    def write(self, count: int) -> None:
        """Some events that take nothing away."""
        path = f"/v1/organizations/{self.organization_id}/wallet/credits"
        for _ in range(count):
            done(self.url, "POST", path, {"amount_micros": 1, "reference": f"r{time.monotonic_ns()}"})


def ready(url: str) -> tuple[int, Any]:
    return ask(url, "GET", "/readyz")


def stopped_itself(url: str) -> bool:
    status, found = ready(url)
    return status == 503 and COMMAND in json.dumps(found)


async def eventually(true: Any, seconds: float = 30.0) -> None:
    import asyncio  # noqa: PLC0415  # only here

    async with asyncio.timeout(seconds):
        while not await true():
            await asyncio.sleep(0.1)


async def test_a_database_restored_under_living_processes_is_noticed_by_all_and_mended_by_the_command(
    servers: EmbeddedServers, here: Place, tmp_path: Path
) -> None:
    here.start("serve")
    url = here.told["api"]
    shop = Shop(url)
    key_id, secret = shop.key()
    backup = Backup(servers, tmp_path)
    done(url, "GET", "/v1/organizations")
    shop.write(3)
    lost_id, lost_secret = shop.key()
    position = done(url, "GET", "/readyz")["position"]
    head = int(position.rpartition("-")[2])
    until(lambda: is_told(here, head))

    async with Verifier.at(url, ROOT_KEY, keyspace_ids=(shop.keyspace_id,)) as edge:
        assert (await edge.verify(secret)).valid
        assert (await edge.verify(lost_secret)).valid
        backup.restore()

        # The owner knew more than the log has: it stops itself, and so does the relay.
        until(lambda: stopped_itself(url))
        status, problem = ask(url, "GET", f"/v1/keys/{key_id}")
        assert status == 503
        assert COMMAND in problem["detail"]
        assert here.run("doctor").returncode == 1
        assert "is not in the log" in doctor(here)
        # It runs: to start another would be of no use.
        assert COMMAND in advice(here, "owner")
        assert "history" in advice(here, "owner")

        told = here.ask("new-epoch", "--yes")
        assert told["epoch"] == 2
        assert (told["edges_beyond"], COMMAND in told["edges_unknown"]) == (None, True)
        assert told["published"]["lost_count"] == head - int(told["head"].rpartition("-")[2])
        assert [one["position"] for one in told["published"]["lost"]][-1] == f"0-{head}"

        until(lambda: ready(url)[0] == 200)
        assert ask(url, "GET", f"/v1/keys/{lost_id}")[0] == 404
        shop.write(6)  # beyond where it was
        revoked = done(url, "POST", f"/v1/keys/{key_id}/revoke")

        async def knows() -> bool:
            return (await edge.verify(lost_secret)).code == "not_found"

        await eventually(knows)
        assert revoked["fence"]["held"]
        assert (await edge.verify(secret)).code == "revoked"

        # The log has reached the number of what was lost: with its epoch, nobody takes it for that.
        for path in (f"/v1/events?after={position}", f"/v1/fences/{position}"):
            status, problem = ask(url, "GET", path)
            assert (status, problem["code"]) == (410, "position_unknown")
        now = revoked["fence"]["position"]
        assert now.startswith("0.2-")
        assert int(now.rpartition("-")[2]) > head
        assert done(url, "GET", f"/v1/fences/{now}")["held"]
        assert done(url, "GET", "/v1/events")["items"][0]["position"] == "0.2-1"
        assert str((await edge.verify(secret)).position).startswith("0.2-")
    until(lambda: here.run("doctor").returncode == 0)
    assert "epoch 2, up to 0.2-" in doctor(here)


def is_told(here: Place, head: int) -> bool:
    """Are projections and NATS at the log's end?"""
    return doctor(here).count(f"0 events behind the log (0-{head})") == 2


def doctor(here: Place) -> str:
    return " ".join(one["found"] for one in json.loads(here.run("doctor", "--json").stdout)["findings"])


def advice(here: Place, what: str) -> str:
    found = json.loads(here.run("doctor", "--json").stdout)["findings"]
    return " ".join(one["advice"] for one in found if one["what"] == what)


async def test_edges_notice_by_themselves_when_everything_else_was_started_anew(
    servers: EmbeddedServers, here: Place, tmp_path: Path
) -> None:
    """A cold copy, and every ledger process restarted: nobody but edges and NATS can know."""
    first = here.start("serve", "--port", str(free_port()))
    url = here.told["api"]
    shop = Shop(url)
    key_id, secret = shop.key()
    backup = Backup(servers, tmp_path)
    done(url, "GET", "/v1/organizations")
    shop.write(4)
    until(lambda: is_told(here, int(ready(url)[1]["position"].rpartition("-")[2])))
    async with Verifier.at(url, ROOT_KEY, keyspace_ids=(shop.keyspace_id,)) as edge:
        assert (await edge.verify(secret)).valid
        first.send_signal(signal.SIGKILL)
        first.wait()
        backup.restore()
        here.start("serve", "--port", url.rpartition(":")[2])

        done(url, "POST", f"/v1/keys/{key_id}/revoke")
        shop.write(6)  # its numbers are beyond the edge's again

        async def knows() -> bool:
            return (await edge.verify(secret)).code == "revoked"

        await eventually(knows)
        assert not (await edge.verify(secret)).valid
    assert "is not in the log" in doctor(here)


def test_a_stand_by_that_slept_through_it_stops_itself(
    servers: EmbeddedServers, here: Place, tmp_path: Path
) -> None:
    owner = here.start("serve")
    url = here.told["api"]
    shop = Shop(url)
    key_id, _ = shop.key()
    backup = Backup(servers, tmp_path)
    done(url, "GET", "/v1/organizations")
    done(url, "POST", f"/v1/keys/{key_id}/revoke?fence=false")
    shop.write(2)
    sleeper = here.start("serve", "--no-worker")
    asleep = here.told["api"]
    until(lambda: ready(asleep)[0] == 200 and ready(asleep)[1]["position"] == ready(url)[1]["position"])
    sleeper.send_signal(signal.SIGSTOP)

    owner.send_signal(signal.SIGKILL)
    owner.wait()
    backup.restore()
    here.start("serve", "--no-worker")
    url = shop.url = here.told["api"]
    shop.write(12)  # the numbers that the sleeper knows, and more

    sleeper.send_signal(signal.SIGCONT)
    until(lambda: stopped_itself(asleep))
    assert '"event":"history.differs"' in here.log().replace(": ", ":")
    assert done(url, "GET", f"/v1/keys/{key_id}")["status"] == "active"

    here.environment["KEYLEDGER_URL"] = url
    assert here.ask("new-epoch", "--yes")["epoch"] == 2
    until(lambda: ready(asleep)[0] == 200)
    assert done(asleep, "GET", f"/v1/keys/{key_id}")["status"] == "active"


def free_port() -> int:
    import socket  # noqa: PLC0415  # only here

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
