"""Nothing in the API description is left untold: no field, no type, no code, no header."""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from services.api.answering.problems import TABLE
from services.api.asking.fields import NoBody
from services.api.description.headers import headers
from services.api.operations import Operation
from tests.api.world import DESCRIPTION, EVERY_OPERATION

Json = dict[str, Any]

DOCUMENT: Json = msgspec.json.decode(DESCRIPTION.json)
SCHEMAS: Json = DOCUMENT["components"]["schemas"]
OPEN_BY_NATURE = {"metadata", "before", "after"}
"""The caller's own JSON, and the fields that changed: no list has their names."""
VERBS = {
    "add", "archive", "capture", "check", "connect", "create", "delete", "disable", "enable", "explain",
    "fill", "get", "import", "list", "refund", "release", "report", "resume", "revoke", "rotate", "suspend",
    "update", "verify",
}  # fmt: skip


def described(one: Operation) -> Json:
    found: Json = DOCUMENT["paths"][one.path][one.method.lower()]
    return found


def walked(schema: Any, path: str) -> Iterator[tuple[str, Json]]:
    """Every schema in a schema, with where it stands."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from walked(inner, f"{path}.{name}")
    for word in ("items", "additionalProperties"):
        yield from walked(schema.get(word), f"{path}[{word}]")
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for inner in schema.get(word, ()):
            yield from walked(inner, path)


def every_schema() -> Iterator[tuple[str, Json]]:
    for name, schema in SCHEMAS.items():
        yield from walked(schema, name)
    for one in EVERY_OPERATION:
        told = described(one)
        for parameter in told["parameters"]:
            yield from walked(parameter["schema"], f"{one.name} {parameter['name']}")
        for status, answer in told["responses"].items():
            for content in answer.get("content", {}).values():
                yield from walked(content["schema"], f"{one.name} {status}")


def untyped(path: str, schema: Json) -> bool:
    """Does it say nothing of what stands there?"""
    if any(word in schema for word in ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")):
        return False
    if schema.get("type") == "object":
        closed = "properties" in schema or isinstance(schema.get("additionalProperties"), dict)
        return not closed and path.rpartition(".")[2] not in OPEN_BY_NATURE
    if schema.get("type") == "array":
        return "items" not in schema and "prefixItems" not in schema
    return "type" not in schema


def test_the_document_is_openapi() -> None:
    assert list(OpenAPIV31SpecValidator(DOCUMENT).iter_errors()) == []


def test_every_schema_says_what_it_is() -> None:
    found = [path for path, schema in every_schema() if untyped(path, schema)]

    assert found == ["EventData", "getSchema 200"], "what is open by its nature, and says so"


def test_an_untyped_schema_is_found() -> None:
    holder = {
        "type": "object",
        "properties": {"list": {"type": "array"}, "open": {"type": "object"}, "any": {}},
    }

    found = [path for path, schema in walked(holder, "Holder") if untyped(path, schema)]

    assert found == ["Holder.list", "Holder.open", "Holder.any"]


def test_every_field_is_described() -> None:
    found = [
        f"{path}.{name}"
        for path, schema in every_schema()
        for name, about in schema.get("properties", {}).items()
        if not about.get("description")
    ]

    assert found == []


def test_every_schema_is_described() -> None:
    assert [name for name, schema in SCHEMAS.items() if not schema.get("description")] == []


def test_a_default_never_makes_a_field_needed() -> None:
    """Many generators take a field with a default for one that is always there, in what is sent too."""
    assert [path for path, schema in every_schema() if "default" in schema and "." in path] == []


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=lambda one: one.name)
def test_every_operation_is_whole(one: Operation) -> None:
    told = described(one)

    assert told["summary"]
    assert told["description"]
    assert len(told["tags"]) == 1
    for parameter in told["parameters"]:
        assert parameter["description"], parameter["name"]
    asked = {parameter["name"] for parameter in told["parameters"] if parameter["in"] == "query"}
    assert asked == {field.encode_name for field in msgspec.structs.fields(one.query)}
    if "requestBody" in told:
        assert told["requestBody"]["content"]["application/json"]["example"] is not None
    assert ("requestBody" in told) == (one.body is not NoBody)


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=lambda one: one.name)
def test_every_answer_is_whole(one: Operation) -> None:
    for status, answer in described(one)["responses"].items():
        told = {name: DOCUMENT["components"]["headers"][name] for name in answer["headers"]}
        assert answer["description"]
        assert "X-Request-Id" in told
        assert ("WWW-Authenticate" in told) == (status == "401")
        assert ("Retry-After" in told) == (status in {"429", "503"})
        for content in answer.get("content", {}).values():
            if int(status) >= 400 or (status in {"200", "201"} and one.name != "getSchema"):
                assert_shown(one, status, content)


def assert_shown(one: Operation, status: str, content: Json) -> None:
    """Is there an example? Where one operation answers two things, of the one that its example asks for."""
    if status in {str(other) for other, _ in one.other_answers}:
        return
    assert content.get("example") is not None, (one.name, status)


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=lambda one: one.name)
def test_the_codes_of_an_operation_are_listed_and_described(one: Operation) -> None:
    told = described(one)
    kind = "application/problem+json"
    problems = [answer for answer in told["responses"].values() if kind in answer.get("content", {})]
    named = {code for answer in problems for code in re.findall(r"`(\w+)`:", answer["description"])}
    (schema,) = {answer["content"][kind]["schema"]["$ref"] for answer in problems}
    listed = SCHEMAS[schema.rpartition("/")[2]]["allOf"][1]["properties"]["code"]["enum"]

    assert named == set(listed) <= set(TABLE)
    assert set(one.codes) <= set(listed)


def test_every_code_of_an_enum_says_what_it_means() -> None:
    for name in ("ProblemCode", "VerdictCode"):
        schema = SCHEMAS[name]
        assert re.findall(r"^- `(\w+)`: .", schema["description"], re.MULTILINE) == schema["enum"]


def test_ids_of_operations_are_unique_and_begin_with_a_verb() -> None:
    names = [one.name for one in EVERY_OPERATION]

    assert len(names) == len(set(names))
    for name in names:
        assert re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name), name
        assert re.match("[a-z]+", name)[0] in VERBS, name  # type: ignore[index]  # it was matched as a whole


def test_whatever_answers_a_page_is_called_a_list() -> None:
    def is_page(one: Operation) -> bool:
        return isinstance(one.answer, type) and "next_cursor" in getattr(one.answer, "__struct_fields__", ())

    assert [one.name for one in EVERY_OPERATION if is_page(one) and not one.name.startswith("list")] == []


def test_every_header_that_is_described_is_answered_somewhere() -> None:
    used = {
        name
        for one in EVERY_OPERATION
        for answer in described(one)["responses"].values()
        for name in answer["headers"]
    }

    assert set(headers()) - used == set()


def test_an_answers_field_is_needed_unless_it_may_be_absent() -> None:
    """A key's fence is only there where something was taken away; its owner is null where there is none."""
    key = SCHEMAS["ChangedKeyView"]

    assert set(key["properties"]) - set(key["required"]) == {"fence"}
    assert "refusal" not in SCHEMAS["Problem"]["required"]
    assert "figures" in SCHEMAS["Rule"]["required"]


def test_a_bodys_field_with_a_default_may_be_left_out() -> None:
    assert SCHEMAS["NewKey"]["required"] == ["keyspace_id", "name"]
    assert SCHEMAS["SecretFormatBody"]["required"] == []
    assert SCHEMAS["SecretFormat"]["required"] == ["alphabet", "length", "checksum"]


def test_what_typescript_reads_is_typed() -> None:
    refusal = SCHEMAS["Problem"]["properties"]["refusal"]["anyOf"][0]["$ref"]
    results = SCHEMAS["ChargesView"]["properties"]["results"]["items"]["oneOf"]

    assert (
        refusal
        == SCHEMAS["VerdictView"]["properties"]["refusal"]["$ref"]
        == "#/components/schemas/RefusalView"
    )
    assert [one["$ref"].rpartition("/")[2] for one in results] == ["ChargeResult", "Problem"]
    assert SCHEMAS["SelfView"]["properties"]["key"]["$ref"].endswith("/OwnKeyView")
    assert SCHEMAS["VerdictView"]["properties"]["code"]["$ref"].endswith("/VerdictCode")
