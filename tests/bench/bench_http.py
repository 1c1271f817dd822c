"""Hot paths over HTTP beside a bare ASGI handler, on the same server, in the same run.

`make bench` runs this through pytest. By hand: `python -m tests.bench.bench_http`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pytest

from domain.keyspaces import Keyspace
from infra.clock import SystemClock
from services.api.serving.server import listen, run, serve
from services.bootstrap import tune_interpreter
from tests.api.quick.world import World

CONNECTIONS = 64
SECONDS = 1.0
ROUNDS = 7
KEYS = 1_000
TARGETS = {"verify": 0.75, "forward-auth": 0.75, "charges": 0.5}
"""Of a bare ASGI handler on the same server."""


class Ask(NamedTuple):
    """One request that is repeated; `{n}` in the body is replaced by a running number."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: str = ""


class Rate(NamedTuple):
    """What a run reached."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    """The server's own time per request: what other programs on the machine do changes it little."""
    bad: int


# -- the server, in its own process


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The floor: reads the body, answers as many bytes as a verdict has."""
    assert scope["type"] == "http"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": BARE_HEADERS})
    await send({"type": "http.response.body", "body": BARE_BODY})


BARE_BODY = b'{"valid":true,"code":"valid","position":"0-1"}' + b" " * 250
BARE_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BARE_BODY))]


def serve_both(pipe: Connection) -> None:
    """The bare handler and the ledger on a port each, in one process."""
    run(_serve_both(pipe))


async def _serve_both(pipe: Connection) -> None:
    world = RealWorld()
    await world.start()
    listeners = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    stop = asyncio.Event()
    secret = await world.ledger.bootstrap()
    assert secret is not None
    world.root = secret
    asks = await _asks(world)
    tune_interpreter()  # as a running ledger does
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(bare, [listeners[0]], stop, bounded=False))
        tasks.create_task(serve(world.app, [listeners[1]], stop))
        pipe.send((listeners[0].getsockname()[1], listeners[1].getsockname()[1], asks))
        await asyncio.to_thread(pipe.recv)
        stop.set()
    await world.stop()


class RealWorld(World):
    """With the machine's clocks, and a log in memory: what is measured is HTTP, not the disk."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())


async def _asks(world: World) -> list[Ask]:
    keyspace: Keyspace = await world.make_keyspace()
    acme = await world.make_organization(credit=10**15)
    owned = [await world.make_key(keyspace, acme) for _ in range(KEYS)]
    root = {"Authorization": f"Bearer {world.root}", "Content-Type": "application/json"}
    one = owned[0]
    verify = json.dumps({"secret": one.secret, "keyspace_id": keyspace.id})
    scoped = json.dumps(
        {
            "secret": one.secret,
            "keyspace_id": keyspace.id,
            "model": "gpt-5",
            "permissions": ["chat"],
            "ip": "192.0.2.1",
        }
    )
    proxied = {
        "X-Keyledger-Proxy-Key": world.root,
        "Authorization": f"Bearer {one.secret}",
        "X-Forwarded-Method": "GET",
        "X-Forwarded-Uri": "/v1/chat?stream=true",
        "X-Forwarded-For": "192.0.2.1",
    }
    charge = json.dumps({"key_id": one.id, "request_id": "bench-{n}", "amount_micros": 25, "model": "gpt-5"})
    return [
        Ask("verify", "POST", "/v1/verify", root, verify),
        Ask("verify, model, permission, ip", "POST", "/v1/verify", root, scoped),
        Ask("forward-auth", "GET", f"/v1/forward-auth?keyspace_id={keyspace.id}", proxied),
        Ask("charges", "POST", "/v1/charges", root, charge),
    ]


