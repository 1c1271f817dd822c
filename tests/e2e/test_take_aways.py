"""Take-aways in pairs on real processes: NATS stands still, so the first one's fence is open.

Two ledgers, PostgreSQL, NATS and an edge in this process. The edge remembers every key; NATS is
stopped; everything is taken away once without waiting (or by a caller who hangs up), charges go by,
and everything is taken away again: with each second answer the edge may accept no more.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import pytest

from infra.embedded import EmbeddedServers
from keyledger_edge import Sidecar, Verifier, fingerprint
from tests.campaigns.cluster import Cluster
from tests.servers import initialised, server_folder
from tests.take_aways.shown import KEYSPACE, imported_secret, lets_in, lets_in_at_once
from tests.take_aways.table import FIRSTS, IMPOSSIBLE, SECONDS, TAKE_AWAYS, Target, path_of

STALE_MS: Final = 500
SETTINGS: Final = {"KEYLEDGER_LEASE_MS": "3000", "KEYLEDGER_MAX_SERVE_STALE_MS": str(STALE_MS)}
_CHARGES: Final = 40
_HANGS_UP_AFTER_SECONDS: Final = 0.2

ONCE_EACH: Final = [(name, name) for name in FIRSTS] + [
    ("revoke", "delete"),
    ("revoke", "leak"),
    ("revoke", "revoke oneself"),
    ("delete", "revoke oneself"),
    ("suspend", "quotas of the organization"),
    ("archive", "quotas of the project"),
    ("suspend", "credit limit"),
]


class Caller:
    """Speaks to one ledger process."""

    def __init__(self, session: aiohttp.ClientSession, root_key: str) -> None:
        self._session = session
        self._root_key = root_key

    async def ask(
        self, method: str, path: str, body: Any = None, *, secret: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {secret or self._root_key}"}
        async with self._session.request(method, path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None)

    async def made(self, path: str, body: Any) -> Any:
        status, answer = await self.ask("POST", path, body)
        assert status == 201, answer
        return answer

    async def take_away(self, name: str, target: Target, *, wait: bool = True) -> tuple[int, Any]:
        kind = TAKE_AWAYS[name]
        path = path_of(name, target) + ("" if wait else "?fence=false")
        secret = target.secret if kind.by_holder else None
        return await self.ask(kind.method, path, kind.body(target), secret=secret)


class Play:
    """One run of pairs, all at once, behind a NATS that stands still."""

    def __init__(self, cluster: Cluster, first: Caller, second: Caller, serve_stale_ms: int) -> None:
        self._cluster = cluster
        self._first = first
        self._second = second
        self._serve_stale_ms = serve_stale_ms

    async def run(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        """What went wrong."""
        for _ in range(3):
            wrong = await self._try(pairs)
            if wrong is not None:
                return wrong
        raise AssertionError("three times the lease had ended before everything was taken away once")

    async def _try(self, pairs: Sequence[tuple[str, str]]) -> list[str] | None:
        shared = await self._keyspace()
        targets = await asyncio.gather(*(self._target(pair, shared) for pair in pairs))
        charged = await self._target(("revoke", "revoke"), shared, micros=1_000_000)
        verifier = Verifier.at(
            self._cluster.addresses[0], self._cluster.root_key, serve_stale_ms=self._serve_stale_ms
        )
        async with verifier:
            for (first, _), target in zip(pairs, targets, strict=True):
                assert await _accepts_once_it_asked(verifier, first, target)
            with self._frozen():
                if not await self._take_all_once(verifier, pairs, targets):
                    return None
                await self._charge(charged)
                plays = zip(pairs, targets, strict=True)
                return [
                    wrong
                    for wrong in await asyncio.gather(
                        *(self._take_again(verifier, pair, target) for pair, target in plays)
                    )
                    if wrong
                ]

    def _frozen(self) -> Frozen:
        pid = self._cluster.servers.nats.pid
        assert pid is not None
        return Frozen(pid)

    async def _take_all_once(
        self, verifier: Verifier, pairs: Sequence[tuple[str, str]], targets: Sequence[Target]
    ) -> bool:
        """Without waiting, or hanging up; true while the edge still accepts all of it."""
        plays = [(first, target) for (first, _), target in zip(pairs, targets, strict=True)]
        hanging = [asyncio.create_task(self._first.take_away(first, target)) for first, target in plays[::2]]
        answers = await asyncio.gather(
            *(self._first.take_away(first, target, wait=False) for first, target in plays[1::2])
        )
        await asyncio.wait(hanging, timeout=_HANGS_UP_AFTER_SECONDS)
        answered_early = [task for task in hanging if task.done()]
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        accepted = [_accepts(verifier, first, target) for first, target in plays]
        if not verifier.ready:
            return False
        assert not answered_early, "a fence held though NATS stands still"
        for status, answer in answers:
            assert (status, answer["fence"]["held"]) == (202, False), answer
        assert all(accepted), "the edge has heard nothing"
        return True

    async def _take_again(self, verifier: Verifier, pair: tuple[str, str], target: Target) -> str | None:
        first, second = pair
        status, answer = await self._second.take_away(second, target)
        while status == 503:  # projections are behind, on a machine that has no time
            status, answer = await self._second.take_away(second, target)
        if _accepts(verifier, first, target):
            return f"{first}, then {second}: the edge accepts after {status} {answer.get('fence')}"
        if TAKE_AWAYS[first].view and await _accepts_once_it_asked(verifier, first, target):
            return f"{first}, then {second}: the edge asks and accepts after {status} {answer.get('fence')}"
        if status < 300 and not (status != 202 and answer["fence"]["held"]):
            return f"{first}, then {second}: {status} {answer.get('fence')}"
        if status not in {200, 201, 404, 409}:
            return f"{first}, then {second}: {status} {answer}"
        return None

    # -- what there is

    async def _keyspace(self) -> str:
        prefix = f"t{secrets.token_hex(6)}_"
        formats = [{"prefix": f"old{prefix}", "min_length": 30, "max_length": 30}]
        body = {
            "name": prefix,
            "preset": "default",
            "prefix": prefix,
            "accepted_formats": formats,
            **KEYSPACE,
        }
        return str((await self._first.made("/v1/keyspaces", body))["id"])

    async def _target(self, pair: tuple[str, str], shared: str, micros: int = 0) -> Target:
        made = self._first.made
        own = any(TAKE_AWAYS[name].own_keyspace for name in pair)
        keyspace_id = await self._keyspace() if own else shared
        organization_id = (await made("/v1/organizations", {"name": "Acme"}))["id"]
        organization = f"/v1/organizations/{organization_id}"
        if micros:
            await made(f"{organization}/wallet/credits", {"amount_micros": micros, "reference": "first"})
        project = await made(f"{organization}/projects", {"name": "Web"})
        plan = await made("/v1/plans", {"name": "pro", "models": ["a", "b"]})
        other = await made("/v1/plans", {"name": "lite", "models": ["b"]})
        body: dict[str, Any] = {
            "keyspace_id": keyspace_id, "organization_id": organization_id, "plan_id": plan["id"],
            "name": "Checkout",
        }  # fmt: skip
        if "earlier expiry" in pair:
            body["expires_at"] = "2036-01-01T00:00:00Z"
        if pair[0] == "tenant locations":
            body["scopes"] = {"tenants": ["acme"]}
        if TAKE_AWAYS[pair[0]].view == "shape":
            keyspace = (await self._first.ask("GET", f"/v1/keyspaces/{keyspace_id}"))[1]
            secret = imported_secret(keyspace["accepted_formats"][0]["prefix"])
            key_id = (await made("/v1/keys/import", {**body, "sha256": fingerprint(secret).hex()}))["key"][
                "id"
            ]
        else:
            key = await made("/v1/keys", body)
            key_id, secret = key["key"]["id"], key["secret"]
        return Target(
            key_id, secret, fingerprint(secret), keyspace_id, organization_id,
            project["id"], plan["id"], other["id"],
        )  # fmt: skip

    async def _charge(self, target: Target) -> None:
        names = [secrets.token_hex(8) for _ in range(_CHARGES)]
        charges = [{"key_id": target.key_id, "request_id": name, "amount_micros": 1} for name in names]
        status, answer = await self._first.ask("POST", "/v1/charges/batch", {"items": charges})
        assert status == 200, answer


class Frozen:
    """Stands still as long as the `with` lasts."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


