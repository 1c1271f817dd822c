"""A whole ledger in memory behind the management API, and a client that shows a root key."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec
from litestar import Litestar

from domain.projecting import Placed, Row
from infra.memory.log import MemoryStorage
from services.api.answering.problems import TABLE, Problem
from services.api.description.schema import Description
from services.api.resources.edge_membership import EdgeAccess, edge_routes
from services.api.serving.app import ROUTES, build_app, operations_of
from services.ledger.fence import LeaseTerms
from services.ledger.ledger import Ledger, Terms
from tests.api.hot.world import Reply, World

_TABLES = ("keys", "organizations", "projects", "plans", "keyspaces")


class MemoryQueries:
    """Finds every row of the table that is asked, and remembers what it was asked with.

    What filters and orders find is proven against PostgreSQL, in tests/contract and tests/e2e.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.asked: list[tuple[str, Sequence[Any]]] = []

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        self.asked.append((statement, parameters))
        if "id > %s" in statement:
            after, limit = parameters
            return [(one,) for one in sorted(self.ledger.state.organizations) if one > after][:limit]
        for table in _TABLES:
            if f"{{schema}}.{table} WHERE" in statement:
                found = getattr(self.ledger.state, table).values()
                limit = int(statement.rpartition("LIMIT ")[2].rstrip(") "))
                return [(one.id, one.created_at) for one in found][:limit]
        return []


class MemoryEvents:
    """Reads events back from the log in memory."""

    def __init__(self, storage: MemoryStorage, ledger: Ledger) -> None:
        self._storage = storage
        self._decode = ledger.ports.mapper.decode

    def _placed(self) -> list[Placed]:
        return [Placed(one.position, one.version, self._decode(one)) for one in self._storage.events]

    async def at(self, positions: Sequence[int]) -> list[Placed]:
        return [one for one in self._placed() if one.position in set(positions)]

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[Placed]:
        return [
            one
            for one in self._placed()
            if first <= one.position <= last
            and type(one.event).__struct_config__.tag in types
            and organization_id in {None, one.event.organization_id}
        ]

    async def stream(
        self, stream: str, types: Sequence[str] | None, *, after: int, limit: int, newest_first: bool
    ) -> list[Placed]:
        positions = {one.position for one in self._storage.events if one.stream == stream}
        found = [
            one
            for one in self._placed()
            if one.position in positions
            and (types is None or type(one.event).__struct_config__.tag in types)
            and (one.version < after if newest_first else one.version > after)
        ]
        return (found[::-1] if newest_first else found)[:limit]

    async def claimed(self, digests: Sequence[bytes]) -> list[int]:
        return sorted(
            self._storage.claims[digest][0].position for digest in digests if digest in self._storage.claims
        )


class MemoryReader:
    """Reads what the API reads, in memory."""

    def __init__(self, world: World) -> None:
        self._ledger = world.ledger
        self.queries = MemoryQueries(world.ledger)
        self.events = MemoryEvents(world.storage, world.ledger)

    @property
    def position(self) -> int:
        return self._ledger.state.head


class Management(World):
    """A ledger whose management API is asked over ASGI."""

    app: Any
    reader: MemoryReader

    async def ask(
        self, method: str, target: str, body: object = b"", *, as_: str | None = None, **headers: str
    ) -> Reply:
        """A request whose answer must be as the API description says."""
        reply = await super().ask(method, target, body, as_=as_, **headers)
        check_described(method, urlsplit(target).path, reply)
        return reply

    def manage(self, **settings: Any) -> Litestar:
        """The management API, set up as given."""
        self.reader = MemoryReader(self)
        app = build_app(self.ledger, self.reader, more_routes=EDGES, **settings)
        self.app = app
        return app

    async def get(self, target: str, **named: Any) -> Reply:
        return await self.ask("GET", target, **named)

    async def patch(self, target: str, body: object, **named: Any) -> Reply:
        return await self.ask("PATCH", target, body, **named)

    async def delete(self, target: str, **named: Any) -> Reply:
        return await self.ask("DELETE", target, **named)

    async def create(self, **fields: Any) -> dict[str, Any]:
        """A key made over HTTP: `{key, secret, position}`."""
        if "keyspace_id" not in fields:
            fields["keyspace_id"] = (await self.make_keyspace()).id
        if "organization_id" not in fields:
            fields["organization_id"] = (await self.make_organization()).id
        made = await self.post("/v1/keys", {"name": "Checkout", **fields})

        assert made.status == 201, made.body

        answer: dict[str, Any] = made.json
        return answer


EDGES = edge_routes(EdgeAccess(nats_url="nats://nats.test:4222", lease=LeaseTerms()))
EVERY_OPERATION = operations_of((*ROUTES, *EDGES))
DESCRIPTION = Description(EVERY_OPERATION)
_OPERATIONS = [
    (one.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", one.path)), one) for one in EVERY_OPERATION
]


def check_described(method: str, path: str, reply: Reply) -> None:
    """Is the answer one that the description knows, with all fields of its type and no others?"""
    assert "x-request-id" in reply.headers
    if reply.status >= 400 and path != "/readyz":
        problem = msgspec.json.decode(reply.body, type=Problem)
        assert reply.headers["content-type"] == "application/problem+json"
        assert problem.status == reply.status == TABLE[problem.code].status
        assert problem.request_id == reply.headers["x-request-id"]
    # `/v1/keys/revoke` is a path of its own, and also looks like a key's.
    found = [one for asked, pattern, one in _OPERATIONS if asked == method and pattern.fullmatch(path)]
    if not found:
        assert reply.status in {404, 405}
        return
    one = min(found, key=lambda each: each.path.count("{"))
    described = DESCRIPTION.document["paths"][one.path][method.lower()]["responses"]
    assert str(reply.status) in described, f"{reply.status} {reply.body!r}"
    if reply.headers["content-type"] == "application/json" and reply.status < 300:
        kind = dict(one.other_answers).get(reply.status, one.answer)
        msgspec.json.decode(reply.body, type=kind)
        assert_no_more_fields(reply.json, kind)


def assert_no_more_fields(answer: Any, kind: Any) -> None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        assert set(answer) <= {field.encode_name for field in msgspec.structs.fields(kind)}


@asynccontextmanager
async def managed(lease_ms: int = 60_000) -> AsyncGenerator[Management]:
    """A world that owns its partition, with a root key of the platform."""
    world = Management()
    # On a busy machine the lock's confirmation may be late, and few tests are about that.
    world.ledger.terms = Terms(lease=LeaseTerms(lease_ms=lease_ms))
    await world.start()
    try:
        secret = await world.ledger.bootstrap()
        assert secret is not None
        world.root = secret
        # Nobody was the owner before: there are no leases to wait for.
        world.ledger.fences._quiet_until = 0
        world.ledger.fences.advance()
        world.manage()
        yield world
    finally:
        await world.stop()
