"""The chapter "Conventions" of docs/http.md, over all operations: a new route keeps to it, or fails here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from domain import commands as c
from domain.ids import is_id
from services.api.operations import Operation
from tests.api.quick.world import Reply, World
from tests.api.world import DESCRIPTION, EVERY_OPERATION, Management

DOCUMENT: Final = DESCRIPTION.document
SCHEMAS: Final[dict[str, Any]] = DOCUMENT["components"]["schemas"]
CHAPTER: Final = (Path(__file__).parents[2] / "docs/http.md").read_text()

COMES_WHOLE: Final = {
    "/v1/keys/{key_id}/usage",
    "/v1/organizations/{organization_id}/usage",
    "/v1/requests/{request_id}",
}
"""What has `items` and is no list: so many buckets, and what stands under one id."""
GOES_ON: Final = {"/v1/events"}
NOT_SHOWN_ALONE: Final = {
    "POST /v1/charges/{charge_id}/refund",
    "POST /v1/organizations/{organization_id}/wallet/credits",
}
"""What is made and has no route of its own: it is shown with its charge, and on its wallet's statement."""
ID_KINDS: Final = {
    "keyspace_id": "ks",
    "organization_id": "org",
    "project_id": "prj",
    "plan_id": "plan",
    "key_id": "key",
    "charge_id": "chg",
    "reservation_id": "rsv",
}
OWN_WORDS: Final = {"request_id", "position", "path"}
"""Parameters of paths that are no ids of ours."""

GETS: Final = [one for one in EVERY_OPERATION if one.method == "GET" and not one.proxied]
MANAGED: Final = [one for one in GETS if one.permissions]
OPEN: Final = [one for one in GETS if not one.permissions and one.path != "/v1/self"]


def named(one: Operation) -> str:
    return f"{one.method} {one.path}"


def described(one: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][one.path][one.method.lower()]
    return found


def parameters(one: Operation, where: str) -> dict[str, Any]:
    """Schemas of its parameters, by name."""
    return {each["name"]: each["schema"] for each in described(one)["parameters"] if each["in"] == where}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    return SCHEMAS[reference.rpartition("/")[2]] if reference else schema


def answered(one: Operation) -> dict[str, Any]:
    """The fields of its answer."""
    content = described(one)["responses"][str(one.status)].get("content", {})
    fields: dict[str, Any] = resolved(content.get("application/json", {}).get("schema", {})).get(
        "properties", {}
    )
    return fields


