"""A whole ledger in memory behind the quick routes, and a client that speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable, Container, Mapping, Sequence
from contextlib import asynccontextmanager
from struct import pack
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

from domain import commands as c
from domain.desk import SYSTEM_ASKING
from domain.ids import place_of
from domain.keys import Key
from domain.keyspaces import ROOT_KEYSPACE_ID, ROOT_PREFIX, Keyspace
from domain.organizations import Organization, Plan, Project
from domain.ports import Clock, FenceClock
from domain.projecting import FoundEvent, Row
from infra.memory.clock import FixedClock
from infra.memory.log import MemoryLog, MemoryStorage
from infra.memory.state_rows import MemoryStateRows
from infra.postgres.data_keys import DataKeys
from infra.postgres.mapper import EventMapper
from keyledger_edge import boottime_ns
from keyledger_language import SecretFormat, SecretShape, fingerprint, hint
from keyledger_language.events import Event, LedgerEvent, Quota, UsageRefunded
from keyledger_reading.mapper import tag_of
from projections.requests import BLOCK
from services.api.resources.edge_membership import EdgeAccess, edge_routes
from services.api.serving.app import build_app
from services.api.serving.at_once import AnswersAtOnce, ReplyLater
from services.api.serving.forwarding import Forwarder
from services.api.serving.front import Front
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ledger import Ledger
from services.ledger.ports import Ports, Terms
from tests.memory_lists import MemoryLists

ROOT_SHAPE = SecretShape(
    prefix=ROOT_PREFIX, format=SecretFormat(alphabet="base62", length=30, checksum="crc32")
)


class RunningLeases:
    """Leases run on the machine's time; the time of day is what the test says."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def boottime_ns(self) -> int:
        return boottime_ns()

    def now(self) -> int:
        return self._clock.now()


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        code: str = self.json["code"]
        return code


class Owned(NamedTuple):
    """A key and the secret that only its owner has."""

    key: Key
    secret: str

    @property
    def id(self) -> str:
        return self.key.id


