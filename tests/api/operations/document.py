"""The running application's own OpenAPI document, as the tests of every operation read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, cast

from services.api.description.schema import Description
from services.api.operations import Operation
from tests.api.quick.world import World

_DESCRIPTION: Final = cast(Description, World().app.api.description)
DOCUMENT: Final[dict[str, Any]] = json.loads(_DESCRIPTION.json)
"""What `GET /schema/openapi.json` answers."""
_DECLARED: Final = {(one.method, one.path): one for one in _DESCRIPTION.operations}
_METHODS: Final = ("get", "post", "put", "patch", "delete", "head", "options", "trace")

Schema = dict[str, Any]
Place = tuple[str | int, ...]
"""Where something stands in a body, such as `("quotas", 0, "window")`."""


@dataclass(frozen=True)
class Described:
    """An operation, as the document tells of it."""

    method: str
    path: str
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        name: str = self.about["operationId"]
        return name

    @cached_property
    def declared(self) -> Operation:
        """Its declaration, which says what no document does: how it is answered."""
        return _DECLARED[self.method, self.path]

    @property
    def permissions(self) -> tuple[str, ...]:
        """Any of them opens it; none: it asks for no root key."""
        return tuple(self.about.get("x-permissions", ()))

    @property
    def shows_a_secret(self) -> bool:
        """Is its caller an ordinary key's holder, who shows its secret?"""
        return "missing" in self.codes(401)

    def parameters(self, place: str) -> dict[str, dict[str, Any]]:
        """Those of the path, the query, or the headers, by their names."""
        return {one["name"]: one for one in self.about["parameters"] if one["in"] == place}

    @property
    def has_body(self) -> bool:
        """Is what is sent as its body read?"""
        return self.declared.has_body

    @property
    def needs_a_body(self) -> bool:
        return bool(self.about.get("requestBody", {}).get("required"))

    @cached_property
    def bodies(self) -> tuple[Schema, ...]:
        """What its body may be; where it takes none, that is an object without fields."""
        if "requestBody" not in self.about:
            return ({"type": "object", "properties": {}, "additionalProperties": False},)
        schema = resolved(self.about["requestBody"]["content"]["application/json"]["schema"])
        return tuple(resolved(one) for one in schema.get("oneOf", (schema,)))

    @cached_property
    def item(self) -> Schema | None:
        """Where it takes many things, each with a result of its own: what each of them is."""
        for one in self.bodies:
            items = one["properties"].get("items")
            if items is not None:
                return resolved(items["items"])
        return None

    @property
    def takes_one(self) -> bool:
        """Can its body be one thing, and not only many?"""
        return "items" not in self.bodies[0]["properties"]

    @property
    def example(self) -> Any:
        return self.about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")

    def codes(self, status: int) -> set[str]:
        """The codes of problems that it may answer with this status."""
        described = self.about["responses"].get(str(status), {})
        return set(re.findall(r"`([a-z0-9_]+)`", described.get("description", "")))


EVERY: Final = tuple(
    Described(method.upper(), path, about)
    for path, methods in DOCUMENT["paths"].items()
    for method, about in methods.items()
    if method in _METHODS
)


def resolved(schema: Schema) -> Schema:
    """What a reference leads to; of what may be null, the rest."""
    while True:
        if "$ref" in schema:
            schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            continue
        alternatives = [one for one in schema.get("anyOf", ()) if one.get("type") != "null"]
        if len(alternatives) != 1:
            return schema
        schema = {**{name: what for name, what in schema.items() if name != "anyOf"}, **alternatives[0]}


def is_of(schema: Schema, kind: str) -> bool:
    """May it be of this JSON type?"""
    schema = resolved(schema)
    if "anyOf" in schema:
        return any(is_of(one, kind) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return kind == "string"
    kinds = schema.get("type", ())
    return kind == kinds or kind in kinds


def is_nullable(schema: Schema) -> bool:
    return any(one.get("type") == "null" for one in schema.get("anyOf", ())) or schema == {}


def places(schema: Schema, kind: str, at: Place = ()) -> Iterator[Place]:
    """Where values of this JSON type may stand in an object, at any depth."""
    for name, field in resolved(schema).get("properties", {}).items():
        yield from _places_in(field, kind, (*at, name))


def _places_in(schema: Schema, kind: str, at: Place) -> Iterator[Place]:
    schema = resolved(schema)
    if is_of(schema, kind):
        yield at
    for one in schema.get("anyOf", (schema,)):
        shape = resolved(one)
        if "properties" in shape:
            yield from places(shape, kind, at)
        if isinstance(shape.get("items"), dict):
            yield from _places_in(shape["items"], kind, (*at, 0))


def schema_at(schema: Schema, place: Place) -> Schema:
    """Of what stands there."""
    for step in place:
        shapes = resolved(schema).get("anyOf", (schema,))
        for shape in map(resolved, shapes):
            inner = shape.get("items") if isinstance(step, int) else shape.get("properties", {}).get(step)
            if isinstance(inner, dict):
                schema = inner
                break
    return schema


def written(place: Place) -> str:
    """As a problem names it: `quotas[0].window`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return text.removeprefix(".")
