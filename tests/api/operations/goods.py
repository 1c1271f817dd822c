"""A ledger with one of everything in it, and for each operation a request that is good there."""

from __future__ import annotations

import copy
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final
from urllib.parse import quote, urlencode

from domain.decisions.access import ROOT_PERMISSIONS
from domain.ids import format_position
from domain.keyspaces import Keyspace
from keyledger_language import fingerprint
from tests.api.operations.document import Described, Place, Schema, is_of, resolved, schema_at
from tests.api.quick.world import Owned, Reply, World, call
from tests.api.world import Management, managed

_numbers = count(1)


@dataclass(frozen=True)
class Request:
    """What is asked."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: object = b""
    """Bytes, or what becomes JSON."""

    def with_header(self, name: str, value: str) -> Request:
        """It has this header, and no other of its name."""
        return replace(self, headers=(*self.without_header(name).headers, (name, value)))

    def without_header(self, name: str) -> Request:
        return replace(self, headers=tuple(one for one in self.headers if one[0].lower() != name.lower()))

    def with_body(self, body: object) -> Request:
        return replace(self, body=body)

    @property
    def target(self) -> str:
        asked = urlencode(self.query, quote_via=quote, errors="surrogatepass")
        return f"{self.path}?{asked}" if asked else self.path


@dataclass
class Things:
    """The ids of one of everything."""

    ids: dict[str, str]
    """By the names that parameters and fields have."""
    foreign: dict[str, str] = field(default_factory=dict)
    """Those of another organization, which a root key that is bound to the first must not learn of."""


UNKNOWN: Final = {
    "organization_id": "org_01JD0000000000000000000000",
    "project_id": "prj_01JD0000000000000000000000",
    "key_id": "key_01JD0000000000000000000000",
    "charge_id": "chg_01JD0000000000000000000000",
    "reservation_id": "rsv_01JD0000000000000000000000",
    "keyspace_id": "ks_01JD0000000000000000000000",
    "plan_id": "plan_01JD0000000000000000000000",
    "request_id": "never-asked",
    "position": "7-1",
}
"""Well formed, and of nothing; a parameter of a new route is found here, and in `_things`."""


class Stocked:
    """One of everything in a ledger, those who may ask it, and what they ask."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.secret = self.other_secret = self.prefix = ""
        self.things = Things({})
        self.bound = self.powerless = self.proxy = ""

    # -- good requests

    def good(self, one: Described) -> Request:
        """What the operation is there for."""
        path = one.path
        for name in one.parameters("path"):
            value = quote(self.id_for(one, name), safe="/" if one.declared.whole else "")
            path = path.replace(f"{{{name}}}", value)
        query = tuple(
            (name, str(self.value_of(about["schema"], name)))
            for name, about in one.parameters("query").items()
            if about.get("required")
        )
        body = self.body_of(one) if one.has_body else b""
        return Request(one.method, path, query, self.headers_of(one), body)

    def id_for(self, one: Described, name: str) -> str:
        """What stands in the operation's path; for some only one that is unused is good."""
        ids = self.things.ids
        return ids.get(f"{one.name}.{name}") or ids[name]

    def headers_of(self, one: Described) -> tuple[tuple[str, str], ...]:
        if one.permissions:
            return (("Authorization", f"Bearer {self.root}"),)
        if one.declared.proxied:
            return (("X-Keyledger-Proxy-Key", self.proxy), ("Authorization", f"Bearer {self.secret}"))
        return (("Authorization", f"Bearer {self.secret}"),) if one.shows_a_secret else ()

    def body_of(self, one: Described) -> Any:
        """The document's own example, with ids that exist; or what its schema asks for."""
        if one.example is not None:
            return self._filled(one.example)
        return self.value_of(one.bodies[0])

    def item_of(self, one: Described) -> Any:
        """One of many."""
        if one.takes_one:
            return self.body_of(one)
        return self.body_of(one)["items"][0]

    def _filled(self, example: Any, name: str = "") -> Any:
        """The example with ids that exist, and texts that nobody has used."""
        if isinstance(example, dict):
            return {each: self._filled(inner, each) for each, inner in example.items()}
        if isinstance(example, list):
            return [self._filled(inner, name.removesuffix("s")) for inner in example]
        return self._named(name) or copy.copy(example)

    def _named(self, name: str) -> str | None:
        number = next(_numbers)
        new = {
            "request_id": f"request-{number}",
            "reference": f"reference-{number}",
            "prefix": f"p{number}_live_",
            "sha256": fingerprint(f"unheard of {number}").hex(),
            "hint": f"{self.prefix}...x7Qd",
            "incarnation": f"{number:032x}",
            "secret": self.secret,
            "fingerprint": fingerprint(self.secret).hex(),
        }
        return new.get(name) or self.things.ids.get(name)

    def value_of(self, schema: Schema, name: str = "") -> Any:
        """Something good; of an object, with the fields that it needs."""
        schema = resolved(schema)
        if "anyOf" in schema:
            schema = resolved(schema["anyOf"][0])
        if "properties" in schema:
            needed = schema.get("required", ())
            return {each: self.value_of(schema["properties"][each], each) for each in needed}
        if is_of(schema, "array"):
            return [self.value_of(schema["items"], name.removesuffix("s"))]
        if is_of(schema, "object"):
            return {}
        if is_of(schema, "integer"):
            return schema.get("minimum", 1)
        if is_of(schema, "boolean"):
            return True
        given = schema.get("examples") or schema.get("enum")
        return self._named(name) or (given[0] if given else "x" * schema.get("minLength", 1))

    def with_value(self, schema: Schema, body: Any, place: Place, value: object) -> Any:
        """The body with this value in it; what must stand around it is made if it is not there."""
        step, *rest = place
        body = copy.copy(body)
        inner = schema_at(schema, (step,))
        if isinstance(step, int):
            body = body or [None]
            body[step] = self._within(inner, body[step], tuple(rest), value)
        else:
            body[step] = self._within(inner, body.get(step), tuple(rest), value)
        return body

    def _within(self, schema: Schema, had: Any, place: Place, value: object) -> Any:
        if not place:
            return value
        fits = isinstance(had, list if isinstance(place[0], int) else dict)
        made = [] if isinstance(place[0], int) else self._object_of(schema)
        return self.with_value(schema, had if fits else made, place, value)

    def _object_of(self, schema: Schema) -> Any:
        shapes = resolved(schema).get("anyOf", (schema,))
        return self.value_of(next(one for one in shapes if "properties" in resolved(one)))


