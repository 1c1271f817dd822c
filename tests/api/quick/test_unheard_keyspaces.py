"""A process that has not heard of a keyspace yet: it repeats and writes down no secret of it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from domain.ids import new_id
from domain.keyspaces import Keyspace
from services.api.serving.app import build_app
from services.api.serving.forwarding import Forwarder
from tests.api.quick.test_forwarding import KEY, Beside, Directory, breaking, owning, served, world_app
from tests.api.quick.world import Owned, World, call, nothing_else
from tests.api.world import Management, managed

HARMLESS = uuid.uuid4().hex
"""As long as a secret, and none."""


@asynccontextmanager
async def unaware(world: World, address: str | None) -> AsyncGenerator[Beside]:
    """A second process on the world's log that has read nothing of it."""
    other = Beside(world.storage)
    other.root = world.root
    other.directory = Directory(address, lambda: world.ledger.tenure or "0")
    other.forwarder = Forwarder(
        other.directory, other.ledger, own_address="http://other.test", key=lambda: KEY, patience_seconds=0.5
    )
    other.serve(forwarder=other.forwarder)
    try:
        yield other
    finally:
        await other.forwarder.close()


@contextmanager
def unheard(world: World, keyspace: Keyspace) -> Generator[None]:
    """For a while the world does not know of a keyspace, as if another process had made it."""
    known = world.ledger.books.keyspaces.pop(keyspace.id)
    yield
    world.ledger.books.keyspaces[known.id] = known


@pytest.fixture
async def other(world: World) -> AsyncIterator[Beside]:
    owning(world)
    async with served(world_app(world)) as address, unaware(world, address) as other:
        yield other


def verifying(owned: Owned) -> dict[str, Any]:
    return {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}


async def test_a_secret_as_a_trace_id_is_replaced_by_the_owner(other: Beside, owned: Owned) -> None:
    for given in (owned.secret, f"trace-{owned.secret}", f"x{owned.secret}x"):
        reply = await other.post("/v1/verify", verifying(owned), x_request_id=given)

        assert reply.code == "valid"
        assert reply.headers["x-request-id"].startswith("req_")


async def test_a_harmless_trace_id_comes_back_from_the_owner(other: Beside, owned: Owned) -> None:
    reply = await other.post("/v1/verify", verifying(owned), x_request_id=HARMLESS)
    refused = await other.post("/v1/verify", b"{", x_request_id=HARMLESS)

    assert (reply.code, reply.headers["x-request-id"]) == ("valid", HARMLESS)
    assert refused.json["request_id"] == refused.headers["x-request-id"] == HARMLESS


async def test_without_an_owner_a_trace_id_that_may_be_a_secret_is_replaced(
    world: World, owned: Owned
) -> None:
    async with unaware(world, None) as other:
        replies = [
            await other.post("/v1/verify", verifying(owned), x_request_id=given)
            for given in (owned.secret, HARMLESS)
        ]

    for reply in replies:
        assert (reply.status, reply.code) == (503, "dependency_unavailable")
        assert reply.headers["x-request-id"].startswith("req_")
        assert reply.json["request_id"] == reply.headers["x-request-id"]


TRACES = {
    "a number": "trace-7",
    "a UUID": str(uuid.uuid4()),
    "an id": new_id("key", 1, 1),
    "a word": "x" * 21,
}


@pytest.mark.parametrize("given", TRACES.values(), ids=TRACES)
async def test_without_an_owner_a_trace_id_that_is_no_secret_is_kept(
    world: World, owned: Owned, given: str
) -> None:
    async with unaware(world, None) as other:
        reply = await other.post("/v1/verify", verifying(owned), x_request_id=given)

    assert (reply.status, reply.headers["x-request-id"]) == (503, given)


async def test_an_answer_that_was_lost_names_no_secret(world: World, owned: Owned) -> None:
    async with breaking(1) as (_, address), unaware(world, address) as other:
        reply = await other.post("/v1/keys", {"n": 1}, x_request_id=owned.secret)

    assert (reply.status, reply.code) == (503, "outcome_unknown")
    assert owned.secret not in str(reply)