def options(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """What a field may be, null left out."""
    return [one for one in (schema.get("anyOf") or [schema]) if one.get("type") != "null"]


def fields() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every field of everything that is sent or answered: of what, its name, its schema."""
    for name, schema in SCHEMAS.items():
        for field, about in schema.get("properties", {}).items():
            yield name, field, about


LISTS: Final = [one for one in MANAGED if "items" in answered(one) and one.path not in COMES_WHOLE | GOES_ON]
every_operation = pytest.mark.parametrize("one", EVERY_OPERATION, ids=named)
every_list = pytest.mark.parametrize("one", LISTS, ids=named)


class Things(dict[str, str]):
    """Ids of one of each thing, as they stand in paths; there is another one of each."""

    def path(self, one: Operation) -> str:
        return one.path.format_map(self)


@pytest.fixture
async def things(api: Management) -> Things:
    await api.make_keyspace("leadmagic")
    await api.make_organization()
    keyspace = await api.make_keyspace()
    organization = await api.make_organization(credit=1_000)
    project, _ = [await api.make_project(organization) for _ in range(2)]
    plan, _ = [await api.make_plan() for _ in range(2)]
    key, _ = [await api.make_key(keyspace, organization) for _ in range(2)]
    await api.do(c.ChangeKey(key_id=key.id, name="Renamed"))
    ask = {"key_id": key.id, "request_id": "r-1", "amount_micros": 5}
    charge = (await api.post("/v1/charges", ask)).json["charge"]
    held = (await api.post("/v1/reservations", ask | {"request_id": "r-2"})).json["reservation"]
    return Things(
        keyspace_id=keyspace.id,
        organization_id=organization.id,
        project_id=project.id,
        plan_id=plan.id,
        key_id=key.id,
        charge_id=charge["id"],
        reservation_id=held["id"],
        request_id="r-1",
        position=charge["position"],
    )


def refused_field(reply: Reply) -> str | None:
    """The field that a 400 names; None: it was not refused so."""
    if reply.status != 400 or reply.code != "invalid_request":
        return None
    field: str = reply.json["errors"][0]["field"]
    return field


# -- methods and statuses


@every_operation
def test_methods_are_these_four_and_a_get_has_no_body(one: Operation) -> None:
    assert one.method in {"GET", "POST", "PATCH", "DELETE"}
    assert one.method != "GET" or "requestBody" not in described(one)
    assert one.method != "GET" or one.status == 200


@every_operation
def test_answers_are_200_or_201_and_202_only_where_something_is_fenced(one: Operation) -> None:
    statuses = {int(status) for status in described(one)["responses"] if int(status) < 300}

    assert statuses <= {200, 201, 202}
    assert (202 in statuses) == one.fenced
    assert one.method == "POST" or 201 not in statuses


@pytest.mark.parametrize("one", [one for one in EVERY_OPERATION if one.status == 201], ids=named)
def test_what_is_made_says_where_it_is_shown(one: Operation) -> None:
    headers = described(one)["responses"]["201"]["headers"]

    assert ("Location" in headers) != (named(one) in NOT_SHOWN_ALONE)
    if one.shown_at:
        assert "get" in DOCUMENT["paths"][one.shown_at]


async def test_a_head_is_a_get_without_its_body(api: Management, things: Things) -> None:
    for one in (*MANAGED, *OPEN):
        head, get = await World.ask(api, "HEAD", things.path(one)), await api.get(things.path(one))

        assert (head.status, head.body) == (get.status, b"") == (200, b""), named(one)
        assert head.headers["content-type"] == get.headers["content-type"], named(one)
        assert head.headers.keys() == get.headers.keys(), named(one)


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "TRACE"])
async def test_another_method_is_refused_with_those_that_the_path_takes(
    api: Management, things: Things, method: str
) -> None:
    paths = {one.path for one in EVERY_OPERATION if not one.proxied}
    for path in paths:
        taken = {name.upper() for name in DOCUMENT["paths"][path]}
        reply = await api.ask(method, path.format_map(things))

        assert (reply.status, reply.code) == (405, "method_not_allowed"), path
        expected = sorted(taken | ({"HEAD"} if "GET" in taken else set()))
        assert reply.headers["allow"] == ", ".join(expected), path


# -- names, ids, times, money


def test_names_are_snake_case() -> None:
    snake = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
    names = {(kind, field) for kind, field, _ in fields()}
    names |= {(named(one), each) for one in EVERY_OPERATION for each in parameters(one, "query")}

    assert [name for name in sorted(names) if not snake.fullmatch(name[1])] == []


@every_operation
def test_an_id_in_a_path_has_its_pattern(one: Operation) -> None:
    for name, schema in parameters(one, "path").items():
        if name in OWN_WORDS:
            continue
        ours, theirs = (f"{kind}_01JD0000000000000000000000" for kind in (ID_KINDS[name], "evt"))
        assert re.search(schema["pattern"], ours), name
        assert not re.search(schema["pattern"], theirs), name
        assert not re.search(schema["pattern"], ours + "0"), name


async def test_ids_are_what_their_pattern_says(things: Things) -> None:
    for name, kind in ID_KINDS.items():
        assert is_id(kind, things[name]), name


async def test_a_filter_by_what_is_no_id_is_refused(api: Management, things: Things) -> None:
    for one in MANAGED:
        for name in ID_KINDS.keys() & parameters(one, "query").keys():
            reply = await api.get(f"{things.path(one)}?{name}=acme")
            assert refused_field(reply) == name, named(one)
            foreign = f"{ID_KINDS[name]}_01JD0000000000000000000000"
            assert (await api.get(f"{things.path(one)}?{name}={foreign}")).status in {200, 404}, named(one)


async def test_what_is_no_id_in_a_path_is_not_found(api: Management, things: Things) -> None:
    for one in MANAGED:
        for name in ID_KINDS.keys() & parameters(one, "path").keys():
            for unknown in ("acme", f"{ID_KINDS[name]}_01JD0000000000000000000000"):
                reply = await api.get(one.path.format_map(Things(things, **{name: unknown})))
                assert (reply.status, reply.code) == (404, "not_found"), named(one)


def test_a_time_is_called_at_or_ends_so_but_for_a_buckets_start_and_an_explanations_now() -> None:
    times = [
        f"{kind}.{field}"
        for kind, field, about in fields()
        if any(one.get("format") == "date-time" for one in options(about))
        if not (field in {"at", "from", "to", "start", "now"} or field.endswith("_at"))
    ]

    # Names of CloudEvents are not ours.
    assert [one for one in times if not one.startswith("CloudEvent")] == []


def test_times_in_a_query_are_a_span() -> None:
    for one in EVERY_OPERATION:
        times = {
            name
            for name, schema in parameters(one, "query").items()
            if any(each.get("format") == "date-time" for each in options(schema))
        }
        assert times in (set(), {"from", "to"}), named(one)


async def test_a_span_ends_behind_its_beginning(api: Management, things: Things) -> None:
    noon = "2026-01-01T12:00:00Z"
    spans = [one for one in MANAGED if "from" in parameters(one, "query")]
    for one in spans:
        assert refused_field(await api.get(f"{things.path(one)}?from={noon}&to={noon}")) == "from", named(one)
        assert refused_field(await api.get(f"{things.path(one)}?to=2026-01-01T12:00:00")) == "to", named(one)
    assert len(spans) >= 4


MONEY: Final = re.compile(
    r"amount|balance|price|cost|credit|charged|refunded|reserved|captured|available|micros"
)


def test_money_is_an_integer_in_micros() -> None:
    for kind, field, about in fields():
        integer = all(one.get("type") == "integer" for one in options(about))
        if field.endswith("_micros"):
            assert integer, f"{kind}.{field}"
        elif integer:
            assert not MONEY.search(field), f"{kind}.{field}"
        if field in {"spent", "remaining"} and "RateLimit" not in kind:
            assert "unit" in SCHEMAS[kind]["properties"], f"{kind}.{field}"


# -- lists


@every_list
def test_a_list_is_paged(one: Operation) -> None:
    query, fields_of_it = parameters(one, "query"), answered(one)

    assert {"limit", "cursor"} <= query.keys()
    (limit,) = options(query["limit"])
    assert (limit["minimum"], limit["maximum"], query["limit"]["default"]) == (1, 500, 50)
    assert {"items", "next_cursor", "position"} == fields_of_it.keys()


@every_operation
def test_only_lists_are_paged_and_sorted_by_sort_alone(one: Operation) -> None:
    query = parameters(one, "query")

    assert ("cursor" in query) == (one in LISTS)
    assert query.keys().isdisjoint({"order", "sort_by", "order_by", "direction", "page", "offset"})
    if "sort" in query:
        names = set(query["sort"]["enum"])
        assert names == {f"{sign}{name.lstrip('-')}" for name in names for sign in ("", "-")}
        assert query["sort"]["default"] in names
        assert one in LISTS


@every_list
async def test_a_cursor_of_another_list_of_another_epoch_or_of_none_is_refused(
    api: Management, things: Things, one: Operation
) -> None:
    path = things.path(one)
    others = [things.path(other) for other in LISTS if other.path != one.path]
    foreign = [
        cursor for other in others if (cursor := (await api.get(f"{other}?limit=1")).json["next_cursor"])
    ]

    assert len(foreign) >= 4
    for cursor in (*foreign, "x", "", "A" * 2_000):
        assert refused_field(await api.get(f"{path}?cursor={cursor}")) == "cursor", cursor
    for epoch in ("2", "7"):
        reply = await api.get(f"{path}?cursor={epoch}.{foreign[0]}")
        assert (reply.status, reply.code) == (410, "position_unknown")


@every_list
async def test_a_cursor_belongs_to_its_filters_and_its_sort(
    api: Management, things: Things, one: Operation
) -> None:
    page = (await api.get(f"{things.path(one)}?limit=1")).json
    assert len(page["items"]) <= 1
    cursor = page["next_cursor"]
    if one.path == "/v1/edges":
        assert page["items"] == [], "nobody is connected here"
        return
    assert (await api.get(f"{things.path(one)}?limit=2&cursor={cursor}")).status == 200
    for name, schema in parameters(one, "query").items():
        for value in schema.get("enum", ()):
            if value != schema.get("default"):
                reply = await api.get(f"{things.path(one)}?cursor={cursor}&{name}={value}")
                assert refused_field(reply) == "cursor", (name, value)


@every_list
async def test_a_limit_is_1_to_500(api: Management, things: Things, one: Operation) -> None:
    answers = {
        limit: refused_field(await api.get(f"{things.path(one)}?limit={limit}"))
        for limit in (0, 1, 500, 501, "all")
    }

    assert answers == {0: "limit", 1: None, 500: None, 501: "limit", "all": "limit"}


# -- filters


async def test_a_filter_with_a_value_that_there_is_not_is_refused_and_says_which_there_are(
    api: Management, things: Things
) -> None:
    filters = 0
    for one in MANAGED:
        for name, schema in parameters(one, "query").items():
            for each in options(schema):
                if "enum" not in each:
                    continue
                reply = await api.get(f"{things.path(one)}?{name}=no-such-value")
                assert refused_field(reply) == name, named(one)
                message = reply.json["errors"][0]["message"]
                assert set(each["enum"]) - {None} <= set(re.split(r"[ ,]+", message)), (named(one), message)
                filters += 1
    assert filters >= 15


async def test_the_word_null_is_a_value_as_any_other_and_lists_nothing_more(
    api: Management, things: Things
) -> None:
    asked = 0
    for one in MANAGED:
        for name, schema in parameters(one, "query").items():
            if any("enum" in each or each.get("format") == "date-time" for each in options(schema)):
                for word in ("null", "NULL"):
                    assert refused_field(await api.get(f"{things.path(one)}?{name}={word}")) == name, named(
                        one
                    )
                asked += 1
    assert asked >= 20


async def test_what_is_no_parameter_is_refused_by_its_name(api: Management, things: Things) -> None:
    for one in MANAGED:
        assert refused_field(await api.get(f"{things.path(one)}?organisation=1")) == "organisation", named(
            one
        )


# -- conditions, once, positions


async def test_what_has_a_version_has_it_as_etag(api: Management, things: Things) -> None:
    versioned = [one for one in MANAGED if "version" in answered(one)]
    for one in MANAGED:
        reply = await api.get(things.path(one))
        etag = reply.headers.get("etag")
        if one in versioned:
            assert etag == f'"{reply.json["version"]}"', named(one)
        else:
            assert etag is None, named(one)
        assert ("ETag" in described(one)["responses"]["200"]["headers"]) == (one in versioned), named(one)
    assert len(versioned) >= 5


@pytest.mark.parametrize(
    "one", [one for one in EVERY_OPERATION if one.method in {"PATCH", "DELETE"}], ids=named
)
def test_changing_what_has_a_version_takes_if_match(one: Operation) -> None:
    assert ("If-Match" in parameters(one, "header")) == ("version" in answered(one))


@every_operation
def test_a_management_write_takes_an_idempotency_key_and_nothing_else_does(one: Operation) -> None:
    takes = "Idempotency-Key" in parameters(one, "header")
    body = (
        described(one).get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    )
    asked = resolved(body).get("properties", {})
    if one.method == "GET" or "request_id" in asked:
        assert not takes
    if one.method in {"PATCH", "DELETE"}:
        assert takes


async def test_an_idempotency_key_where_it_means_nothing_is_refused(api: Management, things: Things) -> None:
    for one in MANAGED:
        reply = await api.get(things.path(one), **{"Idempotency-Key": "one"})
        assert (reply.status, reply.code) == (400, "unsupported_header"), named(one)


async def test_an_answer_says_up_to_where_it_is_true(api: Management, things: Things) -> None:
    for one in MANAGED:
        assert "X-Keyledger-Position" in parameters(one, "header"), named(one)
        reply = await api.get(things.path(one), **{"X-Keyledger-Position": things["position"]})
        assert reply.status == 200, named(one)
        told = reply.headers["x-keyledger-position"]
        assert re.fullmatch(r"0-\d+", told), named(one)
        if (
            "position" in answered(one)
            and "version" not in answered(one)
            and one.path != "/v1/fences/{position}"
        ):
            assert reply.json["position"] == told, named(one)
        nowhere = await api.get(things.path(one), **{"X-Keyledger-Position": "0.9-1"})
        assert (nowhere.status, nowhere.code) == (410, "position_unknown"), named(one)


async def test_a_position_ahead_of_the_log_is_unknown_to_the_feed(api: Management, things: Things) -> None:
    head = api.ledger.books.head

    assert (await api.get(f"/v1/events?after=0-{head}")).json["items"] == []
    reply = await api.get(f"/v1/events?after=0-{head + 1}")
    assert (reply.status, reply.code) == (410, "position_unknown")
    assert f"ends at 0-{head}" in reply.json["detail"]


# -- headers of every answer, errors


async def test_every_answer_has_its_headers(api: Management, things: Things) -> None:
    for one in (*MANAGED, *OPEN):
        good, bad = await api.get(things.path(one)), await api.get(f"{things.path(one)}?no=parameter")
        for reply in (good, bad):
            assert reply.headers["x-request-id"], named(one)
            kind = reply.headers["content-type"]
            assert kind.count("charset") == (1 if kind.startswith("text/") else 0), named(one)
        assert good.headers["content-type"].partition(";")[0] == one.media_types[0], named(one)
        assert bad.headers["content-type"] == "application/problem+json", named(one)
        describes = one.path in {"/", "/docs", "/schema/openapi.json"}
        cached = "public, max-age=60" if describes else "no-store"
        assert (good.headers["cache-control"], bad.headers["cache-control"]) == (cached, "no-store"), named(
            one
        )


@every_operation
def test_an_operation_says_how_it_may_be_refused(one: Operation) -> None:
    responses = described(one)["responses"]
    needed = {"400", "500"}
    if one.permissions:
        needed |= {"401", "403", "503"}
    if parameters(one, "path").keys() & ID_KINDS.keys():
        needed.add("404")
    if one.method == "GET" and one.permissions:
        needed.add("410")
    assert needed <= responses.keys()
    for status, response in responses.items():
        if int(status) >= 400 and (one.path, status) != ("/readyz", "503"):
            assert response["content"].keys() == {"application/problem+json"}, status


# -- the chapter itself


def test_the_chapter_tells_of_all_this() -> None:
    chapter = CHAPTER.partition("## Conventions")[2].partition("\n## ")[0]

    for topic in (
        "Methods", "Statuses", "Names", "Ids", "Times", "Money", "Lists", "Sort", "Filters", "Conditions",
        "Once", "Positions", "Headers of every answer", "Errors", "Bounds",
    ):  # fmt: skip
        assert re.search(rf"^\*\*{topic}", chapter, re.MULTILINE), topic


def test_a_reason_has_one_bound_wherever_it_is_sent() -> None:
    bounds = {
        one.body.__name__: msgspec.json.schema(field.type)["anyOf"]
        for one in EVERY_OPERATION
        if one.has_body
        for field in msgspec.structs.fields(one.body)
        if field.name == "reason"
    }

    assert len(bounds) > 4
    assert {json.dumps(each, sort_keys=True) for each in bounds.values()} == {
        '[{"maxLength": 500, "minLength": 1, "type": "string"}, {"type": "null"}]'
    }