@contextlib.contextmanager
def both_servers() -> Generator[tuple[int, int, int, list[Ask]]]:
    """The process, ports of the bare handler and of the ledger, and what to ask it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_both, args=(theirs,), daemon=True)
    process.start()
    try:
        assert ours.poll(60), "the server did not start"
        yield process.pid or 0, *ours.recv()
    finally:
        ours.send("stop")
        process.join(10)
        if process.is_alive():
            process.kill()


# -- the load


def load(server: int, port: int, ask: Ask, connections: int = CONNECTIONS, seconds: float = SECONDS) -> Rate:
    """As many requests as the server (a process) takes."""
    before = _cpu_seconds(server)
    if shutil.which("wrk") is not None:
        count, rate = _wrk(port, ask, seconds, connections)
    else:
        count, rate = asyncio.run(_own_load(port, ask, seconds, connections))
    return rate._replace(cpu_us=(_cpu_seconds(server) - before) / count * 1e6)


def _cpu_seconds(server: int) -> float:
    times = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def _wrk(port: int, ask: Ask, seconds: float, connections: int) -> tuple[int, Rate]:
    lines = [f"wrk.method = {json.dumps(ask.method)}"]
    lines += [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in ask.headers.items()]
    if "{n}" in ask.body:
        # Each thread is a Lua state of its own, so its table's address tells their ids apart.
        first, last = ask.body.split("{n}")
        lines += [
            f"local first, last, n = {_lua(first)}, {_lua(last)}, 0",
            "local me = tostring(wrk):gsub('table: ', '') .. '-' .. os.time() .. '-' .. os.clock()",
            "request = function() n = n + 1",
            "  return wrk.format(nil, nil, nil, first .. me .. '-' .. n .. last) end",
        ]
    elif ask.body:
        lines.append(f"wrk.body = {_lua(ask.body)}")
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "ask.lua"
        script.write_text("\n".join(lines))
        command = [
            "wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--latency", "-s", str(script),
            f"http://127.0.0.1:{port}{ask.path}",
        ]  # fmt: skip
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=seconds + 30
        ).stdout
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    count = re.search(r"(\d+) requests in", said)
    assert rate is not None, said
    assert count is not None, said
    return int(count[1]), Rate(
        float(rate[1]),
        _milliseconds(said, "50%"),
        _milliseconds(said, "99%"),
        0.0,
        int(bad[1]) if bad else 0,
    )


def _lua(text: str) -> str:
    return f"[==[{text}]==]"


def _milliseconds(said: str, percentile: str) -> float:
    found = re.search(rf"{percentile}\s+([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]]


async def _own_load(port: int, ask: Ask, seconds: float, connections: int) -> tuple[int, Rate]:
    """Where wrk is missing: the same in Python, which takes more of the machine for itself."""
    until = time.perf_counter() + seconds
    took: list[float] = []
    bad = 0
    numbers = iter(range(10**12))

    async def one() -> None:
        nonlocal bad
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"{ask.method} {ask.path} HTTP/1.1\r\nHost: bench\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in ask.headers.items())
        while time.perf_counter() < until:
            body = ask.body.replace("{n}", f"{time.time_ns()}-{next(numbers)}").encode()
            began = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            await reader.readexactly(int(length[1]) if length else 0)
            took.append(time.perf_counter() - began)
            bad += not answer.startswith(b"HTTP/1.1 2")
        writer.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    took.sort()
    p50, p99 = took[len(took) // 2] * 1e3, took[int(len(took) * 0.99)] * 1e3
    return len(took), Rate(len(took) / seconds, p50, p99, 0.0, bad)


# -- the figures


def figures(rounds: int = ROUNDS) -> dict[str, float]:
    """Print every path beside its floor: medians of many short runs, taken in turns."""
    ratios: dict[str, float] = {}
    with both_servers() as (server, floor_port, port, asks):
        print(f"\n{'path':<32}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}{'CPU us':>9}", end="")
        print(f"{'of bare ASGI':>14}{'by CPU':>9}")
        for ask in asks:
            # The floor is sent the same request, right before: a busy machine slows both.
            pairs = [(load(server, floor_port, ask), load(server, port, ask)) for _ in range(rounds)]
            bad = sum(reached.bad for _, reached in pairs)
            assert bad == 0, f"{ask.name}: {bad} answers were refusals"
            ratios[ask.name] = median(reached.per_second / floor.per_second for floor, reached in pairs)
            print(_line("  bare ASGI", [floor for floor, _ in pairs]))
            by_cpu = median(floor.cpu_us / reached.cpu_us for floor, reached in pairs)
            print(_line(ask.name, [reached for _, reached in pairs]), end="")
            print(f"{ratios[ask.name]:>14.2f}{by_cpu:>9.2f}")
    for name, target in TARGETS.items():
        said = "met" if ratios[name] >= target else "MISSED"
        print(f"{name}: {ratios[name]:.2f}, target {target:.2f}: {said}")
    return ratios


def _line(name: str, rates: list[Rate]) -> str:
    per_second, p50, p99, cpu = (median(one[index] for one in rates) for index in range(4))
    return f"{name:<32}{per_second:>12,.0f}{p50:>9.2f}{p99:>9.2f}{cpu:>9.1f}"


@pytest.mark.bench
def test_the_hot_paths_beside_bare_asgi() -> None:
    reached = figures()

    # A busy machine moves these by a fifth, so a target that is missed is printed, not raised; a path
    # that lost half of what it had is broken.
    assert all(reached[name] >= target / 2 for name, target in TARGETS.items())


if __name__ == "__main__":
    sys.exit(0 if figures() else 1)
