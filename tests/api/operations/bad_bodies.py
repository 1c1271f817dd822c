"""What is bad about a body, or about one of many things in it, and the one answer to each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from services.api.asking.call import MAX_BODY_BYTES
from tests.api.operations.asked import Bad, Make
from tests.api.operations.document import Described, Place, Schema, is_nullable, places, written
from tests.api.operations.goods import Request, Stocked

Change = Callable[[Stocked, Any], Any]
"""What becomes of a good object."""
Carried = Callable[[Change, Described], Make]
"""An object as the body itself, or as one of many in it."""


def bad_bodies(one: Described) -> Iterator[Bad]:
    """All that is sent to this operation."""
    yield from _of_bodies(one)
    if one.takes_one:
        yield from _of_objects(one, one.bodies[0], whole)
    if one.item is not None:
        yield from _of_objects(one, one.item, among_others)


# -- the body as a whole


def _of_bodies(one: Described) -> Iterator[Bad]:
    def body(thing: str, way: str, data: object, code: str, field: str = "body") -> Bad:
        return Bad(thing, way, lambda _, good: good.with_body(data), 400, code, field)

    for way, data in (("cut", b'{"a":'), ("cut in a name", b'{"a'), ("nothing to it", b"nonsense"),
                      ("no UTF-8", b'{"a":"\xff"}'), ("UTF-16", "{}".encode("utf-16")),
                      ("raw half a pair", b'{"a":"\xed\xa0\x80"}'), ("raw NUL", b'{"a":"\0"}'),
                      ("two objects", b"{}{}"), ("100,000 levels", b"[" * 100_000)):  # fmt: skip
        yield body("what is no JSON", way, data, "malformed_body")
    for data in (b"null", b"true", b"1", b'"x"', b"[]", b"[{}]"):
        yield body("JSON that is no object", data.decode(), data, "invalid_request")
    outer = one.bodies[0]
    if one.needs_a_body and one.takes_one and outer.get("required"):
        yield body("no body", "none", b"", "invalid_request", outer["required"][0])
    most = one.declared.max_body_bytes or MAX_BODY_BYTES
    yield Bad(
        "too large a body",
        f"{most} bytes and one",
        lambda _, good: good.with_body(b" " * (most + 1)),
        413,
        "body_too_large",
    )
    if not one.takes_one:
        assert one.item is not None, "a batch has items"
        yield body("no body", "none", b"", "invalid_request", "items")
        yield body(
            "an unknown field", "beside the items", {"items": [], "colour": 1}, "invalid_request", "colour"
        )
        yield body("items that are none", "an object", {"items": {}}, "invalid_request", "items")


# -- one object, alone or among others

_HERE: Final = "\u25c6"
"""Stands in a text for the spelling that is put there."""


def whole(change: Change, one: Described) -> Make:
    return lambda stocked, good: good.with_body(change(stocked, good.body))


def among_others(change: Change, one: Described) -> Make:
    """A bad one, between two that are good."""

    def make(stocked: Stocked, good: Request) -> Request:
        items = [stocked.item_of(one) for _ in range(3)]
        items[1] = change(stocked, items[1])
        return good.with_body({"items": items})

    return make


def _spelled(make: Make, raw: bytes) -> Make:
    """With these bytes where a text has a mark."""

    def made(stocked: Stocked, good: Request) -> Request:
        request = make(stocked, good)
        spelled = json.dumps(request.body, ensure_ascii=False).encode()
        return request.with_body(spelled.replace(_HERE.encode(), raw))

    return made


def _of_objects(one: Described, schema: Schema, carried: Carried) -> Iterator[Bad]:
    def bad(thing: str, way: str, field: str, change: Change, raw: bytes = b"") -> Bad:
        make = carried(change, one)
        if raw:
            make = _spelled(make, raw)
        return Bad(thing, way, make, 400, "invalid_request", field, of_item=carried is among_others)

    def put(place: Place, value: object) -> Change:
        return lambda stocked, body: stocked.with_value(schema, body, place, value)

    if schema.get("additionalProperties") is False:
        yield bad("an unknown field", "colour", "colour", lambda _, body: {**body, "colour": 1})
        yield bad("an unknown field", "40 levels", "a", lambda _, body: {**body, **deep(40)})
    for place in places(schema, "string"):
        name = written(place)
        for way, raw in SPELLINGS.items():
            yield bad("a bad character in a text", f"{way} in {name}", name, put(place, f"x{_HERE}y"), raw)
    for place in places(schema, "integer"):
        for number in (2**63, -(2**63) - 1, 2**64, 10**400):
            way = f"{len(str(number))} digits in {written(place)}"
            yield bad("a number beyond 64 bits", way, written(place), put(place, number))
    for name, about in schema.get("properties", {}).items():
        if about == {}:
            continue
        yield bad("a value of the wrong kind", f"1.5 as {name}", name, put((name,), 1.5))
        if not is_nullable(about):
            yield bad("a value of the wrong kind", f"null as {name}", name, put((name,), None))
        if name != "metadata":
            yield bad("40 levels", name, name, put((name,), deep(40)))
    if "metadata" in schema.get("properties", {}):
        yield from _of_metadata(bad, put)
    for name in schema.get("required", ()):
        yield bad("a field that is missing", name, name, _without(name))


def _of_metadata(bad: Any, put: Any) -> Iterator[Bad]:
    at = ("metadata",)
    for levels in (33, 40, 900):
        yield bad("40 levels of metadata", f"{levels} levels", "metadata", put(at, deep(levels)))
    yield bad("too large metadata", "16 KiB", "metadata", put(at, {"x": "y" * 16_384}))
    for way, raw in SPELLINGS.items():
        yield bad(
            "a bad character in metadata", f"{way} in a name", "metadata", put(at, {f"x{_HERE}": 1}), raw
        )
        yield bad("a bad character in metadata", way, "metadata.x", put(at, {"x": f"x{_HERE}y"}), raw)
    for number in (2**63, -(2**63) - 1, 2**64, 10**400):
        way = f"{len(str(number))} digits"
        yield bad("a number beyond 64 bits in metadata", way, "metadata.n", put(at, {"n": number}))
    yield bad(
        "a secret in metadata", "a key's own", "metadata.x",
        lambda stocked, body: {**body, "metadata": {"x": stocked.secret}},
    )  # fmt: skip


def _without(name: str) -> Change:
    return lambda _, body: {each: value for each, value in body.items() if each != name}


def deep(levels: int) -> dict[str, Any]:
    """An object within an object, and so on."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


SPELLINGS: Final = {
    "raw DEL": b"\x7f",
    "raw NEL": b"\xc2\x85",
    "raw U+202E": b"\xe2\x80\xae",
    "raw U+2069": b"\xe2\x81\xa9",
    r"\u0000": rb"\u0000",
    r"\b": rb"\b",
    r"\u001b": rb"\u001B",
    r"\u007f": rb"\u007f",
    r"\u0085": rb"\u0085",
    r"\u202e": rb"\u202e",
    r"\ud800": rb"\ud800",
    r"\udc00": rb"\uDC00",
    r"\udc00\ud800": rb"\udc00\ud800",
}
"""How a character that no text may hold is written in a body that is JSON all the same."""
