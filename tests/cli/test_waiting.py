"""A start waits for PostgreSQL where that helps, for as long as it may, and says what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import psycopg
import pytest
from structlog.testing import capture_logs

from infra.postgres.absence import is_absent
from infra.postgres.migrate import MigrationMismatchError
from services.api.serving.server import listen
from services.cli import waiting as waiting_module
from services.cli.waiting import wait_for_postgresql

REFUSED = 'connection failed: connection to server at "::1", port 5432 failed: Connection refused'


def not_connected(words: str) -> psycopg.OperationalError:
    return psycopg.OperationalError(words)


@pytest.mark.parametrize(
    "words",
    [
        REFUSED,
        'connection to server on socket "/tmp/.s.PGSQL.5432" failed: No such file or directory',
        "connection timeout expired",
        "failed to resolve host 'postgres': [Errno -3] Temporary failure in name resolution",
        "server closed the connection unexpectedly",
        'connection to server at "10.0.0.1" failed: FATAL:  the database system is starting up',
        "failed: FATAL:  the database system is not yet accepting connections\nDETAIL:  Consistent recovery",
        "failed: FATAL:  sorry, too many clients already",
        f"{REFUSED}\nMultiple connection attempts failed: FATAL:  the database system is shutting down",
    ],
)
def test_what_may_pass_is_waited_for(words: str) -> None:
    assert is_absent(not_connected(words))


@pytest.mark.parametrize(
    "error",
    [
        not_connected('connection failed: FATAL:  password authentication failed for user "ledger"'),
        not_connected('connection failed: FATAL:  database "ledgr" does not exist'),
        not_connected('connection failed: FATAL:  role "ledger" does not exist'),
        not_connected('connection failed: FATAL:  no pg_hba.conf entry for host "10.0.0.1"'),
        not_connected('connection to server at "10.0.0.1" failed: fe_sendauth: no password supplied'),
        not_connected('could not open certificate file "/x.crt": No such file or directory'),
        not_connected("server does not support SSL, but SSL was required"),
        not_connected(f'{REFUSED}\nfailed: FATAL:  database "ledgr" does not exist'),
        not_connected("failed: FATAL:  Datenbank »x« existiert nicht"),
        psycopg.ProgrammingError('missing "=" after "x" in connection info string'),
        psycopg.errors.InsufficientPrivilege("permission denied for schema ledger"),
        psycopg.errors.DiskFull("No space left on device"),
    ],
)
def test_what_waiting_does_not_mend_is_not_waited_for(error: psycopg.Error) -> None:
    assert not is_absent(error)


@pytest.mark.parametrize(
    "error",
    [psycopg.errors.AdminShutdown(), psycopg.errors.CannotConnectNow(), psycopg.errors.ConnectionFailure()],
)
def test_a_server_that_ends_the_session_may_come_back(error: psycopg.Error) -> None:
    assert is_absent(error)


class Attempt:
    """Fails as told, then succeeds."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0

    def __call__(self) -> None:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        yield listener


async def ask(listener: socket.socket, path: str) -> tuple[int, dict[str, str], bytes]:
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(status.split()[1]), headers, body


async def test_a_server_that_is_there_costs_no_wait_and_no_word() -> None:
    attempt = Attempt()
    with capture_logs() as logs:
        assert await wait_for_postgresql(attempt, asyncio.Event(), most_seconds=0)

    assert (attempt.made, logs) == (1, [])


async def test_it_is_tried_again_until_it_is_there_and_each_problem_told_once() -> None:
    closed = not_connected("server closed the connection unexpectedly")
    attempt = Attempt(not_connected(REFUSED), not_connected(REFUSED), closed)
    with capture_logs() as logs:
        assert await wait_for_postgresql(attempt, asyncio.Event(), most_seconds=None)

    assert attempt.made == 4
    assert [(one["event"], one.get("problem")) for one in logs] == [
        ("postgresql.awaited", REFUSED),
        ("postgresql.awaited", "server closed the connection unexpectedly"),
        ("postgresql.found", None),
    ]


@pytest.mark.parametrize(
    "error",
    [not_connected('FATAL:  database "x" does not exist'), MigrationMismatchError("it is newer")],
)
async def test_what_is_wrong_is_refused_at_once_also_after_a_wait(error: Exception) -> None:
    for before in ([], [not_connected(REFUSED)]):
        with pytest.raises(type(error)):
            await wait_for_postgresql(Attempt(*before, error), asyncio.Event(), most_seconds=None)


@pytest.mark.parametrize("most_seconds,attempts", [(0, 1), (0.25, 4)])
async def test_it_waits_no_longer_than_it_may(
    most_seconds: float, attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on with each attempt alone, however long this process stands still."""
    attempt = Attempt(*(not_connected(REFUSED) for _ in range(99)))
    clock = SimpleNamespace(monotonic=lambda: 0.07 * attempt.made)
    monkeypatch.setattr(waiting_module, "time", clock)
    began = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await wait_for_postgresql(attempt, asyncio.Event(), most_seconds=most_seconds)

    assert attempt.made == attempts
    assert time.monotonic() - began < most_seconds + 2


async def test_a_stop_ends_the_wait_at_once_also_amid_a_connection_that_nobody_answers() -> None:
    answered = threading.Event()
    for attempt in (Attempt(*(not_connected(REFUSED) for _ in range(99))), answered.wait):
        stop = asyncio.Event()
        waiting = asyncio.create_task(wait_for_postgresql(attempt, stop, most_seconds=None))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        stop.set()

        assert await asyncio.wait_for(waiting, 1.0) is False
    answered.set()


async def test_whoever_asks_meanwhile_is_told_what_is_missing(listener: socket.socket) -> None:
    stop = asyncio.Event()
    attempt = Attempt(*(not_connected(REFUSED) for _ in range(99)))
    waiting = asyncio.create_task(wait_for_postgresql(attempt, stop, most_seconds=None, listeners=[listener]))
    alive, ready, charges = [await ask(listener, path) for path in ("/healthz", "/readyz", "/v1/charges")]
    stop.set()
    await waiting

    assert (alive[0], json.loads(alive[2])) == (200, {"status": "alive"})
    assert (ready[0], json.loads(ready[2])["ready"]) == (503, False)
    assert [one["dependency"] for one in json.loads(ready[2])["waits_for"]] == ["postgresql"]
    problem = json.loads(charges[2])
    assert (charges[0], problem["code"], problem["dependency"]) == (
        503,
        "dependency_unavailable",
        "postgresql",
    )
    assert charges[1]["retry-after"] == "1"
    assert charges[1]["x-request-id"] == problem["request_id"]
    assert {one[1]["connection"] for one in (alive, ready, charges)} == {"close"}
    # The sockets are the ledger's next: they listen still.
    assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
