"""What every operation is asked that is bad, and the one answer to each of them, whatever the operation."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from domain.decisions.access import ROOT_PERMISSIONS
from services.api.asking.call import MAX_BODY_BYTES
from tests.api.operations.document import (
    Described,
    Place,
    Schema,
    is_nullable,
    places,
    resolved,
    written,
)
from tests.api.operations.goods import UNKNOWN, Request, Stocked

Make = Callable[[Stocked, Request], Request]
"""Makes a good request bad."""


@dataclass(frozen=True)
class Bad:
    """One bad thing, in one of the ways that it may come."""

    thing: str
    way: str
    make: Make
    status: int
    code: str
    field: str | None = None
    """What the answer must name; None: the request as a whole is wrong."""
    of_item: bool = False
    """Is it one of many? Then it is refused alone."""


def bad_things(one: Described) -> Iterator[Bad]:
    """All that this operation is asked."""
    if one.declared.proxied:
        # Query, body and headers are a client's, whose own service judges them; the proxy is asked who it is.
        yield from _of_proxies()
        return
    yield from _of_callers(one)
    yield from _of_headers(one)
    yield from _of_queries(one)
    yield from _of_paths(one)
    if one.has_body:
        yield from _of_bodies(one)
        if one.takes_one:
            yield from _of_objects(one, one.bodies[0], _whole)
        if one.item is not None:
            yield from _of_objects(one, one.item, _among_others)


# -- who asks


def _of_proxies() -> Iterator[Bad]:
    name = "X-Keyledger-Proxy-Key"
    for way, make in (
        ("none", lambda _, good: good.without_header(name)),
        ("no root key", lambda _, good: good.with_header(name, "nonsense")),
        ("a root key that may not", lambda stocked, good: good.with_header(name, stocked.powerless)),
    ):
        yield Bad("no proxy that may ask", way, make, 401, "proxy_unauthenticated")
    yield _twice(name)
    yield _two_credentials()


def _two_credentials() -> Bad:
    def make(stocked: Stocked, good: Request) -> Request:
        return good.and_header("Authorization", f"Bearer {stocked.other_secret}")

    return Bad("two credentials", "Authorization", make, 400, "ambiguous_credentials")


def _of_callers(one: Described) -> Iterator[Bad]:
    if not one.permissions and not one.shows_a_secret:
        return
    yield _two_credentials()
    nobody = "unauthenticated" if one.permissions else "missing"
    yield Bad("no credential", "none", lambda _, good: good.without_header("Authorization"), 401, nobody)
    if not one.permissions:
        return
    for way, value in (("Basic", "Basic abc"), ("empty", ""), ("no root key", "Bearer kl_root_" + "x" * 36)):
        yield Bad(
            "no root key",
            way,
            lambda _, good, value=value: good.with_header("Authorization", value),
            401,
            nobody,
        )
    yield Bad(
        "no root key",
        "an ordinary key",
        lambda stocked, good: good.with_header("Authorization", f"Bearer {stocked.secret}"),
        401,
        nobody,
    )
    yield Bad(
        "no permission",
        "another one's",
        lambda stocked, good: good.with_header("Authorization", f"Bearer {stocked.powerless}"),
        403,
        "permission_denied",
    )


# -- headers


def _of_headers(one: Described) -> Iterator[Bad]:
    declared = one.parameters("header")
    for name, value in (("Idempotency-Key", "k-1"), ("If-Match", '"1"')):
        if name in declared:
            continue
        yield Bad(
            "a header that means nothing there",
            name,
            lambda _, good, name=name, value=value: good.and_header(name, value),
            400,
            "unsupported_header",
            name,
        )
    malformed = {
        "Idempotency-Key": ("", " ", "k\tk", "ü", "k" * 256),
        "If-Match": ("nonsense", "3", '"x"', '"-1"', '"1", "2"', '"' + "9" * 19 + '"', ""),
        "X-Keyledger-Position": ("nonsense", "0", "-1", "0-x", "9" * 40 + "-1", "1-1", ""),
    }
    for name in malformed.keys() & declared.keys():
        for value in malformed[name]:
            yield Bad(
                "a malformed header",
                f"{name}: {value[:20]!r}",
                lambda _, good, name=name, value=value: good.and_header(name, value),
                400,
                "invalid_request",
                name,
            )
        yield _twice(name)
    if "If-Match" in declared:
        for value in ('"9999"', 'W/"9999"', '"0"'):
            yield Bad(
                "a stale version",
                value,
                lambda _, good, value=value: good.and_header("If-Match", value),
                412,
                "version_conflict",
            )
    if "X-Keyledger-Position" in declared:
        yield Bad(
            "a position of another epoch",
            "0.7-1",
            lambda _, good: good.and_header("X-Keyledger-Position", "0.7-1"),
            410,
            "position_unknown",
        )


def _twice(name: str) -> Bad:
    def make(_: Stocked, good: Request) -> Request:
        return good.and_header(name, '"1"').and_header(name, '"2"')

    return Bad("a header given twice", name, make, 400, "invalid_request", name)


# -- the query


def _of_queries(one: Described) -> Iterator[Bad]:
    for name in ("colour", "as_Of", "fence ", "x" * 100):
        yield _query("an unknown parameter", name[:20], (name, "1"), name)
    for name, about in one.parameters("query").items():
        schema = resolved(about["schema"])
        yield Bad(
            "a parameter given twice",
            name,
            lambda _, good, name=name: good.and_query(name, "x").and_query(name, "y"),
            400,
            "invalid_request",
            name,
        )
        for way, text in TEXTS.items():
            field = "query" if way == "half a pair" else name
            yield _query("a bad character in the query", f"{way} in {name}", (name, f"x{text}y"), field)
        if schema.get("type") == "integer":
            for number in (2**63, -(2**63) - 1, 10**40):
                yield _query("a number beyond 64 bits", f"{number:e} in {name}", (name, str(number)), name)
        if schema.get("type") in {"integer", "boolean"} or "enum" in schema or "format" in schema:
            yield _query("a value of the wrong kind", name, (name, "nonsense"), name)


def _query(thing: str, way: str, pair: tuple[str, str], field: str) -> Bad:
    return Bad(thing, way, lambda _, good: good.and_query(*pair), 400, "invalid_request", field)


TEXTS: Final = {
    "NUL": "\0",
    "BEL": "\a",
    "DEL": "\x7f",
    "NEL": "\x85",
    "U+202E": "\u202e",
    "U+2066": "\u2066",
    "half a pair": "\ud800",
}
"""Characters that no text may hold."""


# -- the path


def _of_paths(one: Described) -> Iterator[Bad]:
    for name in one.parameters("path"):
        at = one.path.partition(f"{{{name}}}")
        for way, value in MALFORMED_IDS.items():
            yield Bad("a malformed id", f"{way} as {name}", _at(at, value), 404, "not_found")
        yield Bad("an unknown id", name, _at(at, UNKNOWN[name]), 404, "not_found")


MALFORMED_IDS: Final = {
    "nonsense": "nonsense",
    "half an id": "key_01JD",
    "a dot": "%2e",
    "NUL": "%00",
    "no UTF-8": "%ff",
    "an emoji": "%F0%9F%92%A9",
    "5,000 letters": "a" * 5_000,
}


def _at(at: tuple[str, str, str], value: str) -> Make:
    """Puts an id into the path, in place of the one that stands there."""
    before, _, behind = at

    def make(stocked: Stocked, good: Request) -> Request:
        start = good.path[: _length(good.path, before)]
        rest = good.path[len(start) :].partition("/")
        return good.__class__(
            good.method, f"{start}{value}{behind and '/' + rest[2]}", good.query, good.headers, good.body
        )

    return make


def _length(path: str, template: str) -> int:
    """How much of a path stands for this beginning of its template."""
    parts = path.split("/")[: template.count("/")]
    return len("/".join(parts)) + 1


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


def _whole(change: Callable[[Stocked, Any], Any], one: Described) -> Make:
    return lambda stocked, good: good.with_body(change(stocked, good.body))


def _among_others(change: Callable[[Stocked, Any], Any], one: Described) -> Make:
    """A bad one, between two that are good."""

    def make(stocked: Stocked, good: Request) -> Request:
        items = [stocked.item_of(one) for _ in range(3)]
        items[1] = change(stocked, items[1])
        return good.with_body({"items": items})

    return make


def _of_objects(one: Described, schema: Schema, carried: Any) -> Iterator[Bad]:
    def bad(thing: str, way: str, field: str, change: Callable[[Stocked, Any], Any], raw: bytes = b"") -> Bad:
        make = carried(change, one)
        if raw:
            inner = make

            def make(stocked: Stocked, good: Request) -> Request:
                made = inner(stocked, good)
                spelled = json.dumps(made.body, ensure_ascii=False).encode()
                return made.with_body(spelled.replace(_HERE.encode(), raw))

        return Bad(thing, way, make, 400, "invalid_request", field, of_item=carried is _among_others)

    def put(place: Place, value: object) -> Callable[[Stocked, Any], Any]:
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
        yield bad(
            "a field that is missing", name, name,
            lambda _, body, name=name: {each: value for each, value in body.items() if each != name},
        )  # fmt: skip


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


# -- what belongs to somebody else


def foreign_things(one: Described, owned: Iterable[str]) -> Iterator[tuple[str, str, Callable[[str], Make]]]:
    """Where an id of another organization may stand: how to tell of it, which id, and what puts one there.

    Who holds only what the platform's own root keys may hold, is bound to no organization.
    """
    if one.declared.proxied or not set(one.permissions) & set(ROOT_PERMISSIONS):
        return
    for name in owned:
        if name in one.parameters("path"):
            at = one.path.partition(f"{{{name}}}")
            yield f"{name} in the path", name, lambda value, at=at: _at(at, value)
        if name in one.parameters("query"):
            yield f"{name} in the query", name, lambda value, name=name: _asking_for(name, value)
    if "requestBody" in one.about and one.takes_one:
        for place in places(one.bodies[0], "string"):
            named = next(step for step in reversed(place) if isinstance(step, str))
            name = _ONE_OF.get(named, named)
            if name in owned and name != "request_id":  # that is the caller's own word
                yield (
                    f"{written(place)} in the body",
                    name,
                    lambda value, place=place: _put(one, place, value),
                )


_ONE_OF: Final = {"key_ids": "key_id", "projects": "project_id"}
"""Lists of ids, by the names of what is in them."""


def _asking_for(name: str, value: str) -> Make:
    return lambda _, good: good.and_query(name, value)


def _put(one: Described, place: Place, value: object) -> Make:
    return lambda stocked, good: good.with_body(stocked.with_value(one.bodies[0], good.body, place, value))


# -- secrets


def secret_things(one: Described) -> Iterator[tuple[str, Make]]:
    """Where somebody may put a secret by mistake."""
    yield "a parameter's name", lambda stocked, good: good.and_query(stocked.secret, "1")
    yield "an unknown parameter", lambda stocked, good: good.and_query("colour", stocked.secret)
    for name in ("X-Request-Id", "Idempotency-Key", "If-Match", "X-Keyledger-Position", "User-Agent"):
        yield name, lambda stocked, good, name=name: good.and_header(name, stocked.secret)
    for name in one.parameters("query"):
        yield f"the parameter {name}", lambda stocked, good, name=name: good.and_query(name, stocked.secret)
    for name in one.parameters("path"):
        at = one.path.partition(f"{{{name}}}")
        yield f"{name} in the path", lambda stocked, good, at=at: _at(at, stocked.secret)(stocked, good)
    if not one.has_body:
        return
    yield "what is no JSON", lambda stocked, good: good.with_body(stocked.secret.encode())
    yield "JSON that is no object", lambda stocked, good: good.with_body(stocked.secret)
    for schema, carried in ((one.bodies[0], _whole), (one.item, _among_others)):
        if schema is None or (carried is _whole and not one.takes_one):
            continue
        yield "a field's name", carried(lambda stocked, body: {**body, stocked.secret: 1}, one)
        for kind in ("string", "integer", "array", "object", "boolean"):
            for place in places(schema, kind):

                def put(stocked: Stocked, body: Any, place: Place = place, schema: Schema = schema) -> Any:
                    return stocked.with_value(schema, body, place, stocked.secret)

                yield f"{written(place)} in the body", carried(put, one)
