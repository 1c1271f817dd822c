"""A whole ledger in memory behind the management API, and a client that shows a root key."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import msgspec

from services.api.answering.problems import TABLE, Problem
from services.api.description.schema import Description
from services.api.serving.app import ROUTES
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ports import Terms
from tests.api.quick.world import EDGES, Reply, World


class Management(World):
    """A ledger whose management API is asked over ASGI."""

    async def ask(
        self, method: str, target: str, body: object = b"", *, as_: str | None = None, **headers: str
    ) -> Reply:
        """A request whose answer must be as the API description says."""
        reply = await super().ask(method, target, body, as_=as_, **headers)
        check_described(method, urlsplit(target).path, reply)
        return reply

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


EVERY_OPERATION = (*ROUTES, *EDGES)
DESCRIPTION = Description(EVERY_OPERATION)
_OPERATIONS = [
    (one.method, re.compile(re.sub(r"\{\w+\}", "[^/]+", one.path)), one) for one in EVERY_OPERATION
]


OF_HTTP_ITSELF = {
    "cache-control", "connection", "content-length", "content-security-policy", "content-type", "date",
    "x-accel-buffering", "x-content-type-options",
}  # fmt: skip
"""Headers that mean here what they mean everywhere."""
BETWEEN_PROCESSES = {"x-keyledger-clock", "x-keyledger-not-owner", "x-keyledger-refused-lately"}
"""What processes of one ledger tell each other; clients need not know of it."""


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
    told = described[str(reply.status)]
    more = {name for name in reply.headers if name not in OF_HTTP_ITSELF | BETWEEN_PROCESSES}
    assert more <= {name.lower() for name in told["headers"]}, f"{one.name} {reply.status}"
    if reply.status >= 400 and path != "/readyz":
        problem = msgspec.json.decode(reply.body, type=Problem)
        assert f"`{problem.code}`:" in told["description"], f"{one.name} {reply.status} {problem.code}"
    if reply.headers["content-type"] == "application/json" and reply.status < 300:
        kind = dict(one.other_answers).get(reply.status, one.answer)
        msgspec.json.decode(reply.body, type=kind)
        assert_no_more_fields(reply.json, kind)


def assert_no_more_fields(answer: Any, kind: Any) -> None:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        assert set(answer) <= set(kind.__struct_encode_fields__)


@asynccontextmanager
async def managed(lease_ms: int = 60_000) -> AsyncGenerator[Management]:
    """A world that owns its partition, with a root key of the platform."""
    # On a busy machine the lock's confirmation may be late, and few tests are about that.
    world = Management(terms=Terms(lease=LeaseTerms(lease_ms=lease_ms)))
    await world.start()
    try:
        secret = await world.ledger.bootstrap()
        assert secret is not None
        world.root = secret
        # Nobody was the owner before: there are no leases to wait for.
        world.ledger.fences._quiet_until = 0
        world.ledger.fences.advance()
        yield world
    finally:
        await world.stop()
