"""An edge beside a real ledger: what narrows a key reaches it, and it outlives what it leans on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest

from keyledger_edge import Tenant, Use, Verdict, Verifier
from tests.e2e.leases import last_accepted, leased, remembered
from tests.e2e.ledgers import PROGRAM, Place, stop
from tests.servers import server_folder

LEASE_SECONDS = 1.0
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """`keyledger up` on a port that it gets again when it is started again."""
    with server_folder() as folder:
        place = Place(folder, KEYLEDGER_PORT=str(_free_port()))
        try:
            place.start()
            yield place
        finally:
            place.end()


class Shop(NamedTuple):
    """A keyspace and an organization for one test, and the API to act on them."""

    place: Place
    session: aiohttp.ClientSession
    root_key: str
    keyspace_id: str = ""
    organization_id: str = ""

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        async with self.session.request(method, path, json=body) as answer:
            found = await answer.json(content_type=None)
            assert answer.status < 300, found
            return found

    async def key(self, **more: Any) -> tuple[str, str]:
        body = {"keyspace_id": self.keyspace_id, "organization_id": self.organization_id, "name": "k", **more}
        made = await self.ask("POST", "/v1/keys", body)
        return made["key"]["id"], made["secret"]

    @asynccontextmanager
    async def edge(self) -> AsyncGenerator[Verifier]:
        url = self.place.told["api"]
        async with Verifier.at(url, self.root_key, keyspace_ids=(self.keyspace_id,)) as verifier:
            assert verifier.ready
            yield verifier


@pytest.fixture
async def shop(place: Place) -> AsyncIterator[Shop]:
    root_key = (place.folder / "data" / "root-key").read_text(encoding="utf-8").strip()
    headers = {"Authorization": f"Bearer {root_key}"}
    async with aiohttp.ClientSession(place.told["api"], headers=headers) as session:
        shop = Shop(place, session, root_key)
        name = f"e{time.time_ns()}_"
        keyspace = await shop.ask(
            "POST", "/v1/keyspaces", {"name": name, "preset": "default", "prefix": name}
        )
        organization = await shop.ask("POST", "/v1/organizations", {"name": name})
        yield shop._replace(keyspace_id=keyspace["id"], organization_id=organization["id"])


async def test_the_fence_leaves_a_receipt_that_can_be_asked_for_and_read_in_the_log(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        await leased(verifier)
        fence = (await shop.ask("POST", f"/v1/keys/{key_id}/revoke"))["fence"]

        assert (fence["held"], fence["edges"], fence["acknowledged"], fence["expired"]) == (True, 1, 1, 0)
        # A ledger that has just started waits for a lease first: there may have been one before it.
        assert fence["waited_ms"] < LEASE_SECONDS * 1_000 * 1.1
        assert await shop.ask("GET", f"/v1/fences/{fence['position']}") == fence

        page = await _eventually(
            lambda: shop.ask("GET", f"/v1/events?after={fence['position']}&types=RevocationFenced"),
            lambda page: bool(page["items"]),
        )
        receipt = page["items"][0]["data"]

        assert receipt["fenced"] == [fence["position"]]
        assert (receipt["edges_acknowledged"], receipt["edges_expired"]) == (1, 0)
        assert receipt["committed_at"] <= receipt["fenced_at"]


async def test_who_does_not_wait_gets_202_and_asks_for_the_fence_later(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        await verifier.verify(secret)
        async with shop.session.post(f"/v1/keys/{key_id}/revoke?fence=false", json={}) as answer:
            assert answer.status == 202
            position = (await answer.json())["fence"]["position"]
        fence = await shop.ask("GET", f"/v1/fences/{position}?wait=true")

        assert fence["held"]
        assert (await verifier.verify(secret)).code == "revoked"


async def test_a_narrower_scope_is_fenced_and_the_secret_stays(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        models, tenant = Use(model="small"), Use(tenant=Tenant(org_id="acme"))
        assert (await verifier.verify(secret, models)).valid
        assert (await verifier.verify(secret, tenant)).valid
        await leased(verifier)
        changed = await shop.ask("PATCH", f"/v1/keys/{key_id}/scopes", {"models": ["large"]})

        assert changed["fence"]["acknowledged"] == 1
        assert (await verifier.verify(secret, models)).code == "model_denied"
        assert (await verifier.verify(secret, tenant)).valid
        assert (await verifier.verify(secret)).valid

        await shop.ask("PATCH", f"/v1/keys/{key_id}/scopes", {"models": "*"})

        await _eventually(lambda: verifier.verify(secret, models), lambda verdict: verdict.valid)


async def test_a_rotation_with_overlap_ends_the_old_secret_when_it_ends(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, old = await shop.key()
        assert (await verifier.verify(old)).valid
        new = (await shop.ask("POST", f"/v1/keys/{key_id}/rotate", {"overlap_seconds": 2}))["secret"]

        assert (await verifier.verify(old)).valid
        assert (await verifier.verify(new)).valid

        asked = _fills_with_a_lease(verifier)
        verdict = await _eventually(lambda: verifier.verify(old), _is_told_bad)

        assert verdict.code == "rotated"
        assert (await verifier.verify(new)).valid
        assert _fills_with_a_lease(verifier) <= asked + 2, "it is told by the clock, not by asking"


def _is_told_bad(verdict: Verdict) -> bool:
    """Somebody judged it: a ledger that stands still says nothing, and so nothing is known."""
    return not verdict.valid and verdict.code != "ledger_unreachable"


def _fills_with_a_lease(verifier: Verifier) -> float:
    """How often the ledger was asked though there was a lease: without one it must be."""
    metrics = verifier.metrics()
    return metrics["fills_total"] - metrics["without_lease_total"]


async def test_disabled_and_enabled_again(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        assert (await shop.ask("POST", f"/v1/keys/{key_id}/disable", {}))["fence"]["held"]
        assert (await verifier.verify(secret)).code == "disabled"
        await shop.ask("POST", f"/v1/keys/{key_id}/enable", {})

        await _eventually(lambda: verifier.verify(secret), lambda verdict: verdict.valid)


async def test_suspending_the_organization_and_lifting_that(shop: Shop) -> None:
    async with shop.edge() as verifier:
        secrets = [(await shop.key())[1] for _ in range(3)]
        assert all([(await verifier.verify(secret)).valid for secret in secrets])
        await leased(verifier)
        suspended = await shop.ask("POST", f"/v1/organizations/{shop.organization_id}/suspend", {})

        assert suspended["fence"]["acknowledged"] == 1
        for secret in secrets:
            assert (await verifier.verify(secret)).code == "organization_suspended"

        await shop.ask("POST", f"/v1/organizations/{shop.organization_id}/resume", {})
        for secret in secrets:
            await _eventually(lambda one=secret: verifier.verify(one), lambda verdict: verdict.valid)  # type: ignore[misc]  # a default of a lambda


async def test_a_plan_that_is_changed_or_taken_away(shop: Shop) -> None:
    async with shop.edge() as verifier:
        plan = await shop.ask("POST", "/v1/plans", {"name": "pro", "models": ["small", "large"]})
        other = await shop.ask("POST", "/v1/plans", {"name": "lite", "models": ["small"]})
        _, one = await shop.key(plan_id=plan["id"])
        key_id, two = await shop.key(plan_id=plan["id"])
        large = Use(model="large")
        assert (await verifier.verify(one, large)).valid
        assert (await verifier.verify(two, large)).valid

        assert (await shop.ask("PATCH", f"/v1/keys/{key_id}", {"plan_id": other["id"]}))["fence"]["held"]
        assert (await verifier.verify(two, large)).code == "model_denied"
        assert (await verifier.verify(one, large)).valid

        assert (await shop.ask("PATCH", f"/v1/plans/{plan['id']}", {"models": ["small"]}))["fence"]["held"]
        assert (await verifier.verify(one, large)).code == "model_denied"
        assert (await verifier.verify(one, Use(model="small"))).valid


async def test_an_archived_project_takes_its_uses_along(shop: Shop) -> None:
    async with shop.edge() as verifier:
        path = f"/v1/organizations/{shop.organization_id}/projects"
        project, other = [(await shop.ask("POST", path, {"name": name}))["id"] for name in ("a", "b")]
        _, secret = await shop.key()
        assert (await verifier.verify(secret, Use(project_id=project))).valid
        assert (await shop.ask("POST", f"{path}/{project}/archive", {}))["fence"]["held"]
        assert (await verifier.verify(secret, Use(project_id=project))).code == "project_denied"
        assert (await verifier.verify(secret, Use(project_id=other))).valid


async def test_a_keyspace_that_asks_for_more_is_obeyed_once_fenced(shop: Shop) -> None:
    async with shop.edge() as verifier:
        _, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        changed = await shop.ask(
            "PATCH", f"/v1/keyspaces/{shop.keyspace_id}",
            {"required_dimensions": ["model"], "denial_status": {"model_denied": 451}},
        )  # fmt: skip

        assert changed["fence"]["held"]
        assert (await verifier.verify(secret)).code == "model_denied"
        assert (await verifier.verify(secret, Use(model="any"))).valid
        await _eventually(
            lambda: asyncio.sleep(0, verifier.keyspace().denial_status.get("model_denied")),
            lambda status: status == 451,
        )


async def test_an_edge_that_was_there_before_a_keyspace_serves_it(shop: Shop) -> None:
    async with Verifier.at(shop.place.told["api"], shop.root_key) as verifier:
        name = f"later{time.time_ns()}_"
        made = await shop.ask("POST", "/v1/keyspaces", {"name": name, "preset": "default", "prefix": name})
        _, secret = await shop._replace(keyspace_id=made["id"]).key()

        await _eventually(
            lambda: asyncio.sleep(0, made["id"] in verifier.keyspaces), lambda knows_it: knows_it is True
        )
        assert (await verifier.verify(secret, keyspace_id=made["id"])).valid


async def test_addresses_and_an_earlier_end_are_narrower_too(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        assert (await verifier.verify(secret, Use(ip="192.0.2.1"))).valid
        changed = await shop.ask("PATCH", f"/v1/keys/{key_id}", {"allowed_ips": ["198.51.100.0/24"]})

        assert changed["fence"]["held"]
        assert (await verifier.verify(secret, Use(ip="192.0.2.1"))).code == "ip_denied"
        assert (await verifier.verify(secret, Use(ip="198.51.100.7"))).valid

        soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        assert (await shop.ask("PATCH", f"/v1/keys/{key_id}", {"expires_at": soon}))["fence"]["held"]
        use = Use(ip="198.51.100.7")
        verdict = await _eventually(lambda: verifier.verify(secret, use), _is_told_bad)

        assert verdict.code == "expired"


async def test_without_nats_the_ledger_is_asked_and_revocations_count_at_once(shop: Shop) -> None:
    async with shop.edge() as verifier:
        key_id, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        with _frozen(_nats_pid(shop.place)):
            stopped = time.monotonic()
            lasted = await last_accepted(verifier, secret) - stopped

            assert lasted <= LEASE_SECONDS * 1.05
            assert not verifier.ready
            assert (await verifier.verify(secret)).valid

            revoked = await shop.ask("POST", f"/v1/keys/{key_id}/revoke")

            assert revoked["fence"]["held"]
            assert (await verifier.verify(secret)).code == "revoked"
        await _eventually(lambda: asyncio.sleep(0, verifier.ready), bool)

        assert (await verifier.verify(secret)).code == "revoked"


async def test_a_nats_that_was_killed_comes_back_and_so_does_the_lease(shop: Shop) -> None:
    async with shop.edge() as verifier:
        _, secret = await shop.key()
        assert (await verifier.verify(secret)).valid
        before = _nats_pid(shop.place)
        os.kill(before, signal.SIGKILL)
        # Its file is empty while it is written.
        await _eventually(lambda: asyncio.sleep(0, _nats_pid(shop.place)), lambda pid: pid not in {0, before})
        reconnects = verifier.metrics()["bus_reconnects_total"]
        await _eventually(
            lambda: asyncio.sleep(0, verifier.metrics()),
            lambda metrics: metrics["bus_connected"] == 1 and metrics["lease_left_seconds"] > 0.5,
        )

        assert reconnects >= 0
        assert (await verifier.verify(secret)).valid
        asked = verifier.metrics()["misses_total"]
        assert (await verifier.verify(secret)).valid
        assert verifier.metrics()["misses_total"] == asked


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_a_ledger_that_went_and_came_back(shop: Shop, how: signal.Signals) -> None:
    async with shop.edge() as verifier:
        _, secret = await shop.key()
        key_id, dying = await shop.key()
        assert (await verifier.verify(secret)).valid
        assert (await verifier.verify(dying)).valid
        process = shop.place.processes[-1]
        process.send_signal(how)
        gone = time.monotonic()
        lasted = await last_accepted(verifier, secret) - gone

        assert lasted <= LEASE_SECONDS * 1.05
        await asyncio.to_thread(stop, process, how)
        assert (await verifier.verify(secret)).code == "ledger_unreachable"
        assert not verifier.ready

        await asyncio.to_thread(shop.place.start)

        await _eventually(lambda: asyncio.sleep(0, verifier.ready), bool)
        assert (await verifier.verify(secret)).valid
        await remembered(verifier, secret)

        revoked = await shop.ask("POST", f"/v1/keys/{key_id}/revoke")

        assert revoked["fence"]["acknowledged"] >= 1
        assert (await verifier.verify(dying)).code == "revoked"


async def test_the_sidecar_on_a_port_verifies_guards_and_says_when_it_cannot_tell(shop: Shop) -> None:
    key_id, secret = await shop.key()
    sidecar = await asyncio.create_subprocess_exec(
        *PROGRAM, "--json", "edge", "--ledger", shop.place.told["api"], "--listen", "127.0.0.1:0",
        "--keyspace", shop.keyspace_id,
        env={**os.environ, "KEYLEDGER_EDGE_KEY": shop.root_key},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert sidecar.stdout is not None
        line = await asyncio.wait_for(sidecar.stdout.readline(), PATIENCE_SECONDS)
        async with aiohttp.ClientSession(json.loads(line)["edge"]) as session:

            async def status(path: str) -> int:
                async with session.get(path, headers={"Authorization": f"Bearer {secret}"}) as answer:
                    return answer.status

            async def code() -> str:
                async with session.post("/v1/verify", json={"secret": secret}) as answer:
                    assert answer.status == 200
                    return str((await answer.json())["code"])

            await _eventually(lambda: status("/readyz"), lambda found: found == 200)

            assert (await code(), await status("/v1/forward-auth")) == ("valid", 200)

            with _frozen(shop.place.processes[-1].pid):
                await _eventually(lambda: status("/readyz"), lambda found: found == 503)

                assert (await code(), await status("/v1/forward-auth")) == ("ledger_unreachable", 503)
            await _eventually(lambda: status("/readyz"), lambda found: found == 200)

            assert (await code(), await status("/v1/forward-auth")) == ("valid", 200)

            revoked = await shop.ask("POST", f"/v1/keys/{key_id}/revoke")

            assert revoked["fence"]["acknowledged"] == 1
            assert (await code(), await status("/v1/forward-auth")) == ("revoked", 401)
    finally:
        sidecar.terminate()
        assert await sidecar.wait() == 0


async def _eventually(look: Callable[[], Awaitable[Any]], good: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not good(found := await look()):
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)
    return found


class _frozen:  # noqa: N801 - reads like a function
    """Stands still as long as the `with` lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def _nats_pid(place: Place) -> int:
    return int((place.folder / "data" / "nats" / "nats.pid").read_text(encoding="ascii") or 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
