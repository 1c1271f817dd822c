"""What stands where it must not: ids of somebody else, and secrets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from domain.decisions.access import ROOT_PERMISSIONS
from tests.api.operations.asked import Make, asks, is_at, says
from tests.api.operations.bad_bodies import Carried, Change, among_others, whole
from tests.api.operations.document import Described, Place, Schema, places, written

# -- what belongs to somebody else


def foreign_things(one: Described, owned: Iterable[str]) -> Iterator[tuple[str, str, Callable[[str], Make]]]:
    """Where an id of another organization may stand: how to tell of it, which id, and what puts one there.

    Who holds only what the platform's own root keys may hold, is bound to no organization.
    """
    if one.declared.proxied or not set(one.permissions) & set(ROOT_PERMISSIONS):
        return
    for name in owned:
        if name in one.parameters("path"):
            yield f"{name} in the path", name, partial(is_at, one, name)
        if name in one.parameters("query") and name != "request_id":  # that is the caller's own word
            yield f"{name} in the query", name, partial(asks, name)
    if "requestBody" in one.about and one.takes_one:
        for place in places(one.bodies[0], "string"):
            named = next(step for step in reversed(place) if isinstance(step, str))
            name = _ONE_OF.get(named, named)
            # What a filter finds is asked of PostgreSQL elsewhere: in memory each finds everything.
            found = place[0] == "filter" and name == "project_id"
            if name in owned and name != "request_id" and not found:
                yield f"{written(place)} in the body", name, partial(_put, one, place)


_ONE_OF: Final = {"key_ids": "key_id", "projects": "project_id"}
"""Lists of ids, by the names of what is in them."""


def _put(one: Described, place: Place, value: object) -> Make:
    return lambda stocked, good: good.with_body(stocked.with_value(one.bodies[0], good.body, place, value))


# -- secrets


def secret_things(one: Described, secret: str) -> Iterator[tuple[str, Make]]:
    """Where somebody may put a secret by mistake."""
    yield "a parameter's name", asks(secret, "1")
    yield "an unknown parameter", asks("colour", secret)
    for name in ("X-Request-Id", "Idempotency-Key", "If-Match", "X-Keyledger-Position", "User-Agent"):
        yield name, says(name, secret)
    for name in one.parameters("query"):
        yield f"the parameter {name}", asks(name, secret)
    for name in one.parameters("path"):
        yield f"{name} in the path", is_at(one, name, secret)
    if not one.has_body:
        return
    yield "what is no JSON", lambda _, good: good.with_body(secret.encode())
    yield "JSON that is no object", lambda _, good: good.with_body(secret)
    if one.takes_one:
        yield from _in_objects(one, one.bodies[0], whole, secret)
    if one.item is not None:
        yield from _in_objects(one, one.item, among_others, secret)


def _in_objects(one: Described, schema: Schema, carried: Carried, secret: str) -> Iterator[tuple[str, Make]]:
    def put(place: Place) -> Change:
        return lambda stocked, body: stocked.with_value(schema, body, place, secret)

    yield "a field's name", carried(lambda _, body: {**body, secret: 1}, one)
    for kind in ("string", "integer", "array", "object", "boolean"):
        for place in places(schema, kind):
            yield f"{written(place)} in the body", carried(put(place), one)
