"""What strangers cost a good caller: 128 MiB of one header, 1,000 silent connections, 200 streams of events.

`make bench` runs this through pytest. By hand: `python -m tests.bench.bench_bounds`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import resource
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.e2e.ledgers import place
from tests.e2e.running import Made, Running
from tests.processes import ending_with_us

HEADER_BYTES = 128 * 1_048_576
SILENT = 1_000
STREAMS = 200
EVENTS = 30_000
FILES = 1_024
"""The ledger's limit of open files: what most systems give a process."""
QUIET_SECONDS = 5.0
MOST_SECONDS = 40.0
"""An attack that goes on for longer is broken off."""
PAUSE_SECONDS = 0.01
ON_A_NEW_CONNECTION = 10
"""Every so many verifies, as callers without a pool ask."""


class Suffered(NamedTuple):
    """What the good caller met."""

    name: str
    seconds: float
    answered: int
    failed: int
    worst_ms: float
    p99_ms: float


# -- the attacks, each in a process of its own


def one_header(host: str, port: int) -> None:
    """One connection, one header."""
    sent, piece = 0, b"x" * 1_048_576
    with socket.create_connection((host, port)) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while sent < HEADER_BYTES and not select.select([connection], [], [], 0)[0]:
                sent += connection.send(piece)
            connection.sendall(b"\r\n\r\n")
        said = b""
        with contextlib.suppress(ConnectionError):
            said = connection.recv(64)
    print(f"  {sent / 1_048_576:.1f} MiB were taken, and answered {said[:12].decode()!r}")