async def call(
    app: Any,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | list[tuple[str, str]] = (),  # type: ignore[assignment]  # an empty tuple is empty for both
    body: bytes | object = b"",
    client: tuple[str, int] | None = ("192.0.2.7", 40_000),
    chunks: int = 1,
    at_once: bool = False,
) -> Reply:
    """One request over ASGI; `at_once`: by the HTTP server's short cut, where that takes it."""
    parts = urlsplit(target)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    pairs = list(headers.items()) if isinstance(headers, Mapping) else list(headers)
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": parts.path,
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
        "client": client,
        "server": ("127.0.0.1", 8700),
    }
    if at_once and app.hears(method.encode(), parts.path.encode()):
        reply = await _at_once(app, scope, data)
        if reply is not None:
            return reply
    size = max(1, -(-len(data) // chunks))
    sent = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    messages = [
        {"type": "http.request", "body": part, "more_body": index + 1 < len(sent)}
        for index, part in enumerate(sent)
    ]
    started: dict[str, Any] = {}
    received: list[bytes] = []
    answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert not started, "an answer starts once"
            started.update(message)
        else:
            received.append(message.get("body", b""))
            if not message.get("more_body"):
                answered.set()

    await app(scope, receive, send)
    told = {name.decode(): value.decode("latin-1") for name, value in started["headers"]}
    return Reply(started["status"], told, b"".join(received))


async def _at_once(app: AnswersAtOnce, scope: dict[str, Any], body: bytes) -> Reply | None:
    told = app.at_once(scope, body)
    assert not isinstance(told, asyncio.Future)
    if isinstance(told, ReplyLater):
        await asyncio.wait({told.future})
        told = told.reply(told.future)
    if told is None:
        return None
    return Reply(
        told.status, {name.decode(): text.decode("latin-1") for name, text in told.headers}, told.body
    )


class MemoryQueries:
    """Projections as of each question; usage is empty.

    Lists are filtered and sorted as in production. That of requests is found by its blocks: here all of them.
    """

    def __init__(self, ledger: Ledger, events: MemoryEvents) -> None:
        self.ledger = ledger
        self._events = events
        self._lists = MemoryLists()
        self._followed = 0

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        if self._lists.has(statement):
            new = self._events.placed(range(self._followed + 1, self.ledger.books.head + 1))
            self._lists.follow(new)
            self._followed += len(new)
            return self._lists.ask(statement, parameters)
        if "{schema}.settlements WHERE" in statement:
            return self._refunds(*parameters)
        if "{schema}.request_blocks WHERE" in statement:
            blocks = range(self.ledger.books.head // BLOCK + 1)
            return [(0, pack(f">{len(blocks)}i", *blocks))]
        return []

    def _refunds(self, subjects: Sequence[int]) -> list[Row]:
        found = [(one.position, one.event) for one in self._events.placed(types=[tag_of(UsageRefunded)])]
        return [
            (place_of(event.charge_id)[1], position)
            for position, event in found
            if isinstance(event, UsageRefunded) and place_of(event.charge_id)[1] in subjects
        ]


class MemoryEvents:
    """Reads events back from the log in memory."""

    def __init__(self, storage: MemoryStorage, ledger: Ledger) -> None:
        self._storage = storage
        self._decode = ledger._ports.mapper.decode

    def placed(
        self,
        positions: Container[int] | None = None,
        types: Sequence[str] | None = None,
        stream: str | None = None,
    ) -> list[FoundEvent]:
        """These events; what is not asked for is not decoded, which takes longer than all else."""
        return [
            FoundEvent(one.position, one.version, self._decode(one))
            for one in self._storage.events
            if (positions is None or one.position in positions)
            and (types is None or one.type in types)
            and stream in {None, one.stream}
        ]

    async def at(self, positions: Sequence[int]) -> list[FoundEvent]:
        return self.placed(set(positions))

    async def between(
        self, first: int, last: int, types: Sequence[str], organization_id: str | None = None
    ) -> list[FoundEvent]:
        found = self.placed(range(first, last + 1), types)
        return [one for one in found if organization_id in {None, one.event.organization_id}]

    async def stream(
        self, stream: str, types: Sequence[str] | None, *, after: int, limit: int, newest_first: bool
    ) -> list[FoundEvent]:
        found = [
            one
            for one in self.placed(types=types, stream=stream)
            if (one.version < after if newest_first else one.version > after)
        ]
        return (found[::-1] if newest_first else found)[:limit]

    async def claimed(self, digests: Sequence[bytes]) -> list[int]:
        return sorted(
            self._storage.claims[digest][0].position for digest in digests if digest in self._storage.claims
        )


class MemoryReader:
    """Reads what the API reads, in memory."""

    def __init__(self, storage: MemoryStorage, ledger: Ledger) -> None:
        self._ledger = ledger
        self.events = MemoryEvents(storage, ledger)
        self.queries = MemoryQueries(ledger, self.events)

    @property
    def position(self) -> int:
        return self._ledger.books.head


async def nothing_else(scope: Any, _receive: Any, send: Any) -> None:
    """Stands for another process."""
    body = f"router: {scope['method']} {scope['path']}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-router", b"yes")]})
    await send({"type": "http.response.body", "body": body})


EDGES = edge_routes(EdgeAccess(nats_url="nats://nats.test:4222", lease=LeaseTerms()))


