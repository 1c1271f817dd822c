"""A thousand secrets, used in every way that people use and misuse them: no trace of one anywhere."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, get_args

import aiohttp
import msgspec
import nats
import pytest
from nats.aio.msg import Msg

from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from keyledger_edge import fingerprint
from keyledger_language.events import LedgerEvent
from tests.campaigns.cluster import Cluster, cluster
from tests.canaries import Canaries, Leak
from tests.contract.stream_worlds import read_all

PREFIX = "kl_canary_"
_SHOWN = 10


class Aviary:
    """Where canaries are let loose; every answer is kept, but the one that may show a secret."""

    def __init__(self, running: Cluster, session: aiohttp.ClientSession) -> None:
        self.running = running
        self.canaries = Canaries(PREFIX)
        self.answers: list[bytes] = []
        self.statuses: dict[int, int] = {}
        self.heard: list[bytes] = []
        self._session = session
        self._turn = 0
        self.keyspace_id = ""
        self.organization_id = ""

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        shows: bool = False,
        raw: bytes | None = None,
    ) -> Any:
        """One request, to the processes in turn; its answer's body if it is JSON."""
        self._turn += 1
        address = self.running.addresses[self._turn % len(self.running.addresses)]
        sent = {**self.running.authorization, **(headers or {})}
        data = raw if raw is not None else None if body is None else msgspec.json.encode(body)
        async with self._session.request(
            method, address + path, data=data, headers=sent, allow_redirects=False
        ) as answer:
            content = await answer.read()
            told = repr(list(answer.raw_headers)).encode()
            self.answers.append(told if shows else told + content)
            assert answer.status != 500, f"{method} {path.partition('?')[0]}: {content[:300]!r}"
            self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1
            return msgspec.json.decode(content) if content[:1] in {b"{", b"["} else None

    async def prepare(self) -> None:
        keyspace = await self.send(
            "POST", "/v1/keyspaces",
            {
                "name": "canaries", "preset": "default", "prefix": PREFIX,
                "credential_locations": [
                    "header:Authorization:Bearer", "header:X-API-Key", "query:key",
                ],
            },
        )  # fmt: skip
        self.keyspace_id = keyspace["id"]
        self.organization_id = (await self.send("POST", "/v1/organizations", {"name": "cage"}))["id"]
        await self.send(
            "POST", f"/v1/organizations/{self.organization_id}/wallet/credits",
            {"amount_micros": 10**9, "reference": "seed"},
        )  # fmt: skip

    async def hatch(self, **fields: Any) -> tuple[str, str]:
        """A new key; its id, and its secret, which is a canary from now on."""
        body = {
            "keyspace_id": self.keyspace_id, "organization_id": self.organization_id,
            "name": f"key {uuid.uuid4().hex[:6]}", **fields,
        }  # fmt: skip
        made = await self.send("POST", "/v1/keys", body, shows=True)
        self.canaries.add(made["secret"])
        return made["key"]["id"], made["secret"]

    async def use_and_misuse(self, n: int) -> None:
        """One canary, everywhere."""
        key_id, secret = await self.hatch()
        await self._use(n, key_id, secret)
        await self._misuse(n, key_id, secret)
        await self._end(n, key_id, secret)

    async def _use(self, n: int, key_id: str, secret: str) -> None:
        asked = {"secret": secret, "keyspace_id": self.keyspace_id}
        await self.send("POST", "/v1/verify", asked)
        await self.send("POST", "/v1/verify", {**asked, "cost_micros": 3, "request_id": f"v{n}"})
        await self.send("POST", "/v1/verify/batch", {"items": [asked, {**asked, "ip": "10.0.0.1"}]})
        made = await self.send("POST", "/v1/charges", {**asked, "request_id": f"c{n}", "amount_micros": 5})
        await self.send("POST", f"/v1/charges/{made['charge']['id']}/refund", {"request_id": secret})
        await self.send("POST", "/v1/charges", {**asked, "request_id": f"d{n}", "amount_micros": 10**12})
        held = await self.send(
            "POST", "/v1/reservations", {**asked, "request_id": f"h{n}", "amount_micros": 5}
        )
        for way in ("capture", "release"):
            path = f"/v1/reservations/{held['reservation']['id']}/{way}"
            await self.send("POST", path, {"request_id": f"{way} {secret}", "amount_micros": 1})
        await self.send("POST", "/v1/explain", asked)
        await self.send("GET", "/v1/self", None, {"Authorization": f"Bearer {secret}"})
        path = f"/v1/forward-auth?keyspace_id={self.keyspace_id}"
        proxy = {"X-Keyledger-Proxy-Key": self.running.root_key}
        await self.send("GET", path, None, {**proxy, "Authorization": f"Bearer {secret}"})
        await self.send("GET", path, None, {**proxy, "Authorization": "", "X-API-Key": secret})
        uri = f"/models?key={secret}"
        await self.send("GET", path, None, {**proxy, "Authorization": "", "X-Original-URI": uri})
        await self.send(
            "GET", f"{path}&proxy=nginx", None, {**proxy, "Authorization": "", "X-Forwarded-Uri": uri}
        )
        await self.send(
            "GET", f"/v1/forward-auth/models?keyspace_id={self.keyspace_id}&key={secret}", None, proxy
        )

    async def _misuse(self, n: int, key_id: str, secret: str) -> None:
        asked = {"secret": secret, "keyspace_id": self.keyspace_id}
        cut, mistyped = secret[:-2], secret[:-1] + ("A" if secret[-1] != "A" else "B")
        for wrong in (cut, mistyped, f" {secret}", f"{secret}/"):
            await self.send("POST", "/v1/verify", {**asked, "secret": wrong})
            await self.send("GET", "/v1/self", None, {"Authorization": f"Bearer {wrong}"})
        await self.send("GET", "/v1/keys", None, {"Authorization": f"Bearer {secret}"})
        for path in (f"/v1/keys/{secret}", f"/v1/keys/{key_id}?q={secret}", f"/v1/keys?q={secret}",
                     f"/v1/keys?cursor={secret}", f"/v1/requests/{secret}", f"/v1/events?after={secret}",
                     f"/v1/audit?actor={secret}", f"/{secret}", f"/v1/organizations/{secret}/wallet",
                     f"/v1/fences/{secret}",
                     f"/v1/self?key={secret}", f"/v1/verify?key={secret}"):  # fmt: skip
            await self.send("GET", path)
        told = {"X-Request-Id": secret, "User-Agent": f"curl {secret}"}
        await self.send("GET", f"/v1/keys/{key_id}", None, told)
        await self.send("POST", f"/v1/keys/{key_id}/disable", {}, told)
        await self.send("POST", "/v1/verify", asked, {"X-Request-Id": secret})
        await self.send("POST", "/v1/verify", raw=b'{"secret": "' + secret.encode() + b'"')
        await self.send("POST", "/v1/verify", {**asked, secret: 1})
        await self.send("POST", "/v1/verify", {**asked, "keyspace_id": secret})
        await self.send("POST", "/v1/charges", {**asked, "request_id": secret, "amount_micros": 1})
        await self.send("POST", "/v1/charges", {"key_id": secret, "request_id": f"e{n}", "amount_micros": 1})
        await self.send("POST", "/v1/charges", {**asked, "request_id": f"f{n}", "amount_micros": secret})
        await self.send(
            "POST", "/v1/charges", {**asked, "request_id": f"g{n}", "amount_micros": 1, "model": secret}
        )
        await self.send(
            "POST", "/v1/charges",
            {**asked, "request_id": f"m{n}", "amount_micros": 1, "metadata": {"header": f"Bearer {secret}"}},
        )  # fmt: skip
        await self.send("POST", f"/v1/keys/{key_id}/disable", {"reason": f"it was {secret}"})
        await self.send("POST", f"/v1/keys/{key_id}/disable", {}, {"Idempotency-Key": secret})
        await self.send("POST", f"/v1/keys/{key_id}/enable", {})
        for fields in ({"name": secret}, {"tags": [secret]}, {"metadata": {"key": secret}},
                       {"metadata": {secret: 1}},
                       {"owner_id": secret}, {"environment": secret}, {"allowed_ips": [secret]}):  # fmt: skip
            await self.send("PATCH", f"/v1/keys/{key_id}", fields)
        await self.send("PATCH", f"/v1/keys/{key_id}/scopes", {"models": [secret]})
        await self.send("PATCH", f"/v1/keys/{key_id}/scopes", {"models": "*", "permissions": "*"})
        await self.send("POST", "/v1/organizations", {"name": secret, "external_id": secret})
        await self.send(
            "POST", f"/v1/organizations/{self.organization_id}/wallet/credits",
            {"amount_micros": 1, "reference": secret},
        )  # fmt: skip
        await self.send("POST", "/v1/keyspaces", {"name": secret, "prefix": secret})
        await self.send("POST", "/v1/plans", {"name": secret, "models": [secret]})
        await self.send("TRACE", f"/v1/keys/{secret}")
        await self.send("POST", "/v1/keys/import", {"keys": [{"secret": secret, "sha256": secret}]})

    async def _end(self, n: int, key_id: str, secret: str) -> None:
        turn = n % 4
        if turn == 0:
            made = await self.send("POST", f"/v1/keys/{key_id}/rotate", {"overlap_seconds": 60}, shows=True)
            self.canaries.add(made["secret"])
        elif turn == 1:
            holder = {"Authorization": f"Bearer {secret}", "User-Agent": f"curl %20{secret}"}
            await self.send("POST", "/v1/self/revoke", {"reason": f"it was {secret}"}, holder)
            await self.send("POST", "/v1/self/revoke", {}, holder)
        elif turn == 2:
            await self.send(
                "POST", "/v1/leaks", {"secret": secret, "source": "test", "keyspace_id": self.keyspace_id}
            )
        else:
            await self.send("DELETE", f"/v1/keys/{key_id}?fence=false")
        digest = fingerprint(secret[:-1] + "!").hex()
        await self.send(
            "POST", "/v1/keys/import",
            {
                "keyspace_id": self.keyspace_id, "organization_id": self.organization_id,
                "keys": [{"name": "imported", "sha256": digest}],
            },
        )  # fmt: skip
        await self.send("POST", "/v1/verify", {"secret": secret, "keyspace_id": self.keyspace_id})

    # -- looking

    async def leaks(self) -> list[Leak]:
        """Whatever is found anywhere."""
        for path in ("/metrics", "/v1/audit?limit=500", "/v1/events?limit=500", "/v1/edges", "/readyz"):
            await self.send("GET", path)
        canaries, folder = self.canaries, self.running.folder
        found = canaries.leaks("answers", b"\n".join(self.answers))
        logs = [path for path in folder.rglob("*") if path.suffix == ".log"]
        assert len(logs) >= 4, logs
        found += canaries.leaks_in_files(logs)
        found += canaries.leaks_in_database(self.running.database_url)
        found += canaries.leaks("events", b"\n".join(await self._events()))
        stored = await read_all(self.running.servers.nats.url)
        published = [f"{one.subject} {one.message_id} ".encode() + one.body for one in stored]
        found += canaries.leaks("JetStream", b"\n".join(published))
        return found + canaries.leaks("NATS", b"\n".join(self.heard))

    async def _events(self) -> list[bytes]:
        """Every event, personal fields deciphered."""
        mapper = EventMapper(get_args(LedgerEvent))
        log = PostgresLog(self.running.database_url, wakeups=False)
        try:
            mapper.data_keys.learn(await log.data_keys())
            events, position = [], 0
            while batch := await log.read(position, 5_000):
                position = batch[-1].position
                events += [msgspec.json.encode(mapper.decode(one)) for one in batch]
            return events
        finally:
            await log.close()


