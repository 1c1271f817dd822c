"""A real ledger, a real NATS, real edges: keys die everywhere, also when something stands still."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import aiohttp
import pytest

from keyledger_edge import KeyledgerMiddleware, Verifier, fingerprint, hint
from tests.e2e.leases import last_accepted, leased, remembered
from tests.edge.asgi import call
from tests.processes import ending_with_us
from tests.servers import server_folder

_HELD_UP_SECONDS = 4.0
_WATCHED_SECONDS = 1.5
_PATIENCE_SECONDS = 20.0
_PROGRAM = (sys.executable, "-c", "from keyledger_boot import main; main()")


class Running(NamedTuple):
    """A ledger that `keyledger up` started."""

    process: subprocess.Popen[str]
    url: str
    root_key: str
    folder: Path


@pytest.fixture(scope="module")
def ledger() -> Iterator[Running]:
    with server_folder() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("KEYLEDGER_")}
        process = subprocess.Popen(
            ending_with_us([*_PROGRAM, "--json", "up", "--port", "0", "--data-dir", str(folder / "data")]),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )
        try:
            yield Running(process, *_told(process), folder)
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()


def _told(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stdout is not None
    for line in process.stdout:
        told = json.loads(line)
        if "api" in told:
            return told["api"], Path(told["root_key_file"]).read_text("utf-8").strip()
    raise AssertionError("the ledger did not start")


class Api:
    """The management API, for somebody with the root key."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, path: str, body: Any = None) -> Any:
        async with self._session.post(path, json=body if body is not None else {}) as answer:
            found = await answer.json(content_type=None)
            assert answer.status < 300, found
            return found

    async def patch(self, path: str, body: Any) -> Any:
        async with self._session.patch(path, json=body) as answer:
            found = await answer.json(content_type=None)
            assert answer.status < 300, found
            return found

    async def get(self, path: str) -> Any:
        async with self._session.get(path) as answer:
            return await answer.json(content_type=None)


class Shop(NamedTuple):
    """A keyspace and an organization of its own for each test."""

    api: Api
    keyspace_id: str
    organization_id: str

    async def key(self, **more: Any) -> tuple[str, str]:
        body = {"keyspace_id": self.keyspace_id, "organization_id": self.organization_id, "name": "k", **more}
        made = await self.api.post("/v1/keys", body)
        return made["key"]["id"], made["secret"]


@pytest.fixture
async def shop(ledger: Running) -> AsyncGenerator[Shop]:
    headers = {"Authorization": f"Bearer {ledger.root_key}"}
    async with aiohttp.ClientSession(ledger.url, headers=headers) as session:
        api = Api(session)
        prefix = f"e{time.time_ns()}_"
        keyspace = await api.post("/v1/keyspaces", {"name": prefix, "preset": "default", "prefix": prefix})
        organization = await api.post("/v1/organizations", {"name": prefix})
        yield Shop(api, keyspace["id"], organization["id"])


class Delay:
    """A proxy in front of the ledger that holds up what is sent to some paths."""

    def __init__(self, url: str) -> None:
        self._ledger = urlsplit(url)
        self._exchanges: set[asyncio.Task[Any]] = set()
        self.held_up: tuple[str, ...] = ()
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._server.close()
        for exchange in self._exchanges:
            exchange.cancel()
        await asyncio.gather(*self._exchanges, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange = asyncio.create_task(self._exchange(reader, writer))
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanges.discard)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, onward = await asyncio.open_connection(self._ledger.hostname, self._ledger.port)
        back = asyncio.create_task(_copy(upstream, writer))
        try:
            while data := await reader.read(65_536):
                if any(path.encode() in data for path in self.held_up):
                    await asyncio.sleep(_HELD_UP_SECONDS)
                onward.write(data)
        finally:
            back.cancel()
            onward.close()
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)


@asynccontextmanager
async def edge(ledger: Running, shop: Shop) -> AsyncGenerator[Verifier]:
    async with Verifier.at(ledger.url, ledger.root_key, keyspace_ids=(shop.keyspace_id,)) as verifier:
        yield verifier


