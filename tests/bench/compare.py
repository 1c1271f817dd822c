"""Two checkouts as a user has them, in turns: what did a change cost, or gain?

    python -m tests.bench.compare --old ../keyledger-before --new . [--cell charge]

Each checkout has its own `.venv` (`make check` makes it) and runs `keyledger up`: embedded PostgreSQL and
NATS, worker and disk included. Bursts go to the one and to the other in turns, a few milliseconds each:
the clock of a shared machine changes by a third from one second to the next, and so does its disk;
longer turns measure that. A burst is one request on each of 16 connections, and ends with the last answer.

Told are the median time of a burst, with the client's share on both sides alike, and the processor time
of all of a ledger's processes for each answer, without the client's. Only on a machine at rest.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

CONNECTIONS: Final = 16
KEYS: Final = 50 * CONNECTIONS
STARTS_WITHIN_SECONDS: Final = 60.0
STOPS_WITHIN_SECONDS: Final = 20.0
ANSWERS_WITHIN_SECONDS: Final = 30.0
WIDE_SPREAD: Final = 0.03
"""A result whose quartiles are further apart than this says nothing."""


class Cell(NamedTuple):
    """One thing that is measured."""

    name: str
    bursts_in_a_turn: int
    requests: Callable[[], Iterator[bytes]]
    """Without end, ready to be sent."""


@dataclass(slots=True)
class Side:
    """One of the two checkouts, running."""

    name: str
    checkout: Path
    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None
    setup: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        environment = os.environ | {
            "KEYLEDGER_DATA_DIR": str(self.folder / "data"),
            "KEYLEDGER_PORT": str(self.port),
        }
        with (self.folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                [self.checkout / ".venv/bin/keyledger", "up"],
                cwd=self.checkout, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while not self._ready():
            assert time.monotonic() < end, f"{self.name} is not ready: {self.folder / 'output'}"
            time.sleep(0.1)

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200 and (self.folder / "data/root-key").exists())
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(STOPS_WITHIN_SECONDS)

    @property
    def root_key(self) -> str:
        return (self.folder / "data/root-key").read_text(encoding="utf-8").strip()

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            self.url + path,
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.root_key}", "Content-Type": "application/json"},
        )
        end = time.monotonic() + STARTS_WITHIN_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    found: dict[str, Any] = json.load(answer)
                    return found
            except urllib.error.HTTPError as error:
                # Right after a start: management may not reach PostgreSQL yet.
                if error.code != 503 or time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def cpu_seconds(self) -> float:
        """What all processes below `keyledger up` have used."""
        assert self.process is not None, "it was started"
        ticks = os.sysconf("SC_CLK_TCK")
        return sum(_ticks(pid) for pid in _family(self.process.pid)) / ticks


def _stat(pid: str | int) -> list[str]:
    """/proc/<pid>/stat behind the command's name: state, parent, ..."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        return text.rpartition(")")[2].split()
    return []


def _ticks(pid: int) -> int:
    stat = _stat(pid)
    return int(stat[11]) + int(stat[12]) if stat else 0


