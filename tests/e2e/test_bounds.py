"""Strangers at a real ledger and a real sidecar: nobody has to be known to be bounded."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.e2e.ledgers import Place, place, until

MIB = 1_048_576
PATIENCE_SECONDS = 10.0
BOUNDS = {
    "KEYLEDGER_HEADER_SECONDS": "1",
    "KEYLEDGER_BODY_SECONDS": "1",
    "KEYLEDGER_MAX_CONNECTIONS": "40",
}


class Server(NamedTuple):
    """One that strangers can reach."""

    url: str
    process: int

    def connect(self) -> socket.socket:
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port or 80), timeout=PATIENCE_SECONDS)

    def text(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    @property
    def memory(self) -> int:
        """The most it ever held."""
        with open(f"/proc/{self.process}/status") as status:  # noqa: PTH123  # a file of the kernel
            found = re.search(r"VmHWM:\s+(\d+) kB", status.read())
        assert found is not None
        return int(found[1]) * 1_024


@pytest.fixture(scope="module")
def here() -> Iterator[Place]:
    with place(**BOUNDS) as here:
        here.start()
        yield here


@pytest.fixture(scope="module")
def ledger(here: Place) -> Server:
    return Server(here.told["api"], here.processes[0].pid)


@pytest.fixture(scope="module")
def sidecar(here: Place, ledger: Server) -> Server:
    here.environment["KEYLEDGER_EDGE_KEY"] = (here.folder / "data" / "root-key").read_text().strip()
    process = here.start("edge", "--listen", "127.0.0.1:0")
    return Server(here.told["edge"], process.pid)


@pytest.fixture(params=["ledger", "sidecar"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def send_until_refused(server: Server, head: bytes, piece: bytes, most: int) -> tuple[int, bytes]:
    """How many bytes it took before it answered, and what."""
    sent = 0
    with server.connect() as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head)
        connection.setblocking(False)  # a send that waits for room would not see the answer in time
        while sent < most:
            answered, room, _ = select.select([connection], [connection], [], PATIENCE_SECONDS)
            if answered or not room:
                break
            sent += connection.send(piece)
        connection.settimeout(PATIENCE_SECONDS)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65_536):
                answer += part
        return sent, answer
    return sent, b""


ENDLESS = [
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", b"x" * 65_536, id="one header"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"X-Header: y\r\n" * 5_000, id="many headers"),
    pytest.param(
        b"POST /v1/verify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
        b"X-Trailer: y\r\n" * 5_000,
        id="trailers",
    ),
]


@pytest.mark.parametrize("head,piece", ENDLESS)
def test_what_has_no_end_is_refused_before_it_is_kept(server: Server, head: bytes, piece: bytes) -> None:
    before = server.memory
    sent, answer = send_until_refused(server, head, piece, 16 * MIB)

    assert answer.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert b'"code":"headers_too_large"' in answer
    assert sent < 8 * MIB  # what the kernel of both sides takes
    assert server.memory - before < 20 * MIB


def test_a_long_url_is_refused(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /healthz?" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n")

        assert connection.recv(65_536).startswith(b"HTTP/1.1 414 ")


SLOW = [
    pytest.param(b"", b"", id="nothing"),
    pytest.param(b"GET /healthz HTTP/1.1\r\nHo", b"HTTP/1.1 408 ", id="half of its headers"),
    pytest.param(
        b"POST /v1/verify HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{",
        b"HTTP/1.1 408 ",
        id="half of its body",
    ),
]


@pytest.mark.parametrize("sent,told", SLOW)
def test_who_sends_no_more_is_not_waited_for(server: Server, sent: bytes, told: bytes) -> None:
    began = time.monotonic()  # before: this process may stand still behind
    with server.connect() as connection:
        connection.sendall(sent)
        answer = connection.recv(65_536)

        assert answer.startswith(told)
        assert connection.recv(1) == b""
    assert 0.9 < time.monotonic() - began < 9


def test_silent_connections_keep_nobody_out(server: Server) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(server.connect()) for _ in range(200)]

        assert server.text("/healthz")
        assert opened(server) <= 40
        assert sum(is_closed(one) for one in silent) >= 160


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.001)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def opened(server: Server) -> float:
    found = re.search(r"^keyledger_open_connections (.*)$", server.text("/metrics"), re.MULTILINE)
    assert found is not None
    return float(found[1])


def test_each_refusal_is_counted_and_logged(here: Place, server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 400 ")

    assert re.search(
        r'^keyledger_connections_refused_total\{reason="malformed"\} [1-9]',
        server.text("/metrics"),
        re.MULTILINE,
    )
    until(lambda: "connections.refused" in here.log() and "malformed" in here.log())


def test_a_root_key_may_follow_the_events_ten_times(here: Place, ledger: Server) -> None:
    root_key = (here.folder / "data" / "root-key").read_text().strip()
    asking = (
        f"GET /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {root_key}\r\n"
        "Accept: text/event-stream\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as stack:

        def asked() -> bytes:
            connection = stack.enter_context(ledger.connect())
            connection.sendall(asking)
            return connection.recv(16)

        assert [asked() for _ in range(12)] == [b"HTTP/1.1 200 OK\r"] * 10 + [b"HTTP/1.1 429 Too"] * 2
    until(lambda: "keyledger_event_streams 0.0" in ledger.text("/metrics"))
