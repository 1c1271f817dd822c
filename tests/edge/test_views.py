"""What an edge knows of its keyspaces is trusted like facts: a change that it receives makes it void."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from keyledger_edge import (
    AcceptedFormat,
    Change,
    FillAnswer,
    KeyledgerMiddleware,
    KeyspacesAnswer,
    KeyspaceView,
    LedgerUnreachableError,
    RateLimiter,
    SecretFormat,
    SecretShape,
    Sidecar,
    UnknownKeyspaceError,
    Verifier,
    VerifyAnswer,
    VerifyRequest,
    fingerprint,
)
from keyledger_edge._views import KeyspaceViews, ViewsAsOf
from tests.edge.asgi import call
from tests.edge.test_leased_cache import LINEAGE, Edge, facts_at

OWN = SecretShape(prefix="kl_", format=SecretFormat(checksum="crc32"))
OLD = AcceptedFormat(prefix="old_", min_length=30, max_length=30)
HEADER = "header:Authorization:Bearer"
WIDE = KeyspaceView(
    keyspace_id="ks_1",
    shape=SecretShape(prefix="kl_", format=OWN.format, accepted=(OLD,)),
    credential_locations=(HEADER, "query:key"),
)
NARROW = replace(WIDE, shape=OWN)
OTHER = KeyspaceView(keyspace_id="ks_2", shape=SecretShape(prefix="o_", format=SecretFormat()))
SECRET = "old_" + "x" * 30
CHANGED = Change(11, "keyspace", "ks_1", ())


class World:
    """A leased edge, and a ledger that answers the views and facts that a test wants."""

    def __init__(self, *keyspaces: KeyspaceView) -> None:
        self.edge = Edge().leased()
        self.keyspaces = list(keyspaces or (WIDE,))
        self.head = 10
        self.asked = 0
        self.verified: list[str] = []
        self.reachable = True
        self.tells = asyncio.Event()
        self.tells.set()
        self.views = KeyspaceViews(self.edge.cache, self.tell)
        cache = self.edge.cache
        self.verifier = Verifier(
            cache,
            self.views.known,
            limiter=RateLimiter(lambda: 0.0),
            ledger=self,
            memory=cache,
            views=self.views,
        )
        self.told()

    def told(self, as_of: int = 10, *, epoch: int = 0, lineage: bytes = LINEAGE, partition: int = 0) -> None:
        told = ViewsAsOf(partition, epoch, lineage, as_of)
        self.views.told(self.views.begin(), self.keyspaces, told)

    async def tell(self) -> KeyspacesAnswer:
        self.asked += 1
        answer = KeyspacesAnswer(
            keyspaces=list(self.keyspaces), as_of=self.head, partition=0, epoch=0, lineage=LINEAGE
        )
        await self.tells.wait()
        if not self.reachable:
            raise LedgerUnreachableError
        return answer

    async def fill(self, digest: bytes, keyspace_id: str) -> FillAnswer:
        known = digest == fingerprint(SECRET)
        facts = replace(facts_at(self.head), keyspace_id=keyspace_id) if known else None
        return FillAnswer(facts=facts, as_of=self.head, partition=0, epoch=0, utc=0, lineage=LINEAGE)

    async def verify(self, request: VerifyRequest) -> VerifyAnswer:
        self.verified.append(request.secret)
        return VerifyAnswer(valid=True, code="valid")

    def code(self, secret: str = SECRET, keyspace_id: str | None = None) -> str | None:
        verdict = self.verifier.verify_cached(secret, keyspace_id=keyspace_id)
        return verdict.code if verdict else None

    async def said(self, **more: Any) -> str:
        return (await self.verifier.verify(SECRET, **more)).code

    async def known(self) -> None:
        assert await self.said() == "valid"
        assert [self.code(), self.code()] == ["valid", "valid"]

    def narrow(self, view: KeyspaceView = NARROW) -> None:
        """The ledger commits the change, and the edge receives it."""
        self.keyspaces, self.head = [view, *self.keyspaces[1:]], 11
        self.edge.hear(10, 11, CHANGED)


@pytest.fixture
async def world() -> World:
    world = World()
    await world.known()
    return world


async def test_a_keyspace_that_changed_is_asked_for_before_anything_is_judged_by_it(world: World) -> None:
    world.narrow()

    assert (world.code(), world.code("nonsense")) == (None, None)
    assert await world.said() == "malformed"
    assert (world.asked, world.code()) == (1, "malformed")


async def test_nothing_is_accepted_while_the_ledger_tells_facts_and_no_keyspaces(world: World) -> None:
    world.reachable = False
    world.narrow()

    assert [await world.said(), await world.said(), world.code()] == [*["ledger_unreachable"] * 2, None]


async def test_when_it_acknowledges_it_judges_by_the_old_keyspace_no_more(world: World) -> None:
    world.narrow()

    assert world.edge.answer is not None
    assert world.code("nonsense") is None


async def test_an_answer_from_before_the_change_that_comes_after_it_is_not_judged_by(world: World) -> None:
    world.told(10)
    assert world.code() == "valid"
    world.narrow()

    world.keyspaces = [WIDE]
    world.told(10)

    assert world.code("nonsense") is None


async def test_an_answer_that_was_under_way_when_the_use_came_is_not_enough(world: World) -> None:
    world.tells.clear()
    learning = asyncio.create_task(world.views.learn())
    while not world.asked:
        await asyncio.sleep(0)
    world.narrow()
    use = asyncio.create_task(world.verifier.verify(SECRET))
    await asyncio.sleep(0)

    world.tells.set()

    assert await learning
    assert (await use).code == "malformed"
    assert world.asked == 2


async def test_an_answer_to_an_earlier_question_does_not_replace_that_to_a_later_one(world: World) -> None:
    earlier = world.views.begin()
    world.keyspaces = [NARROW]
    world.told(12)

    world.views.told(earlier, [WIDE], ViewsAsOf(0, 0, LINEAGE, 12))

    assert world.views.known == {"ks_1": NARROW}


@pytest.mark.parametrize(
    "told", [{"epoch": 1}, {"lineage": b"lineage2"}, {"partition": 1}, {"as_of": 9}], ids=str
)
async def test_what_was_told_of_another_history_or_before_what_is_known_is_not_judged_by(
    world: World, told: Any
) -> None:
    world.told(**told)

    assert world.code("nonsense") is None


async def test_whoever_forgets_all_is_told_anew(world: World) -> None:
    world.edge.leased(20, reset=True)

    assert world.code() is None
    world.head = 20
    assert await world.said() == "valid"
    assert world.asked == 1


async def test_another_ledger_process_tells_anew(world: World) -> None:
    assert world.code() == "valid"

    world.edge.leased(11, lineage=b"lineage2")

    assert world.code() is None


async def test_a_log_that_jumped_makes_every_keyspace_void(world: World) -> None:
    assert not world.edge.grant(world.edge.ask(), 9)
    assert world.code("nonsense") is None

    world.edge.leased(20, reset=True)

    assert world.code("nonsense") is None


async def test_without_a_lease_every_use_asks_since_nothing_is_heard(world: World) -> None:
    world.edge.clock.ns = world.edge.cache.lease.ends
    assert await world.said() == "valid"

    world.keyspaces, world.head = [NARROW], 11

    assert await world.said() == "malformed"
    assert world.asked == 2


async def test_a_change_of_one_keyspace_leaves_the_others_alone() -> None:
    world = World(WIDE, OTHER)
    secret = OTHER.shape.generate()
    assert world.code(secret, "ks_2") is None
    await world.verifier.ask(secret, keyspace_id="ks_2")
    assert world.code(secret, "ks_2") == "not_found"

    world.edge.hear(10, 11, CHANGED)

    assert world.code("nonsense", "ks_2") == "malformed"
    assert world.code("nonsense", "ks_1") is None


async def test_a_keyspace_that_is_new_is_asked_for(world: World) -> None:
    with pytest.raises(UnknownKeyspaceError):
        world.code(keyspace_id="ks_2")
    world.keyspaces, world.head = [WIDE, OTHER], 11
    world.edge.hear(10, 11, Change(11, "keyspace", "ks_2", ()))

    assert world.code("nonsense", "ks_2") is None
    assert await world.said(keyspace_id="ks_2") == "malformed"
    assert world.code(OTHER.shape.generate(), "ks_2") is None
    with pytest.raises(UnknownKeyspaceError):
        await world.said(keyspace_id="ks_3")


async def test_a_use_with_a_cost_waits_for_the_keyspace_too(world: World) -> None:
    assert await world.said(cost_micros=1) == "valid"
    world.narrow()

    assert await world.said(cost_micros=1) == "malformed"
    world.reachable = False
    world.edge.hear(11, 12, replace(CHANGED, position=12))
    assert await world.said(cost_micros=1) == "ledger_unreachable"
    assert world.verified == [SECRET]


@pytest.mark.parametrize("leased", [True, False])
async def test_a_sidecar_reads_no_request_by_places_that_may_have_changed(
    world: World, *, leased: bool
) -> None:
    sidecar = Sidecar(world.verifier)
    scope = {
        "type": "http", "method": "GET", "path": "/v1/forward-auth", "query_string": b"",
        "headers": [(b"x-forwarded-uri", b"/?key=" + SECRET.encode())],
    }  # fmt: skip
    headers = {"X-Forwarded-Uri": f"/?key={SECRET}"}
    assert sidecar.at_once(scope, b"") is not None

    if leased:
        world.narrow(replace(WIDE, credential_locations=(HEADER,)))
    else:
        world.keyspaces = [replace(WIDE, credential_locations=(HEADER,))]
        world.edge.clock.ns = world.edge.cache.lease.ends

    assert sidecar.at_once(scope, b"") is None
    assert (await call(sidecar, "/v1/forward-auth", headers=headers)).headers["x-keyledger-code"] == "missing"
    world.reachable = False
    world.edge.hear(11, 12, replace(CHANGED, position=12))
    answer = await call(sidecar, "/v1/forward-auth", headers=headers)
    assert answer.headers["x-keyledger-code"] == "ledger_unreachable"


async def test_the_middleware_reads_no_request_by_places_that_may_have_changed(world: World) -> None:
    async def application(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = KeyledgerMiddleware(application, world.verifier)
    path = f"/?key={SECRET}"
    assert (await call(app, path)).status == 200

    world.narrow(replace(WIDE, credential_locations=(HEADER,)))

    assert (await call(app, path)).status == 401
    world.reachable = False
    world.edge.hear(11, 12, replace(CHANGED, position=12))
    assert (await call(app, path)).status == 503


async def test_many_uses_ask_for_the_keyspaces_once(world: World) -> None:
    world.narrow()

    said = await asyncio.gather(*(world.said() for _ in range(20)))

    assert (set(said), world.asked) == ({"malformed"}, 1)


async def test_a_forked_process_waits_for_no_answer_of_its_parent(world: World) -> None:
    world.tells.clear()
    asking = asyncio.create_task(world.views.learn())
    while not world.asked:
        await asyncio.sleep(0)
    world.views.forget()
    world.tells.set()

    assert await world.views.learn()
    assert await asking
    assert world.asked == 2