@asynccontextmanager
async def aviary() -> AsyncGenerator[Aviary]:
    async with cluster(KEYLEDGER_LOG_LEVEL="debug") as running:
        session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60))
        listening = await nats.connect(running.servers.nats.url)
        made = Aviary(running, session)

        async def hear(message: Msg) -> None:
            made.heard.append(message.subject.encode() + repr(message.headers).encode() + message.data)

        try:
            await listening.subscribe("keyledger.>", cb=hear)
            await made.prepare()
            yield made
        finally:
            await listening.close()
            await session.close()


async def sing(count: int, callers: int) -> None:
    seed = random.randrange(1 << 32)
    async with aviary() as made:
        numbers = iter(range(count))

        async def caller() -> None:
            for n in numbers:
                await made.use_and_misuse(n)

        await asyncio.gather(*(caller() for _ in range(callers)))
        found = await made.leaks()
        print(
            f"\n{len(made.canaries.secrets):,} canaries, {len(made.answers):,} requests (seed {seed}), "
            f"{len(made.heard):,} messages: {len(found)} leaks"
        )
        kinds = {leak.where for leak in found}
        assert not found, f"{len(found)} leaks in {kinds}: " + "\n".join(str(one) for one in found[:_SHOWN])
        print(f"answered {dict(sorted(made.statuses.items()))}")
        assert made.statuses[200] > len(made.canaries.secrets)


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_no_trace_of_a_thousand_canaries() -> None:
    await sing(int(os.environ.get("KEYLEDGER_CANARIES", "1000")), callers=16)


@pytest.mark.slow
async def test_no_trace_of_a_few_canaries() -> None:
    await sing(8, callers=4)


def test_a_leak_is_found() -> None:
    """A search that finds nothing because it looks for nothing proves nothing."""
    canaries = Canaries(PREFIX)
    secret = f"{PREFIX}{'0123456789' * 3}ABCDEF"
    canaries.add(secret)

    assert canaries.leaks("a log", b"x" * 99 + secret.encode())
    assert canaries.leaks("a log", secret.encode().hex().encode())
    assert canaries.leaks("a log", b"only a part: 01234567890123")
    assert not canaries.leaks("a log", f"{PREFIX}...CDEF".encode())
