"""Every operation of the API description is asked the same bad things, and answers each the same.

A new route is in it by itself: operations, fields and parameters are read from the document that the
running application serves. What may differ is declared on an operation itself (`proxied`, `quick`, the
headers and the size of a body that it takes); there is no list of exceptions here.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple

import msgspec
import pytest
import pytest_asyncio

from keyledger_language.events import KeysSeen, UsageDenied
from keyledger_reading.mapper import tag_of
from services.api.answering.problems import TABLE, Problem
from services.api.asking.call import MAX_BODY_BYTES
from tests.api.operations.asked import Bad
from tests.api.operations.bad_things import bad_things
from tests.api.operations.document import DOCUMENT, EVERY, Described
from tests.api.operations.goods import UNKNOWN, InMemory, stocked
from tests.api.operations.misplaced import foreign_things, secret_things
from tests.api.quick.world import Reply, call

pytestmark = pytest.mark.asyncio(loop_scope="module")

WAYS: Final = ("as usual", "at once")
"""The ways that the HTTP server has; only what is quick takes the second."""

SIGHTINGS: Final = {tag_of(KeysSeen), tag_of(UsageDenied)}
"""What the ledger writes down by itself, each second: which keys were seen lately, and refused."""


class Case(NamedTuple):
    """One operation, asked one bad thing, in all the ways that this may come."""

    one: Described
    way: str
    thing: str
    bads: tuple[Bad, ...]

    @property
    def name(self) -> str:
        return f"{self.one.name}-{self.thing}-{self.way}".replace(" ", "_").replace(",", "")


def _cases() -> list[Case]:
    cases: list[Case] = []
    for one in EVERY:
        by_thing: dict[str, list[Bad]] = {}
        for bad in bad_things(one):
            by_thing.setdefault(bad.thing, []).append(bad)
        cases += [
            Case(one, way, thing, tuple(bads))
            for way in _ways(one)
            for thing, bads in by_thing.items()
        ]  # fmt: skip
    return cases


def _ways(one: Described) -> tuple[str, ...]:
    return WAYS if one.declared.quick else WAYS[:1]


CASES: Final = _cases()
EVERY_WAY: Final = [pytest.param(one, way, id=f"{one.name}-{way}") for one in EVERY for way in _ways(one)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ledger() -> AsyncIterator[InMemory]:
    """One for all that is refused, for it writes nothing."""
    async with stocked() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(request: pytest.FixtureRequest, ledger: InMemory) -> AsyncIterator[InMemory]:
    """The same, with one of everything that nobody has touched, for what changes something."""
    one: Described = request.node.callspec.params["one"]
    # An edge that takes part is waited for whenever something is taken away; and a filter finds all that
    # there is in a ledger in memory.
    if one.permissions == ("edges:connect",) or "filter" in one.bodies[0]["properties"]:
        async with stocked() as made:
            yield made
    else:
        yield await ledger.another()


def refused(reply: Reply, one: Described) -> Problem:
    """The problem, which is told as the document has it."""
    problem = msgspec.json.decode(reply.body, type=Problem)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.headers["cache-control"] == "no-store"
    assert problem.request_id == reply.headers["x-request-id"]
    assert set(reply.json) <= set(Problem.__struct_encode_fields__)
    assert reply.status == problem.status == TABLE[problem.code].status
    assert problem.code in one.codes(reply.status), f"{problem.code} is not documented for {one.name}"
    assert problem.type.endswith(problem.code)
    assert problem.title == TABLE[problem.code].title
    assert problem.detail
    if reply.status == 401:
        assert reply.headers["www-authenticate"].startswith('Bearer realm="keyledger"')
    if problem.code == "permission_denied":
        assert problem.permission in one.permissions
    return problem


def fields_of(problem: Any) -> list[str]:
    return [error["field"] for error in problem.get("errors", ())]


# -- what is good


async def test_the_document_is_the_one_that_the_application_serves(ledger: InMemory) -> None:
    served = await call(ledger.world.app, "GET", "/schema/openapi.json")
    described = sum(len(methods) for methods in served.json["paths"].values())

    assert served.json == DOCUMENT
    assert {case.one.name for case in CASES} | {one.name for one in EVERY if not any(bad_things(one))} == {
        about["operationId"] for methods in served.json["paths"].values() for about in methods.values()
    }
    assert len(EVERY) == described
    asked = sum(len(case.bads) for case in CASES)
    things = len({case.thing for case in CASES})
    print(f"\n{len(EVERY)} operations x {things} bad things = {len(CASES)} cases, {asked} bad requests")


@pytest.mark.parametrize("one, way", EVERY_WAY)
async def test_a_good_request_is_good(fresh: InMemory, one: Described, way: str) -> None:
    reply = await fresh.ask(fresh.good(one), at_once=way == "at once")

    assert reply.status < 300, reply.body
    assert str(reply.status) in one.about["responses"]
    if one.item is not None and not one.takes_one:
        assert [result.get("code", "ok") for result in reply.json["results"]] in (["valid"], ["ok"])


@pytest.mark.parametrize(
    "one", [one for one in EVERY if one.has_body and not one.needs_a_body], ids=lambda one: one.name
)
async def test_where_no_body_is_needed_none_is_an_empty_object(ledger: InMemory, one: Described) -> None:
    with_none, with_one = await ledger.another(), await ledger.another()
    none = await with_none.ask(with_none.good(one).with_body(b""))
    empty = await with_one.ask(with_one.good(one).with_body({}))

    assert none.status == empty.status
    assert none.json.get("code") == empty.json.get("code") != "malformed_body"


@pytest.mark.parametrize("one", [one for one in EVERY if one.has_body], ids=lambda one: one.name)
async def test_a_body_of_just_the_size_is_read(fresh: InMemory, one: Described) -> None:
    good = fresh.good(one)
    most = one.declared.max_body_bytes or MAX_BODY_BYTES
    reply = await fresh.ask(good.with_body(json.dumps(good.body).encode().ljust(most)))

    assert reply.status < 300, reply.body


@pytest.mark.parametrize("one", [one for one in EVERY if one.has_body], ids=lambda one: one.name)
async def test_a_body_takes_no_fields_but_its_own(one: Described) -> None:
    closed = [body.get("additionalProperties") is False for body in (*one.bodies, *filter(None, [one.item]))]

    # An older ledger takes what a newer edge says of itself.
    assert all(closed) or one.permissions == ("edges:connect",)


# -- what is bad


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_bad_thing_is_answered_as_everywhere(ledger: InMemory, case: Case) -> None:
    one, log = case.one, ledger.world.storage.events
    for bad in case.bads:
        before = len(log)
        reply = await ledger.ask(bad.make(ledger, ledger.good(one)), at_once=case.way == "at once")
        if bad.of_item:
            _is_refused_alone(reply, bad)
            continue
        assert (reply.status, reply.json.get("code")) == (bad.status, bad.code), (bad.way, reply.body)
        problem = refused(reply, one)
        if bad.field is not None:
            assert len(problem.errors) == 1, bad.way
            assert _names(problem.errors[0].field, bad), bad.way
            assert problem.errors[0].message
        written = {event.type for event in log[before:]} - SIGHTINGS
        assert not written, f"{bad.way}: something was written"


def _is_refused_alone(reply: Reply, bad: Bad) -> None:
    assert reply.status == 200, (bad.way, reply.body)
    before, found, behind = reply.json["results"]
    assert (found["status"], found["code"]) == (bad.status, bad.code), bad.way
    assert [_names(field, bad) for field in fields_of(found)] == [True], bad.way
    for good in (before, behind):
        assert good.get("status", 200) < 300, bad.way
        assert fields_of(good) == []


def _names(field: str, bad: Bad) -> bool:
    """Does the answer name what is wrong? Where that is deep within, it may be more precise."""
    wanted = bad.field or ""
    return field == wanted or (bad.thing == "40 levels" and field.startswith((f"{wanted}.", f"{wanted}[")))


FOREIGN: Final = ("organization_id", "project_id", "key_id", "charge_id", "reservation_id", "request_id")
FOREIGN_CASES: Final = [
    pytest.param(one, name, put, id=f"{one.name}-{where}".replace(" ", "_"))
    for one in EVERY
    for where, name, put in foreign_things(one, FOREIGN)
]


@pytest.mark.parametrize("one, name, put", FOREIGN_CASES)
async def test_an_id_of_another_organization_is_an_unknown_one(
    fresh: InMemory, one: Described, name: str, put: Any
) -> None:
    ledger, told = fresh, []
    for value in (ledger.things.foreign[name], UNKNOWN[name]):
        asked = put(value)(ledger, ledger.good(one)).with_header("Authorization", f"Bearer {ledger.bound}")
        reply = await ledger.ask(asked)
        told.append((reply.status, _gist(reply).replace(value, "it")))

    assert told[0] == told[1]
    if f"{{{name}}}" in one.path and put(name)(ledger, ledger.good(one)).path != ledger.good(one).path:
        assert told[0][0] == 404


def _gist(reply: Reply) -> str:
    """What an answer says, but for its own ids, positions and times."""
    body = reply.json
    results = [(each.get("status"), each.get("code")) for each in body.get("results", ())]
    said = {name: body.get(name) for name in ("code", "detail", "errors", "valid", "items", "found")}
    return json.dumps([said, results])


@pytest.mark.parametrize("one, way", EVERY_WAY)
async def test_a_secret_is_never_repeated(fresh: InMemory, one: Described, way: str) -> None:
    good = fresh.good(one)
    for where, put in secret_things(one, fresh.secret):
        reply = await fresh.ask(put(fresh, good), at_once=way == "at once")

        assert reply.status < 500, where
        assert fresh.secret.encode() not in reply.body, where
        assert not any(fresh.secret in value for value in reply.headers.values()), where


# -- methods

PATHS: Final = sorted({one.path for one in EVERY if not one.declared.proxied})
METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "BREW")


@pytest.mark.parametrize("path", PATHS)
async def test_a_method_that_a_path_has_not_is_refused_with_those_it_has(ledger: InMemory, path: str) -> None:
    has = {one.method: one for one in EVERY if one.path == path}
    good = ledger.good(next(iter(has.values())))
    for method in METHODS:
        if method in has:
            continue
        reply = await call(ledger.world.app, method, good.path, headers=list(good.headers))

        assert (reply.status, reply.code) == (405, "method_not_allowed"), method
        assert reply.headers["content-type"] == "application/problem+json"
        assert set(has) <= set(reply.headers["allow"].split(", ")) <= {*has, "HEAD", "OPTIONS"}


@pytest.mark.parametrize(
    "one",
    [one for one in EVERY if one.method == "GET" and not one.declared.proxied],
    ids=lambda one: one.name,
)
async def test_head_is_get_without_a_body(ledger: InMemory, one: Described) -> None:
    good = ledger.good(one)
    get, head = await ledger.ask(good), await call(
        ledger.world.app, "HEAD", good.target, headers=list(good.headers)
    )  # fmt: skip

    changes = {"x-request-id", "date"} | ({"content-length"} if one.path == "/metrics" else set())
    assert (head.status, head.body) == (get.status, b"")
    assert {name: value for name, value in head.headers.items() if name not in changes} == {
        name: value for name, value in get.headers.items() if name not in changes
    }


async def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]

    assert len(names) == len(set(names))
    assert not list(itertools.filterfalse(str.isprintable, names))