def _family(root: int) -> set[int]:
    stats = {int(one.name): _stat(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()}
    found = {root}
    while more := {pid for pid, stat in stats.items() if stat and int(stat[1]) in found} - found:
        found |= more
    return found


# -- what is asked


def cells(side: Side) -> list[Cell]:
    """Make what is needed, and the requests."""
    keyspace = side.ask("/v1/keyspaces", {"name": "bench", "preset": "default", "prefix": "kl_bench_"})["id"]
    organization = side.ask("/v1/organizations", {"name": "Bench"})["id"]
    credit = {"amount_micros": 10**15, "reference": "bench"}
    side.ask(f"/v1/organizations/{organization}/wallet/credits", credit)
    asked = {"keyspace_id": keyspace, "organization_id": organization, "name": "bench"}
    made = [side.ask("/v1/keys", asked) for _ in range(KEYS)]
    verify = [request(side, "/v1/verify", {"secret": one["secret"], "keyspace_id": keyspace}) for one in made]

    def charges() -> Iterator[bytes]:
        for count, one in zip(itertools.count(), itertools.cycle(made)):
            yield request(
                side, "/v1/charges",
                {"key_id": one["key"]["id"], "request_id": f"{count}", "amount_micros": 1, "model": "gpt-5"},
            )  # fmt: skip

    proxied = forwarded(side, made[0]["secret"], keyspace)
    return [
        Cell("verify, one key", 16, lambda: itertools.repeat(verify[0])),
        Cell(f"verify, {KEYS} keys", 16, lambda: itertools.cycle(verify)),
        Cell("forward-auth, one key", 16, lambda: itertools.repeat(proxied)),
        Cell("charge", 1, charges),
    ]


def forwarded(side: Side, secret: str, keyspace: str) -> bytes:
    """A client's request as a proxy shows it."""
    return (
        f"GET /v1/forward-auth?keyspace_id={keyspace} HTTP/1.1\r\nHost: 127.0.0.1:{side.port}\r\n"
        f"X-Keyledger-Proxy-Key: {side.root_key}\r\nAuthorization: Bearer {secret}\r\n"
        "X-Original-URI: /v1/chat\r\n\r\n"
    ).encode()


def request(side: Side, path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{side.port}\r\nAuthorization: Bearer {side.root_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


class Load:
    """A client with its connections, for one cell of one side."""

    def __init__(self, side: Side, cell: Cell) -> None:
        self.side = side
        self.bursts_in_a_turn = cell.bursts_in_a_turn
        self._requests = cell.requests()

    @cached_property
    def _streams(self) -> list[tuple[socket.socket, BufferedReader]]:
        """Opened for the first burst: the ledger closes connections that say nothing."""
        return [self._connect(self.side.port) for _ in range(CONNECTIONS)]

    @staticmethod
    def _connect(port: int) -> tuple[socket.socket, BufferedReader]:
        connection = socket.create_connection(("127.0.0.1", port), ANSWERS_WITHIN_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection, connection.makefile("rb")

    def burst(self) -> float:
        """One request on every connection; the seconds until the last answer is read."""
        asked = [next(self._requests) for _ in self._streams]
        started = time.perf_counter()
        for (connection, _), content in zip(self._streams, asked, strict=True):
            connection.sendall(content)
        for _, answers in self._streams:
            self._read(answers)
        return time.perf_counter() - started

    @staticmethod
    def _read(answers: BufferedReader) -> None:
        status = answers.readline()
        length = 0
        while line := answers.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        content = answers.read(length)
        assert status.split()[1] in {b"200", b"201"}, (status, content)

    def close(self) -> None:
        for connection, answers in self._streams:
            answers.close()
            connection.close()


class Run(NamedTuple):
    """What one side took in one pair."""

    burst_us: float
    cpu_us: float
    """Of all of the ledger's processes, for each answer."""


def measure(loads: Sequence[Load], turns: int) -> list[Run]:
    """So many turns for each: old, new, new, old."""
    before = [load.side.cpu_seconds() for load in loads]
    taken: list[list[float]] = [[] for _ in loads]
    both = list(zip(loads, taken, strict=True))
    for turn in range(turns):
        for load, seconds in both if turn % 2 == 0 else reversed(both):
            seconds.extend(load.burst() for _ in range(load.bursts_in_a_turn))
    return [
        Run(median(seconds) * 1e6, (load.side.cpu_seconds() - used) / len(seconds) / CONNECTIONS * 1e6)
        for (load, seconds), used in zip(both, before, strict=True)
    ]


# -- telling


def quartiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def tell(name: str, pairs: list[list[Run]]) -> None:
    told = [name]
    for figure in ("burst_us", "cpu_us"):
        old, new = ([getattr(pair[side], figure) for pair in pairs] for side in (0, 1))
        ratios = [after / before for before, after in zip(old, new, strict=True)]
        told += [f"{median(old):,.1f}", f"{median(new):,.1f}", spread(ratios)]
    print(f"| {' | '.join(told)} |", flush=True)


def spread(ratios: list[float]) -> str:
    low, high = quartiles(ratios)
    middle = median(ratios)
    noisy = " (too wide)" if (high - low) / middle > WIDE_SPREAD else ""
    return f"{middle:.3f} ({low:.3f} to {high:.3f}){noisy}"


@contextlib.contextmanager
def running(checkouts: dict[str, Path]) -> Generator[list[Side]]:
    with tempfile.TemporaryDirectory(prefix="klc") as folder, contextlib.ExitStack() as last:
        sides: list[Side] = []
        for name, checkout in checkouts.items():
            place = Path(folder) / name
            place.mkdir()
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            side = Side(name, checkout.resolve(), place, port)
            last.callback(side.stop)
            side.start()
            sides.append(side)
        yield sides


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.compare", description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--new", type=Path, default=Path())
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--turns", type=int, default=800, help="for each side in a pair")
    parser.add_argument("--cell", action="append", help="only these (such as `charge`)")
    arguments = parser.parse_args()
    with running({"old": arguments.old, "new": arguments.new}) as (old, new):
        todo = list(zip(cells(old), cells(new), strict=True))
        print("| | old burst us | new | of old (quartiles) | old CPU us | new | of old (quartiles) |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for cell, other in todo:
            if arguments.cell and cell.name not in arguments.cell:
                continue
            loads = [Load(old, cell), Load(new, other)]
            measure(loads, arguments.turns // 8)
            tell(cell.name, [measure(loads, arguments.turns) for _ in range(arguments.pairs)])
            for load in loads:
                load.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