def silence(host: str, port: int) -> None:
    """Connections that send nothing, opened again when they are closed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (4_096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    silent: list[socket.socket] = []
    opened, until = 0, time.monotonic() + 15
    while time.monotonic() < until:
        while len(silent) < SILENT:
            with contextlib.suppress(OSError):
                silent.append(socket.create_connection((host, port), timeout=1))
                opened += 1
        readable = {*select_many(silent)}
        for one in readable:
            one.close()
        silent = [one for one in silent if one not in readable]
        time.sleep(0.1)
    print(f"  {opened} connections were opened, {len(silent)} were open in the end")


def select_many(sockets: list[socket.socket]) -> list[socket.socket]:
    """Those that the other side has closed."""
    poll = select.poll()
    by_file = {one.fileno(): one for one in sockets}
    for file in by_file:
        poll.register(file, select.POLLIN | select.POLLHUP)
    return [by_file[file] for file, _ in poll.poll(0)]


def streams(host: str, port: int, secret: str) -> None:
    """Streams of events of one root key, each read as fast as it comes."""
    asking = (
        f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {secret}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()
    until, granted = time.monotonic() + 15, 0
    opened: list[socket.socket] = []
    for _ in range(STREAMS):
        one = socket.create_connection((host, port))
        one.sendall(asking)
        opened.append(one)
    seen: set[socket.socket] = set()
    while time.monotonic() < until:
        for one in select_many(opened):
            with contextlib.suppress(ConnectionError):
                if (said := one.recv(65_536)) and one not in seen:
                    seen.add(one)
                    granted += said.startswith(b"HTTP/1.1 200")
        time.sleep(0.01)
    print(f"  {granted} of {STREAMS} streams were granted")


ATTACKS: dict[str, Callable[..., None]] = {"header": one_header, "silence": silence, "streams": streams}


# -- the good caller


class GoodCaller:
    """Verifies one key, again and again."""

    def __init__(self, running: Running, key: Made) -> None:
        address = urlsplit(running.url)
        self._place = (address.hostname or "", address.port or 0)
        self._headers = {
            "Authorization": f"Bearer {running.root_key}",
            "Content-Type": "application/json",
        }
        self._body = json.dumps({"secret": key.secret, "keyspace_id": running.main}).encode()
        self._connection = http.client.HTTPConnection(*self._place, timeout=MOST_SECONDS)

    def close(self) -> None:
        self._connection.close()

    def verify(self) -> bool:
        try:
            self._connection.request("POST", "/v1/verify", self._body, self._headers)
            answer = self._connection.getresponse()
            return answer.status == 200 and b'"valid":true' in answer.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False

    def suffer(self, name: str, goes_on: Callable[[], bool]) -> Suffered:
        took: list[float] = []
        failed, began = 0, time.monotonic()
        while goes_on() and time.monotonic() - began < MOST_SECONDS:
            if len(took) % ON_A_NEW_CONNECTION == 0:
                self._connection.close()
            before = time.perf_counter()
            failed += not self.verify()
            took.append((time.perf_counter() - before) * 1_000)
            time.sleep(PAUSE_SECONDS)
        took.sort()
        seconds, p99 = time.monotonic() - began, took[int(len(took) * 0.99)]
        return Suffered(name, seconds, len(took) - failed, failed, took[-1], p99)


@contextlib.contextmanager
def attacked(running: Running, name: str, *more: str) -> Generator[Callable[[], bool]]:
    """An attack, and whether it goes on."""
    address = urlsplit(running.url)
    words = [sys.executable, "-m", "tests.bench.bench_bounds", name, str(address.hostname), str(address.port)]
    with subprocess.Popen(ending_with_us([*words, *more])) as process:
        try:
            yield lambda: process.poll() is None
        finally:
            process.kill()


@contextlib.contextmanager
def charging(running: Running, key: Made) -> Generator[None]:
    """Somebody charges meanwhile: that is what streams of events tell of."""
    done, caller = Event(), running.as_root(running.root_key)

    def charge() -> None:
        while not done.is_set():
            items = [
                {"key_id": key.id, "request_id": running.name("use"), "amount_micros": 1} for _ in range(20)
            ]
            with contextlib.suppress(OSError, http.client.HTTPException):
                caller.ask("POST", "/v1/charges/batch", {"items": items})

    thread = Thread(target=charge)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def fill(running: Running, key: Made) -> None:
    """A log of some length: streams begin at its beginning."""
    for _ in range(EVENTS // 1_000):
        items = [
            {"key_id": key.id, "request_id": running.name("old"), "amount_micros": 1} for _ in range(1_000)
        ]
        running.root.post("/v1/charges/batch", {"items": items})


def close_all(running: Running) -> None:
    for caller in running.callers:
        caller.close()


def figures(attacks: Sequence[str] = ("nobody", *ATTACKS)) -> list[Suffered]:
    """Each attack on a ledger of its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found: list[Suffered] = []
    for attack in attacks:
        with place() as here, contextlib.ExitStack() as ending:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard), hard))
            here.start()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            running = Running(here)
            customer = running.organization(10**12)
            key, bound = running.key(customer), running.root_made("events:read", organization_id=customer)
            good = ending.enter_context(contextlib.closing(GoodCaller(running, key)))
            ending.callback(close_all, running)
            until = time.monotonic() + QUIET_SECONDS
            good.suffer("warm", lambda until=until: time.monotonic() < until - 4)  # type: ignore[misc]  # a default binds it
            if attack == "nobody":
                with charging(running, key):
                    found.append(good.suffer(attack, lambda until=until: time.monotonic() < until))  # type: ignore[misc]  # the same
                continue
            more = [bound.secret] if attack == "streams" else []
            with contextlib.ExitStack() as stack:
                if attack == "streams":
                    other = running.key(running.organization(10**12))
                    fill(running, other)
                    stack.enter_context(charging(running, other))
                goes_on = stack.enter_context(attacked(running, attack, *more))
                found.append(good.suffer(attack, goes_on))
    print(f"{'attack':<10}{'seconds':>9}{'verified':>10}{'failed':>8}{'p99 ms':>9}{'worst ms':>10}")
    for one in found:
        print(
            f"{one.name:<10}{one.seconds:>9.1f}{one.answered:>10}{one.failed:>8}"
            f"{one.p99_ms:>9.1f}{one.worst_ms:>10.1f}"
        )
    return found


@pytest.mark.bench
@pytest.mark.timeout(600)
def test_strangers_cost_a_good_caller_little() -> None:
    found = figures()

    assert all(one.failed == 0 for one in found)
    assert all(one.worst_ms < 1_000 for one in found)


if __name__ == "__main__":
    if sys.argv[1:]:
        ATTACKS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
    else:
        figures()
