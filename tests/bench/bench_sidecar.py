"""nginx with a sidecar beside nginx alone; and a flood of garbage keys, beside a handler that does nothing.

`make bench` runs this through pytest. By hand: `python -m tests.bench.bench_sidecar`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Generator
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import pytest

from keyledger_edge import KeyspaceView, RateLimiter, Sidecar, Verifier, fingerprint
from services.api.serving.server import listen, listen_unix, run, serve
from services.bootstrap import tune_interpreter
from tests.bench.bench_edge import KEYSPACE, SHAPE, facts, fill, leased_cache
from tests.bench.bench_http import CONNECTIONS, Ask, Rate, bare, both_servers, load
from tests.bench.targets import at_least, at_most
from tests.servers import server_folder

SNIPPETS = Path(__file__).parents[2] / "infra" / "deploy" / "nginx"
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
ROUNDS = 5
KEYS = 1_000
FLOOD_ROUNDS = 3
PROBE_SECONDS = 2.0
PROBE_EVERY_SECONDS = 0.004
PAGE = b"x" * 300

CONFIG = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream keyledger {{ server {sidecar}; keepalive 64; keepalive_requests 1000000; }}
    include {snippets}/keyledger-http.conf;
    server {{
        listen 127.0.0.1:{port};
        root {folder}/pages;
        set $keyledger_keyspace "{keyspace}";
        include {snippets}/keyledger-server.conf;
        location /alone {{ }}
        location /guarded {{ include {snippets}/keyledger-protect.conf; }}
    }}
}}
"""
"""A file, not `return 200`: nginx returns before it asks anybody for permission."""


class Shown(NamedTuple):
    """Where the sidecar answers, and secrets to show it."""

    process: int
    path: str
    port: int
    floor_port: int
    secrets: dict[str, str]


class Flood(NamedTuple):
    """A flood of one kind of garbage, beside the same at a handler that does nothing."""

    name: str
    of_floor: float
    by_cpu: float
    """The same in the server's own time: what other programs do changes it little."""
    good_p99_of_floor: float
    """The p99 of a good key meanwhile, of the same at the handler that does nothing."""


# -- the sidecar, in its own process


@contextlib.contextmanager
def sidecar(folder: Path) -> Generator[Shown]:
    """A sidecar with a lease and a thousand keys, on a unix socket and on TCP; a bare handler beside it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(str(folder / "edge.sock"), theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(60), "the sidecar did not start"
        yield Shown(process.pid or 0, str(folder / "edge.sock"), *ours.recv())
    finally:
        ours.send("stop")
        process.join(10)
        if process.is_alive():
            process.kill()


def _serve(path: str, pipe: Connection) -> None:
    run(_sidecar(path, pipe))


async def _sidecar(path: str, pipe: Connection) -> None:
    cache = leased_cache()
    keyspaces: dict[str, KeyspaceView] = {KEYSPACE.keyspace_id: KEYSPACE}
    verifier = Verifier(cache, keyspaces, limiter=RateLimiter(time.monotonic), memory=cache)
    owned = [SHAPE.generate() for _ in range(KEYS)]
    for number, secret in enumerate(owned):
        fill(cache, fingerprint(secret), facts(number))
    shown = garbage(owned[0])
    fill(cache, fingerprint(shown["stranger"]), None)
    tune_interpreter()  # as a running sidecar does
    listeners = listen_unix(Path(path)), listen("127.0.0.1", 0), listen("127.0.0.1", 0)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(Sidecar(verifier), list(listeners[:2]), stop))
        tasks.create_task(serve(bare, [listeners[2]], stop))
        pipe.send((listeners[1].getsockname()[1], listeners[2].getsockname()[1], shown))
        await asyncio.to_thread(pipe.recv)
        stop.set()


def garbage(good: str) -> dict[str, str]:
    """A good secret, and what else is shown at doors."""
    return {
        "good": good,
        "another shape": "sk-" + good,
        "wrong checksum": good[:-1] + ("a" if good[-1] != "a" else "b"),
        "stranger": SHAPE.generate(),
    }


# -- nginx


@contextlib.contextmanager
def nginx(folder: Path, upstream: str) -> Generator[int]:
    """Debian's nginx with the snippets that ship, one worker; its port."""
    assert NGINX is not None, "apt install nginx"
    (folder / "pages").mkdir(parents=True)
    for page in ("alone", "guarded"):
        (folder / "pages" / page).write_bytes(PAGE)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        CONFIG.format(
            user=user, folder=folder, sidecar=upstream, snippets=SNIPPETS, port=port,
            keyspace=KEYSPACE.keyspace_id,
        )
    )  # fmt: skip
    process = subprocess.Popen([NGINX, "-c", str(config), "-p", str(folder)], stderr=subprocess.PIPE)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.terminate()
        process.communicate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None, "nginx did not start"
        time.sleep(0.01)
    raise AssertionError("nginx did not listen")


