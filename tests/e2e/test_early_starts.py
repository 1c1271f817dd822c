"""`serve` and `project` that are started before their PostgreSQL, or with a wrong address of it."""

import json
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from infra.embedded import EmbeddedServers
from infra.postgres.migrate import migrate
from tests.e2e.ledgers import PROGRAM, Place, place, stop, until
from tests.processes import ending_with_us
from tests.servers import initialised, server_folder

SECRET = "kl_root_012345678901234567890123456789GMgRF3"


@pytest.fixture(scope="module")
def own_servers() -> Iterator[EmbeddedServers]:
    """Servers that a test may stop."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        migrate(servers.postgres.dsn)
        yield servers


@pytest.fixture
def servers(own_servers: EmbeddedServers) -> Iterator[EmbeddedServers]:
    """A PostgreSQL with a ledger's tables, and a NATS; running, whatever the test before did."""
    own_servers.postgres.start()
    yield own_servers
    own_servers.postgres.stop()


@pytest.fixture
def here(servers: EmbeddedServers) -> Iterator[Place]:
    own = {"KEYLEDGER_DATABASE_URL": servers.postgres.dsn, "KEYLEDGER_NATS_URL": servers.nats.url}
    with place(**own, KEYLEDGER_LOG_FORMAT="json") as here:
        yield here


def begin(here: Place, *words: str, **environment: str) -> subprocess.Popen[str]:
    with (here.folder / "log").open("a") as log:
        process = subprocess.Popen(
            ending_with_us([*PROGRAM, *words]), stdout=subprocess.PIPE, stderr=log, text=True,
            env=here.environment | environment, cwd=here.folder,
        )  # fmt: skip
    here.processes.append(process)
    return process


def awaited(here: Place) -> bool:
    return "postgresql.awaited" in here.log()


def ask(url: str, path: str) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url + path, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def test_serve_waits_for_postgresql_says_so_and_then_serves(servers: EmbeddedServers, here: Place) -> None:
    servers.postgres.stop()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serving = begin(here, "serve", "--json", "--port", str(port))
    until(lambda: awaited(here))
    url = f"http://127.0.0.1:{port}"
    alive, ready, charge = ask(url, "/healthz"), ask(url, "/readyz"), ask(url, "/v1/charges")
    servers.postgres.start()
    assert serving.stdout is not None
    told = json.loads(serving.stdout.readline())

    assert alive == (200, {"status": "alive"})
    assert (ready[0], ready[1]["waits_for"][0]["dependency"]) == (503, "postgresql")
    assert (charge[0], charge[1]["code"], charge[1]["dependency"]) == (
        503,
        "dependency_unavailable",
        "postgresql",
    )
    assert told["api"] == url
    assert until(lambda: ask(url, "/readyz")[1]["ready"])
    assert stop(serving) == 0
    assert "PostgreSQL" in here.log() or "postgresql" in here.log()


@pytest.mark.parametrize("command", ["serve", "project"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_during_the_wait_ends_it_at_once(
    servers: EmbeddedServers, here: Place, command: str, how: signal.Signals
) -> None:
    servers.postgres.stop()
    process = begin(here, command)
    until(lambda: awaited(here))
    began = time.monotonic()

    assert stop(process, how) == 0
    assert time.monotonic() - began < 5


def test_project_waits_and_then_works(servers: EmbeddedServers, here: Place) -> None:
    servers.postgres.stop()
    process = begin(here, "project")
    until(lambda: awaited(here))
    servers.postgres.start()
    until(lambda: "postgresql.found" in here.log())

    assert process.poll() is None
    assert stop(process) == 0


@pytest.mark.parametrize("command", ["serve", "project"])
def test_whoever_wants_no_wait_is_told_at_once(servers: EmbeddedServers, here: Place, command: str) -> None:
    servers.postgres.stop()
    done = here.run(command, KEYLEDGER_WAIT_SECONDS="0")

    assert done.returncode == 6
    assert "PostgreSQL cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["serve", "project"])
def test_a_missing_database_and_a_wrong_password_are_refused_at_once(
    servers: EmbeddedServers, here: Place, command: str
) -> None:
    hba = servers.postgres._data / "pg_hba.conf"
    hba.write_text("local all stranger scram-sha-256\n" + hba.read_text())
    servers.postgres.stop()
    servers.postgres.start()
    dsn = servers.postgres.dsn
    for wrong, why in (
        (make_conninfo(dsn, dbname="ledgr"), 'database "ledgr" does not exist'),
        (make_conninfo(dsn, user="stranger", password="x"), "password authentication failed"),
        (make_conninfo(dsn, user="stranger"), "no password supplied"),
    ):
        done = here.run(command, KEYLEDGER_DATABASE_URL=wrong)

        assert done.returncode == 6
        assert why in done.stderr
        assert "Traceback" not in done.stderr
        assert "postgresql.awaited" not in done.stderr