class InMemory(Stocked):
    """In a ledger in memory, which is asked over ASGI."""

    def __init__(self, world: World) -> None:
        super().__init__(world.root)
        self.world = world

    async def stock(self) -> None:
        """Make one of everything, for two organizations."""
        world = self.world
        keyspace = await world.make_keyspace(prefix=f"k{next(_numbers)}_live_")
        unused = await world.make_keyspace(prefix=f"k{next(_numbers)}_live_")
        plan = await world.make_plan()
        organization, owned, mine = await self._organization(keyspace, "mine")
        _, _, theirs = await self._organization(keyspace, "theirs")
        shared = {"keyspace_id": keyspace.id, "plan_id": plan.id, "path": "v1/chat"}
        shared["archiveKeyspace.keyspace_id"] = unused.id
        shared["position"] = format_position(world.ledger.position_prefix, world.ledger.books.head)
        self.secret, self.other_secret = owned.secret, keyspace.shape.generate()
        self.prefix = keyspace.prefix
        self.things = Things({**shared, **mine}, theirs)
        self.bound = await world.make_root(*ROOT_PERMISSIONS, organization_id=organization)
        self.powerless = await world.make_root("webhooks:write")
        self.proxy = await world.make_root("verify", bound_keyspace_id=keyspace.id)

    async def another(self) -> InMemory:
        """The same ledger, with one more of everything."""
        made = InMemory(self.world)
        await made.stock()
        return made

    async def _organization(self, keyspace: Keyspace, name: str) -> tuple[str, Owned, dict[str, str]]:
        world = self.world
        organization = await world.make_organization(credit=10**12)
        project = await world.make_project(organization)
        owned = await world.make_key(keyspace, organization)
        use = {"key_id": owned.id, "amount_micros": 1_000}
        charged = await world.post("/v1/charges", {**use, "request_id": f"charge of {name}"})
        held = await world.post("/v1/reservations", {**use, "request_id": f"reservation of {name}"})
        assert (charged.status, held.status) == (201, 201), (charged.body, held.body)
        return organization.id, owned, {
            "organization_id": organization.id,
            "project_id": project.id,
            "key_id": owned.id,
            "charge_id": charged.json["charge"]["id"],
            "reservation_id": held.json["reservation"]["id"],
            "request_id": f"charge of {name}",
        }  # fmt: skip

    # -- asking

    async def ask(self, request: Request, *, at_once: bool = False) -> Reply:
        return await call(
            self.world.app, request.method, request.target,
            headers=list(request.headers), body=request.body, at_once=at_once,
        )  # fmt: skip


@asynccontextmanager
async def stocked() -> AsyncGenerator[InMemory]:
    """A ledger in memory with one of everything in it."""
    world: Management
    async with managed() as world:
        made = InMemory(world)
        await made.stock()
        yield made