def bench_nginx(connections: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Print nginx with auth_request beside nginx alone; how many times the p50 of alone, by transport."""
    ratios: dict[str, float] = {}
    print(f"\nnginx, one worker, a file of {len(PAGE)} bytes, {connections} connection(s) kept alive:")
    print(f"  {'':<30}{'per second':>12}{'p50 ms':>9}{'p99 ms':>9}{'p50':>9}{'p99':>9}")
    with server_folder() as folder, sidecar(folder) as shown:
        for name, upstream in (("unix", f"unix:{shown.path}"), ("TCP", f"127.0.0.1:{shown.port}")):
            with nginx(folder / name, upstream) as port:
                headers = {"Authorization": f"Bearer {shown.secrets['good']}"}
                alone, guarded = (Ask(one, "GET", f"/{one}", headers) for one in ("alone", "guarded"))
                pairs = [
                    tuple(load(shown.process, port, ask, connections) for ask in (alone, guarded))
                    for _ in range(rounds)
                ]
            assert sum(one.bad for pair in pairs for one in pair) == 0, "nginx refused a good key"
            ratios[name] = median(ours.p50_ms / floor.p50_ms for floor, ours in pairs)
            p99 = median(ours.p99_ms / floor.p99_ms for floor, ours in pairs)
            print(_line("alone", [floor for floor, _ in pairs]))
            print(_line(f"auth_request, sidecar on {name}", [ours for _, ours in pairs]), end="")
            print(f"{ratios[name]:>7.2f} x{p99:>7.2f} x")
    return ratios


def _line(name: str, rates: list[Rate]) -> str:
    per_second, p50, p99 = (median(one[index] for one in rates) for index in range(3))
    return f"  {name:<30}{per_second:>12,.0f}{p50:>9.3f}{p99:>9.3f}"


# -- the flood


def bench_sidecar_flood() -> list[Flood]:
    """What the sidecar refuses per second, kind by kind."""
    with server_folder() as folder, sidecar(folder) as shown:
        said = {
            name: Ask(name, "POST", "/v1/verify", {"Content-Type": "application/json"}, _body(secret))
            for name, secret in shown.secrets.items()
        }
        return _floods("sidecar", shown.process, shown.floor_port, shown.port, said)


def bench_ledger_flood() -> list[Flood]:
    """The same at the ledger's own /v1/verify."""
    with both_servers() as (process, floor_port, port, asks):
        good = next(one for one in asks if one.name == "verify")
        body = json.loads(good.body)
        said = {
            name: good._replace(name=name, body=_body(secret, body["keyspace_id"]))
            for name, secret in garbage(body["secret"]).items()
        }
        return _floods("ledger", process, floor_port, port, said)


def _body(secret: str, keyspace_id: str | None = None) -> str:
    return json.dumps({"secret": secret, "keyspace_id": keyspace_id or KEYSPACE.keyspace_id})


def _floods(where: str, process: int, floor_port: int, port: int, asks: dict[str, Ask]) -> list[Flood]:
    good = asks.pop("good")
    print(f"\ngarbage at the {where}'s /v1/verify, {CONNECTIONS} connections, {FLOOD_ROUNDS} rounds in turns")
    print(f"  {'':<18}{'rejects/s':>11}{'bare ASGI':>11}{'of it':>8}{'by CPU':>8}")
    floods = [_flood(f"{where}, {name}", process, floor_port, port, ask) for name, ask in asks.items()]
    print(f"  a good key meanwhile, on a connection of its own:{'p50 ms':>10}{'p99 ms':>9}")
    print(_probed("without a flood", probe(port, good)))
    any_ask = asks["wrong checksum"]
    floor = _probed_meanwhile(process, floor_port, any_ask, good)
    print(_probed("bare ASGI, flooded", floor))
    for index, (name, ask) in enumerate(asks.items()):
        probed = _probed_meanwhile(process, port, ask, good)
        print(_probed(f"flooded: {name}", probed))
        floods[index] = floods[index]._replace(good_p99_of_floor=probed[1] / floor[1])
    return floods


def _flood(name: str, process: int, floor_port: int, port: int, ask: Ask) -> Flood:
    pairs = [(load(process, floor_port, ask), load(process, port, ask)) for _ in range(FLOOD_ROUNDS)]
    reached = median(ours.per_second for _, ours in pairs)
    floor = median(floor.per_second for floor, _ in pairs)
    of_floor = median(ours.per_second / floor.per_second for floor, ours in pairs)
    by_cpu = median(floor.cpu_us / ours.cpu_us for floor, ours in pairs)
    kind = name.partition(", ")[2]
    print(f"  {kind:<18}{reached:>11,.0f}{floor:>11,.0f}{of_floor:>8.2f}{by_cpu:>8.2f}")
    return Flood(name, of_floor, by_cpu, 0.0)


def _probed(name: str, probed: tuple[float, float]) -> str:
    return f"    {name:<47}{probed[0]:>10.2f}{probed[1]:>9.2f}"


def _probed_meanwhile(process: int, port: int, flood: Ask, good: Ask) -> tuple[float, float]:
    thread = threading.Thread(target=load, args=(process, port, flood, CONNECTIONS, PROBE_SECONDS + 1))
    thread.start()
    time.sleep(0.5)
    try:
        return probe(port, good)
    finally:
        thread.join()


def probe(port: int, ask: Ask) -> tuple[float, float]:
    """p50 and p99 (milliseconds) of a good key that is shown now and then."""
    took = []
    connection = http.client.HTTPConnection("127.0.0.1", port)
    until = time.perf_counter() + PROBE_SECONDS
    while (began := time.perf_counter()) < until:
        connection.request(ask.method, ask.path, ask.body, ask.headers)
        answer = connection.getresponse().read()
        took.append((time.perf_counter() - began) * 1e3)
        assert b'"valid":true' in answer
        time.sleep(PROBE_EVERY_SECONDS)
    connection.close()
    return median(took), quantiles(took, n=100)[98]


# -- the run


@pytest.mark.bench
@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_sidecar_behind_nginx_beside_nginx_alone() -> None:
    ratios = bench_nginx(1)
    bench_nginx(32)

    assert at_most("p50 with a sidecar on a unix socket, of nginx alone", ratios["unix"], 6, " x")


@pytest.mark.bench
def test_a_flood_of_garbage_is_turned_away_and_good_keys_hardly_notice() -> None:
    floods = [*bench_sidecar_flood(), *bench_ledger_flood()]

    sane = [at_least(f"{one.name}: rejects, of bare ASGI, by CPU", one.by_cpu, 0.75) for one in floods]
    for one in floods:
        at_most(f"{one.name}: a good key's p99, of bare ASGI's in a flood", one.good_p99_of_floor, 2, " x")

    assert all(sane)


def main() -> None:
    """All of it, once."""
    test_a_sidecar_behind_nginx_beside_nginx_alone()
    test_a_flood_of_garbage_is_turned_away_and_good_keys_hardly_notice()


if __name__ == "__main__":
    main()