def _accepts(verifier: Verifier, first: str, target: Target) -> bool:
    kind = TAKE_AWAYS[first]
    if kind.view:
        return lets_in_at_once(Sidecar(verifier), kind.view, target)
    verdict = verifier.verify_cached(target.secret, kind.use(target), target.keyspace_id)
    return verdict is not None and verdict.valid


async def _accepts_once_it_asked(verifier: Verifier, first: str, target: Target) -> bool:
    kind = TAKE_AWAYS[first]
    if kind.view:
        return await lets_in(Sidecar(verifier), kind.view, target)
    return (await verifier.verify(target.secret, kind.use(target), keyspace_id=target.keyspace_id)).valid


# nats-py lets go of a connection that a stopped server accepted and never greeted, or whose opening is
# broken off, without closing it.
lets_go_of_connections = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@asynccontextmanager
async def two_ledgers() -> AsyncGenerator[tuple[Cluster, list[Caller]]]:
    """One that owns the partition and one that forwards, and somebody who speaks to each."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data")) as servers:
        settings = SETTINGS | {
            "KEYLEDGER_EDGE_NATS_URL": servers.nats.edge_url,
            "KEYLEDGER_EDGE_NATS_ISSUER": servers.nats.issuer_seed,
        }
        cluster = Cluster(folder, servers, 2, settings)
        try:
            await cluster.start()
            patience = aiohttp.ClientTimeout(total=30)
            async with (
                aiohttp.ClientSession(cluster.addresses[0], timeout=patience) as one,
                aiohttp.ClientSession(cluster.addresses[1], timeout=patience) as other,
            ):
                yield cluster, [Caller(session, cluster.root_key) for session in (one, other)]
            gc.collect()  # here and not in another test
            await asyncio.sleep(0.1)  # connections are closed with the next rounds of the loop
        finally:
            for program in (*cluster.ledgers, cluster.worker):
                if program.alive:
                    program.kill()


def test_every_kind_is_once_first_and_once_second() -> None:
    assert {first for first, _ in ONCE_EACH} == set(FIRSTS)
    assert {second for _, second in ONCE_EACH} == set(SECONDS)


@lets_go_of_connections
@pytest.mark.slow
async def test_no_edge_accepts_after_the_second_answer_of_either_ledger() -> None:
    wrong: list[str] = []
    async with two_ledgers() as (cluster, callers):
        for second, serve_stale_ms in ((callers[0], 0), (callers[1], STALE_MS)):
            wrong += await Play(cluster, callers[0], second, serve_stale_ms).run(ONCE_EACH)

    assert wrong == []


@lets_go_of_connections
@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_every_pair_through_either_ledger() -> None:
    wrong: list[str] = []
    count = 0
    async with two_ledgers() as (cluster, callers):
        for shift in range(len(SECONDS)):
            pairs = [(first, SECONDS[(number + shift) % len(SECONDS)]) for number, first in enumerate(FIRSTS)]
            pairs = [pair for pair in pairs if pair not in IMPOSSIBLE]
            second, serve_stale_ms = callers[shift % 2], STALE_MS * (shift // 2 % 2)
            wrong += await Play(cluster, callers[0], second, serve_stale_ms).run(pairs)
            count += len(pairs)
    print(f"{count} pairs, {len(wrong)} wrong")

    assert wrong == []