async def test_who_becomes_the_owner_meanwhile_judges_anew(world: World, owned: Owned) -> None:
    async with unaware(world, None) as other:
        other.forwarder._patience = 10.0
        asking = [
            asyncio.create_task(other.post("/v1/verify", verifying(owned), x_request_id=given))
            for given in (owned.secret, HARMLESS)
        ]
        await asyncio.sleep(0.1)
        world.log.cut_off()
        await other.start()
        leaking, harmless = await asyncio.gather(*asking)
        await other.stop()

    assert (leaking.code, harmless.code) == ("valid", "valid")
    assert leaking.headers["x-request-id"].startswith("req_")
    assert harmless.headers["x-request-id"] == HARMLESS


async def test_an_owner_that_slept_trusts_nothing_that_it_knew(world: World, owned: Owned) -> None:
    keyspace: Keyspace = await world.make_keyspace(prefix="acme_live_")
    secret = keyspace.shape.generate()
    with unheard(world, keyspace):
        world.ledger.fences.lost()
        reply = await world.post("/v1/verify", {secret: 1}, x_request_id=secret)
        wrong = await world.ask("PUT", f"/v1/charges/{secret}/refund", {})

    assert secret not in str(reply)
    assert secret not in str(wrong)


async def test_an_owner_that_slept_leaves_management_to_the_one_that_took_over(
    world: World, other: Beside
) -> None:
    world.app.router = nothing_else

    async def stale(_scope: Any, _receive: Any, _send: Any) -> None:
        raise AssertionError("what it knows may be old")

    app = build_app(other.ledger, other.reader, forwarder=other.forwarder)
    app.router = stale
    other.ledger.standing.owner = other.ledger.standing.reachable = True
    assert not other.ledger.confirmed
    headers = {"Authorization": f"Bearer {other.root}"}
    replies = [await call(app, method, "/v1/plans", headers=headers) for method in ("GET", "POST")]

    assert [reply.body for reply in replies] == [b"router: GET /v1/plans", b"router: POST /v1/plans"]


# -- the management API of such a process


@pytest.fixture
async def api() -> AsyncIterator[Management]:
    async with managed() as api:
        yield api


async def test_what_every_process_answers_itself_repeats_and_logs_no_secret(
    api: Management, capsys: pytest.CaptureFixture[str]
) -> None:
    keyspace = await api.make_keyspace(prefix="acme_live_")
    secret = keyspace.shape.generate()
    stranger = Management(api.storage)
    stranger.serve()
    replies = [
        await stranger.get(path, x_request_id=given)
        for path in ("/healthz", f"/healthz/{secret}", f"/schema/{secret}", f"/docs/{secret}")
        for given in (secret, f"x{secret}", "trace-7")
    ]
    said = capsys.readouterr()

    assert all(secret not in str(reply) for reply in replies)
    assert secret not in said.out + said.err
    assert [reply.headers["x-request-id"] for reply in replies[2::3]] == ["trace-7"] * 4


async def test_whoever_is_not_sure_to_own_the_partition_recognises_nobody(api: Management) -> None:
    key = (await api.create())["key"]
    asked = [
        ("GET", f"/v1/keys/{key['id']}"),
        ("GET", "/v1/plans"),
        ("POST", f"/v1/keys/{key['id']}/disable"),
    ]
    sure = [(await api.ask(method, path, {})).status for method, path in asked]
    api.ledger.fences.lost()
    unsure = [await api.ask(method, path, {}) for method, path in asked]

    assert sure == [200, 200, 200]
    assert {(one.status, one.code) for one in unsure} == {(503, "not_owner")}


async def test_without_postgresql_what_is_read_names_no_secret_that_is_new_elsewhere(api: Management) -> None:
    keyspace = await api.make_keyspace(prefix="acme_live_")
    secret, plan = keyspace.shape.generate(), await api.make_plan()
    nobodys = new_id("plan", 1, 1)
    with unheard(api, keyspace):
        api.ledger.standing.owner = api.ledger.standing.reachable = False
        missing = await api.get(f"/v1/plans/{secret}", x_request_id=secret)
        found = await api.get(f"/v1/plans/{plan.id}", x_request_id=secret)
        gone = await api.get(f"/v1/plans/{nobodys}", x_request_id="trace-7")

    assert (missing.status, found.status) == (404, 200)
    assert secret not in str((missing, found))
    # Ids are no secrets: what is asked for in vain is named.
    assert nobodys in gone.json["detail"]
