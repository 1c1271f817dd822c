"""There is one reader, one check of a caller, one of each: a second one fails here, with its line.

`one_of_each.py` says where each of them is, and which other places may look like one.
"""

from __future__ import annotations

import ast
from copy import deepcopy
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import pytest

from services.api.operations import Operation
from tests.api.one_of_each import API, EACH, NONE_OF, NoneOf, One, seconds_of, signs_in, sources
from tests.api.shown_twice import THINGS, described_twice, shown
from tests.api.world import DESCRIPTION, EVERY_OPERATION

EVERY_ONE = pytest.mark.parametrize("one", EACH.values(), ids=EACH)


@EVERY_ONE
def test_there_is_one_and_it_is_where_it_is_said_to_be(one: One) -> None:
    found = [second for file, source in sources() for second in seconds_of(one, source, file)]

    assert list(signs_in((API / one.place).read_text(), one.place, one.sign))
    assert not found, "\n".join(f"services/api/{each.file}:{each.line} ({each.function})" for each in found)


@EVERY_ONE
def test_a_second_one_is_seen(one: One) -> None:
    assert seconds_of(one, one.second, "resources/planted.py")


@EVERY_ONE
def test_what_is_excused_is_there(one: One) -> None:
    seen = {found.where for file, source in sources() for found in signs_in(source, file, one.sign)}

    assert [each for each in one.excused if not any(fnmatchcase(where, each) for where in seen)] == []


NOBODY = pytest.mark.parametrize("what", NONE_OF.values(), ids=NONE_OF)


@NOBODY
def test_nobody_does_it(what: NoneOf) -> None:
    found = [one for file, source in sources() for one in signs_in(source, file, what.sign)]

    assert not found, "\n".join(f"services/api/{each.file}:{each.line} ({each.function})" for each in found)


@NOBODY
def test_somebody_who_does_it_is_seen(what: NoneOf) -> None:
    assert list(signs_in(what.planted, "resources/planted.py", what.sign))


def test_every_operation_that_a_module_declares_is_served() -> None:
    """What is forgotten in ROUTES would answer 404, and be in no description."""
    served = {id(one.handler) for one in EVERY_OPERATION}
    declared = {
        f"{file}:{name}": id(value.handler)
        for file, source in sources()
        if "@operation" in source
        for name, value in vars(import_module(f"services.api.{file[:-3].replace('/', '.')}")).items()
        if isinstance(value, Operation)
    }

    assert len(declared) > 50
    assert [name for name, handler in declared.items() if handler not in served] == []


def test_a_path_of_the_api_is_written_in_one_file() -> None:
    """A route stands beside its handler: nothing else in the HTTP layer decides by path."""
    files: dict[str, set[str]] = {}
    for file, source in sources():
        if file == "serving/forwarding.py":
            continue  # it says of whole groups of paths who answers them, before any route is found
        tree = ast.parse(source)
        # A route is declared with its method, and names the one that shows what it makes.
        named = {
            one.value for one in ast.walk(tree) if isinstance(one, ast.keyword) and one.arg == "shown_at"
        }
        named |= {
            one.args[1]
            for one in ast.walk(tree)
            if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == "operation"
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Constant) or node in named or not isinstance(node.value, str):
                continue
            if node.value.startswith("/v1/") and " " not in node.value:
                files.setdefault(node.value, set()).add(file)

    assert {path: told for path, told in files.items() if len(told) > 1} == {}


# -- one struct for each thing that is shown


def test_each_thing_has_one_description() -> None:
    document = DESCRIPTION.document

    assert {thing.component for thing in THINGS.values()} <= set(shown(document))
    assert described_twice(document) == []


def with_a_second(name: str, component: dict[str, Any]) -> dict[str, Any]:
    """The document, when a route answers one thing more."""
    document = deepcopy(DESCRIPTION.document)
    document["components"]["schemas"][name] = component
    schema = {"$ref": f"#/components/schemas/{name}"}
    document["paths"]["/v1/more"] = {
        "get": {"responses": {"200": {"content": {"application/json": {"schema": schema}}}}}
    }
    return document


@pytest.mark.parametrize("thing", THINGS.values(), ids=THINGS)
def test_a_second_struct_for_a_thing_is_seen(thing: Any) -> None:
    fields = {**DESCRIPTION.document["components"]["schemas"][thing.component]["properties"]}
    left_out = next(name for name in fields if name not in thing.known_by)
    del fields[left_out]

    assert described_twice(with_a_second("SecondView", {"properties": fields | {"one_more": {}}}))


def test_a_thing_inside_another_answer_is_the_same_struct() -> None:
    other = {"properties": {"micros": {"type": "integer"}, "at": {"type": "string"}}}
    document = with_a_second("ChargeFigures", other)
    envelope = {"properties": {"charge": {"$ref": "#/components/schemas/ChargeFigures"}}}
    document["components"]["schemas"]["SecondView"] = envelope
    schema = document["paths"]["/v1/more"]["get"]["responses"]["200"]["content"]["application/json"]
    schema["schema"]["$ref"] = "#/components/schemas/SecondView"

    assert described_twice(document) == ["SecondView.charge is a ChargeFigures, not a ChargeView"]


def test_two_structs_of_the_same_fields_are_seen_whatever_they_are_called() -> None:
    fields = DESCRIPTION.document["components"]["schemas"]["FenceResult"]["properties"]

    (told,) = described_twice(with_a_second("FenceView", {"properties": fields}))

    assert "FenceResult and FenceView" in told
