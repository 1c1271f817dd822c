"""What every operation is asked that is bad, and the one answer to each of them, whatever the operation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.api.operations.asked import Bad, asks, is_at, says, shows
from tests.api.operations.bad_bodies import bad_bodies
from tests.api.operations.document import Described, resolved
from tests.api.operations.goods import UNKNOWN, Request, Stocked


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
        yield from bad_bodies(one)


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
        return says("Authorization", f"Bearer {stocked.other_secret}")(stocked, good)

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
            shows("Authorization", value),
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
            says(name, value),
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
                says(name, value),
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
                says("If-Match", value),
                412,
                "version_conflict",
            )
    if "X-Keyledger-Position" in declared:
        yield Bad(
            "a position of another epoch",
            "0.7-1",
            says("X-Keyledger-Position", "0.7-1"),
            410,
            "position_unknown",
        )


def _twice(name: str) -> Bad:
    return Bad("a header given twice", name, says(name, '"1"', '"2"'), 400, "invalid_request", name)


# -- the query


def _of_queries(one: Described) -> Iterator[Bad]:
    for name in ("colour", "as_Of", "fence ", "x" * 100):
        yield _query("an unknown parameter", name[:20], (name, "1"), name)
    for name, about in one.parameters("query").items():
        schema = resolved(about["schema"])
        yield Bad(
            "a parameter given twice",
            name,
            asks(name, "x", "y"),
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
    return Bad(thing, way, asks(*pair), 400, "invalid_request", field)


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
        for way, value in MALFORMED_IDS.items():
            yield Bad("a malformed id", f"{way} as {name}", is_at(one, name, value), 404, "not_found")
        yield Bad("an unknown id", name, is_at(one, name, UNKNOWN[name]), 404, "not_found")


MALFORMED_IDS: Final = {
    "nonsense": "nonsense",
    "half an id": "key_01JD",
    "a dot": "%2e",
    "NUL": "%00",
    "no UTF-8": "%ff",
    "an emoji": "%F0%9F%92%A9",
    "5,000 letters": "a" * 5_000,
}