class World:
    """One ledger process: everything is done as `system`, asked about over HTTP."""

    def __init__(
        self,
        storage: MemoryStorage | None = None,
        clock: FenceClock | None = None,
        *,
        terms: Terms | None = None,
        publish_change: Callable[[bytes], None] = lambda _data: None,
    ) -> None:
        self.clock = FixedClock()
        now = clock or self.clock
        self.storage = storage or MemoryStorage()
        self.log = MemoryLog(self.storage, clock=now)
        mapper: EventMapper[Event] = EventMapper(get_args(LedgerEvent), data_keys=DataKeys())
        self.address = "http://owner.test"

        async def announce(tenure: str) -> None:
            await self.log.announce(self.address, tenure)

        async def projected(_position: int, _seconds: float) -> bool:
            return True

        self.ledger = Ledger(
            Ports(
                log=self.log,
                rows=MemoryStateRows(),
                mapper=mapper,
                clock=now,
                fence_clock=clock or RunningLeases(now),
                learn_data_keys=mapper.data_keys.learn,
                announce=announce,
                publish_change=publish_change,
                projected=projected,
            ),
            terms,
        )
        self.serve()
        self.root = ""
        self.at_once = False
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    def serve(self, *, forwarder: Forwarder | None = None, **settings: Any) -> Front:
        """The API anew, set up otherwise."""
        self.reader = MemoryReader(self.storage, self.ledger)
        self.app = build_app(self.ledger, self.reader, forwarder=forwarder, more_routes=EDGES, **settings)
        return self.app

    async def start(self) -> None:
        self._running = asyncio.create_task(self.ledger.run(self._stop))
        while not (self.ledger.owner or self.ledger.stands_by):
            await asyncio.sleep(0.001)

    async def stop(self) -> None:
        self._stop.set()
        assert self._running is not None
        await self._running

    async def do(self, command: c.Command) -> Any:
        return (await self.ledger.execute(command, SYSTEM_ASKING)).result

    # -- what there is

    async def make_root(self, *permissions: str, **fields: Any) -> str:
        """A root key's secret."""
        secret = ROOT_SHAPE.generate()
        await self.do(
            c.CreateKey(
                keyspace_id=ROOT_KEYSPACE_ID,
                organization_id=fields.pop("organization_id", None),
                name=f"root {os.urandom(3).hex()}",
                fingerprint=fingerprint(secret),
                hint=hint(secret, ROOT_PREFIX),
                scopes=c.NewScopes(permissions=permissions) if permissions else c.NewScopes(),
                **fields,
            )
        )
        return secret

    async def make_keyspace(self, preset: str = "default", **fields: Any) -> Keyspace:
        made: Keyspace = await self.do(c.DefineKeyspace(name=preset, preset=preset, **fields))
        return made

    async def make_organization(self, *, credit: int = 0, quotas: tuple[Quota, ...] = ()) -> Organization:
        made: Organization = await self.do(c.OpenOrganization(name="Acme", quotas=quotas))
        if credit:
            await self.do(
                c.DepositCredits(organization_id=made.id, amount_micros=credit, reference=os.urandom(4).hex())
            )
        return made

    async def make_project(self, organization: Organization, **fields: Any) -> Project:
        made: Project = await self.do(c.OpenProject(organization_id=organization.id, name="Web", **fields))
        return made

    async def make_plan(self, **fields: Any) -> Plan:
        made: Plan = await self.do(c.DefinePlan(name="Pro", models=fields.pop("models", "*"), **fields))
        return made

    async def make_key(self, keyspace: Keyspace, organization: Organization, **fields: Any) -> Owned:
        secret = keyspace.shape.generate()
        key = await self.do(
            c.CreateKey(
                keyspace_id=keyspace.id,
                organization_id=organization.id,
                name="Checkout",
                fingerprint=fingerprint(secret),
                hint=hint(secret, keyspace.prefix),
                **fields,
            )
        )
        return Owned(key, secret)

    # -- asking

    async def ask(
        self, method: str, target: str, body: object = b"", *, as_: str | None = None, **headers: str
    ) -> Reply:
        """A request as a root key (the bootstrap one, if none is named)."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        named.setdefault("authorization", f"Bearer {as_ or self.root}")
        return await call(self.app, method, target, headers=named, body=body, at_once=self.at_once)

    async def post(self, target: str, body: object, *, as_: str | None = None, **headers: str) -> Reply:
        return await self.ask("POST", target, body, as_=as_, **headers)

    def balance(self, organization: Organization) -> int:
        return self.ledger.books.wallets[organization.id].balance


@asynccontextmanager
async def running_world() -> AsyncGenerator[World]:
    """A world that owns its partition, with a root key of the platform."""
    # On a busy machine the confirmation of the lock may be late.
    world = World(terms=Terms(lease=LeaseTerms(lease_ms=10_000)))
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