async def test_a_revoked_key_is_dead_at_every_edge_once_the_fence_holds(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as one, edge(ledger, shop) as other:
        for _ in range(10):
            key_id, secret = await shop.key()
            assert (await one.verify(secret)).valid
            assert (await other.verify(secret)).valid
            await leased(one)
            await leased(other)

            revoked = await shop.api.post(f"/v1/keys/{key_id}/revoke")

            assert revoked["fence"]["held"]
            assert (revoked["fence"]["edges"], revoked["fence"]["acknowledged"]) == (2, 2)
            assert (await one.verify(secret)).code == "revoked"
            assert (await other.verify(secret)).code == "revoked"


async def test_an_edge_answers_from_memory(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as verifier:
        _, secret = await shop.key()
        await remembered(verifier, secret)
        asked = verifier.metrics()["misses_total"]
        for _ in range(1_000):
            cached = verifier.verify_cached(secret)

            assert cached is not None
            assert cached.valid

        assert verifier.metrics()["misses_total"] == asked


async def test_a_key_that_was_unknown_is_known_once_it_is_made(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as verifier:
        shape = verifier.keyspace().shape
        secret = shape.generate()
        assert (await verifier.verify(secret)).code == "not_found"
        await remembered(verifier, secret)

        await shop.api.post(
            "/v1/keys/import",
            {
                "keyspace_id": shop.keyspace_id,
                "organization_id": shop.organization_id,
                "name": "adopted",
                "sha256": fingerprint(secret).hex(),
                "hint": hint(secret, shape.prefix),
            },
        )
        async with asyncio.timeout(_PATIENCE_SECONDS):  # what is added is not fenced: it is heard of soon
            while not (await verifier.verify(secret)).valid:
                await asyncio.sleep(0.02)


async def test_a_rotation_without_overlap_is_fenced_too(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as verifier:
        key_id, old = await shop.key()
        assert (await verifier.verify(old)).valid
        new = (await shop.api.post(f"/v1/keys/{key_id}/rotate", {"overlap_seconds": 0}))["secret"]

        assert (await verifier.verify(old)).code == "rotated"
        assert (await verifier.verify(new)).valid


async def test_a_suspended_organization_takes_all_its_keys_along(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as verifier:
        _, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        await shop.api.post(f"/v1/organizations/{shop.organization_id}/suspend")

        assert (await verifier.verify(secret)).code == "organization_suspended"


async def test_uses_with_a_cost_are_charged_once_however_often_they_are_sent(
    ledger: Running, shop: Shop
) -> None:
    await shop.api.post(
        f"/v1/organizations/{shop.organization_id}/wallet/credits",
        {"amount_micros": 10_000, "reference": "r"},
    )
    _, secret = await shop.key()
    async with edge(ledger, shop) as verifier:
        uses = [verifier.verify(secret, cost_micros=100, request_id=f"r{n % 40}") for n in range(120)]
        verdicts = await asyncio.gather(*uses)
        wallet = await shop.api.get(f"/v1/organizations/{shop.organization_id}/wallet")

        assert {one.code for one in verdicts} == {"valid"}
        assert wallet["balance_micros"] == 10_000 - 40 * 100


async def test_a_ledger_that_stands_still_ends_the_lease_and_nothing_fails_open(
    ledger: Running, shop: Shop
) -> None:
    async with edge(ledger, shop) as verifier:
        _, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        ledger.process.send_signal(signal.SIGSTOP)
        try:
            stopped = time.monotonic()
            lasted = await last_accepted(verifier, secret) - stopped

            assert lasted <= 1.05
            assert (await verifier.verify(secret)).code == "ledger_unreachable"
        finally:
            ledger.process.send_signal(signal.SIGCONT)
        for _ in range(100):
            if verifier.ready:
                break
            await asyncio.sleep(0.1)

        assert (await verifier.verify(secret)).valid


async def test_a_forked_child_knows_nothing(ledger: Running, shop: Shop) -> None:
    async with edge(ledger, shop) as verifier:
        _, secret = await shop.key()
        await remembered(verifier, secret)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            known = verifier.verify_cached(secret) is not None or verifier.ready
            os.write(writing, b"1" if known else b"0")
            os._exit(0)
        os.waitpid(child, 0)

        assert os.read(reading, 1) == b"0"
        assert verifier.verify_cached(secret) is not None
        os.close(reading)
        os.close(writing)


async def test_the_middleware_refuses_what_was_revoked(ledger: Running, shop: Shop) -> None:
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async with edge(ledger, shop) as verifier:
        key_id, secret = await shop.key()
        app = KeyledgerMiddleware(application, verifier)
        headers = {"Authorization": f"Bearer {secret}"}

        assert (await call(app, "/", headers=headers)).status == 200

        await shop.api.post(f"/v1/keys/{key_id}/revoke")

        assert (await call(app, "/", headers=headers)).status == 401


async def test_the_sidecar_answers_on_a_unix_socket(ledger: Running, shop: Shop) -> None:
    key_id, secret = await shop.key()
    path = ledger.folder / "edge.sock"
    environment = {**os.environ, "KEYLEDGER_EDGE_KEY": ledger.root_key}
    sidecar = await asyncio.create_subprocess_exec(
        *_PROGRAM, "--json", "edge", "--ledger", ledger.url, "--listen", f"unix:{path}",
        "--keyspace", shop.keyspace_id,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert sidecar.stdout is not None
        await asyncio.wait_for(sidecar.stdout.readline(), 20)
        async with aiohttp.ClientSession(
            "http://edge", connector=aiohttp.UnixConnector(str(path)), headers={"X-API-Key": secret}
        ) as session:
            for _ in range(100):
                async with session.get("/readyz") as ready:
                    if ready.status == 200:
                        break
                await asyncio.sleep(0.05)
            async with session.get("/v1/forward-auth") as answer:
                assert (answer.status, answer.headers["x-keyledger-key-id"]) == (200, key_id)
            await shop.api.post(f"/v1/keys/{key_id}/revoke")
            async with session.get("/v1/forward-auth?proxy=nginx") as answer:
                assert (answer.status, answer.headers["x-keyledger-code"]) == (401, "revoked")
    finally:
        sidecar.terminate()
        await sidecar.wait()


# -- what a keyspace's requests look like: its view ---------------------------------------------

_CONNECT = "/v1/edges/connect"
_VIEWS = "/v1/edges/keyspaces"
HELD_UP: dict[tuple[str, ...], str] = {
    (): "malformed",
    (_CONNECT,): "malformed",
    (_CONNECT, _VIEWS): "ledger_unreachable",
}


@pytest.mark.parametrize("held_up", HELD_UP, ids=["nothing", "connecting", "views"])
async def test_a_format_that_is_accepted_no_more_is_dead_once_the_fence_holds(
    ledger: Running, shop: Shop, held_up: tuple[str, ...]
) -> None:
    prefix = f"old{time.time_ns()}_"
    keyspace = f"/v1/keyspaces/{shop.keyspace_id}"
    await shop.api.patch(
        keyspace, {"accepted_formats": [{"prefix": prefix, "min_length": 30, "max_length": 30}]}
    )
    secret = prefix + "a1B2c3D4e5" * 3
    await shop.api.post(
        "/v1/keys/import",
        {
            "keyspace_id": shop.keyspace_id,
            "organization_id": shop.organization_id,
            "name": "imported",
            "sha256": fingerprint(secret).hex(),
        },
    )
    async with Delay(ledger.url) as delay:
        at = Verifier.at(delay.url, ledger.root_key, keyspace_ids=(shop.keyspace_id,))
        async with at as verifier:
            assert (await verifier.verify(secret)).valid
            await leased(verifier)
            delay.held_up = held_up

            changed = await shop.api.patch(keyspace, {"accepted_formats": []})
            said = await _said_for_a_while(verifier, secret)

    print(f"after {changed['fence']}: {said}")
    assert (changed["fence"]["held"], changed["fence"]["acknowledged"]) == (True, 1)
    assert set(said) == {HELD_UP[held_up]}


async def _said_for_a_while(verifier: Verifier, secret: str) -> Counter[str]:
    said: Counter[str] = Counter()
    began = time.monotonic()
    while time.monotonic() - began < _WATCHED_SECONDS:
        said[(await verifier.verify(secret)).code] += 1
        await asyncio.sleep(0)  # an answer out of memory lets nothing else run
    return said


@pytest.mark.parametrize("held_up", HELD_UP, ids=["nothing", "connecting", "views"])
async def test_a_place_that_is_looked_at_no_more_is_dead_at_a_sidecar_once_the_fence_holds(
    ledger: Running, shop: Shop, held_up: tuple[str, ...]
) -> None:
    keyspace = f"/v1/keyspaces/{shop.keyspace_id}"
    header = "header:Authorization:Bearer"
    await shop.api.patch(keyspace, {"credential_locations": [header, "query:key"]})
    _, secret = await shop.key()
    async with Delay(ledger.url) as delay, _sidecar(ledger, shop, delay.url) as session:

        async def code() -> str:
            headers = {"X-Forwarded-Uri": f"/chat?key={secret}"}
            async with session.get("/v1/forward-auth", headers=headers) as answer:
                return answer.headers["x-keyledger-code"]

        assert await code() == "valid"
        await _sidecar_leased(session)
        delay.held_up = held_up

        changed = await shop.api.patch(keyspace, {"credential_locations": [header]})
        said: Counter[str] = Counter()
        began = time.monotonic()
        while time.monotonic() - began < _WATCHED_SECONDS:
            said[await code()] += 1

    print(f"after {changed['fence']}: {said}")
    assert (changed["fence"]["held"], changed["fence"]["acknowledged"]) == (True, 1)
    assert set(said) == {HELD_UP[held_up].replace("malformed", "missing")}


async def _sidecar_leased(session: aiohttp.ClientSession) -> None:
    """As `leased`, of a sidecar."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            async with session.get("/metrics") as answer:
                found = re.search(
                    r"^keyledger_edge_lease_left_seconds (.*)$", await answer.text(), re.MULTILINE
                )
            if found is not None and float(found[1]) >= 0.7:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _sidecar(ledger: Running, shop: Shop, url: str) -> AsyncGenerator[aiohttp.ClientSession]:
    path = ledger.folder / f"edge-{time.time_ns()}.sock"
    sidecar = await asyncio.create_subprocess_exec(
        *_PROGRAM, "--json", "edge", "--ledger", url, "--listen", f"unix:{path}",
        "--keyspace", shop.keyspace_id,
        env={**os.environ, "KEYLEDGER_EDGE_KEY": ledger.root_key},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert sidecar.stdout is not None
        await asyncio.wait_for(sidecar.stdout.readline(), 20)
        async with aiohttp.ClientSession(
            "http://edge", connector=aiohttp.UnixConnector(str(path))
        ) as session:
            for _ in range(100):
                async with session.get("/readyz") as ready:
                    if ready.status == 200:
                        break
                await asyncio.sleep(0.05)
            yield session
    finally:
        sidecar.terminate()
        await sidecar.wait()
