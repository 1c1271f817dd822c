"""The API description tells of everything, and the truth: all tests check their answers by it."""

import re
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.api.answering.problems import TABLE
from services.api.asking.fields import NoBody
from services.api.asking.reading import reader_of
from services.api.description import openapi, schema
from services.api.operations import Operation
from services.api.serving.app import ROUTES
from tests.api.world import DESCRIPTION, EVERY_OPERATION, Management

CONTRACT = """
    POST /v1/keyspaces
    GET /v1/keyspaces
    GET /v1/keyspaces/{}
    PATCH /v1/keyspaces/{}
    POST /v1/keyspaces/{}/archive
    POST /v1/organizations
    GET /v1/organizations
    GET /v1/organizations/{}
    PATCH /v1/organizations/{}
    POST /v1/organizations/{}/suspend
    POST /v1/organizations/{}/resume
    POST /v1/organizations/{}/projects
    GET /v1/organizations/{}/projects
    PATCH /v1/organizations/{}/projects/{}
    POST /v1/organizations/{}/projects/{}/archive
    GET /v1/organizations/{}/wallet
    PATCH /v1/organizations/{}/wallet
    POST /v1/organizations/{}/wallet/credits
    GET /v1/organizations/{}/wallet/statement
    POST /v1/plans
    GET /v1/plans
    GET /v1/plans/{}
    PATCH /v1/plans/{}
    POST /v1/keys
    POST /v1/keys/import
    GET /v1/keys
    GET /v1/keys/{}
    PATCH /v1/keys/{}
    PATCH /v1/keys/{}/scopes
    POST /v1/keys/{}/rotate
    POST /v1/keys/{}/disable
    POST /v1/keys/{}/enable
    POST /v1/keys/{}/revoke
    POST /v1/keys/revoke
    DELETE /v1/keys/{}
    GET /v1/keys/{}/history
    GET /v1/keys/{}/usage
    GET /v1/organizations/{}/usage
    POST /v1/verify
    POST /v1/verify/batch
    GET /v1/forward-auth
    GET /v1/forward-auth/{}
    POST /v1/charges
    POST /v1/charges/batch
    GET /v1/charges/{}
    POST /v1/charges/{}/refund
    POST /v1/reservations
    GET /v1/reservations/{}
    POST /v1/reservations/{}/capture
    POST /v1/reservations/{}/release
    GET /v1/requests
    GET /v1/requests/{}
    GET /v1/self
    POST /v1/self/revoke
    POST /v1/explain
    GET /v1/audit
    GET /v1/events
    GET /v1/edges
    POST /v1/leaks
    GET /v1/fences/{}
    GET /healthz
    GET /readyz
    GET /metrics
    GET /docs
    GET /schema/openapi.json
"""
DOCS = Path(__file__).parents[2] / "docs"


def described_routes() -> set[str]:
    return {
        f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
        for path, methods in DESCRIPTION.document["paths"].items()
        for method in methods
    }


@pytest.mark.parametrize("route", CONTRACT.strip().splitlines())
def test_every_route_of_the_contract_is_described(route: str) -> None:
    assert route.strip() in described_routes()


def test_every_route_that_is_served_is_described() -> None:
    served = {f"{one.method} {re.sub(r'{[^}]*}', '{}', one.path)}" for route in ROUTES for one in [route]}

    assert served <= described_routes()


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=lambda one: one.name)
def test_every_operation_is_told_of_in_full(one: Operation) -> None:
    described = DESCRIPTION.document["paths"][one.path][one.method.lower()]

    assert described["summary"]
    assert described["tags"][0] in {tag["name"] for tag in DESCRIPTION.document["tags"]}
    assert described["responses"]
    assert set(one.codes) <= set(TABLE)
    if one.permissions:
        assert described["security"] == [{"rootKey": []}]
        assert {"401", "403"} <= set(described["responses"])
    names = {parameter["name"] for parameter in described["parameters"]}
    assert set(re.findall(r"{(\w+)}", one.path)) <= names
    if one.idempotent:
        assert "Idempotency-Key" in names
    if one.conditional:
        assert "If-Match" in names


@pytest.mark.parametrize(
    "one", [one for one in EVERY_OPERATION if one.example is not None], ids=lambda one: one.name
)
def test_every_example_is_a_body_that_is_taken(one: Operation) -> None:
    for kind in one.bodies[:1] or (one.body,):
        reader_of(kind)(msgspec.json.encode(one.example), lambda _: False)


@pytest.mark.parametrize(
    "one",
    [one for one in EVERY_OPERATION if one.method != "GET" and one.body is not NoBody],
    ids=lambda one: one.name,
)
def test_every_field_that_is_needed_has_an_example(one: Operation) -> None:
    needed = any(field.required for field in msgspec.structs.fields(one.body))
    if needed:
        assert one.example is not None


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        found = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return found.union(*(references(inner) for inner in value.values()))
    if isinstance(value, list):
        return set().union(*(references(inner) for inner in value))
    return set()


def test_every_reference_leads_somewhere() -> None:
    known = {
        f"#/components/{kind}/{name}"
        for kind, named in DESCRIPTION.document["components"].items()
        for name in named
    }

    assert references(DESCRIPTION.document) <= known


async def test_the_description_is_served_as_json(api: Management) -> None:
    served = await api.get("/schema/openapi.json")

    assert served.json["openapi"].startswith("3.1")
    assert served.json == msgspec.json.decode(msgspec.json.encode(DESCRIPTION.document))


@pytest.mark.parametrize("path", ["/docs", "/schema/openapi.json"])
async def test_making_the_description_holds_nobody_up(
    api: Management, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_on: list[threading.Thread] = []

    def describe(*what: Any) -> dict[str, Any]:
        made_on.append(threading.current_thread())
        return openapi.describe(*what)

    monkeypatch.setattr(schema, "describe", describe)
    assert (await api.get(path)).status == 200

    assert len(made_on) == 1
    assert made_on[0] is not threading.current_thread(), "on the event loop, where all others wait"


async def test_the_page_for_people_loads_nothing_from_elsewhere(api: Management) -> None:
    page = (await api.get("/docs")).body.decode()

    assert not re.findall(r'(?:src|href)="(?!#|/schema/)', page)
    assert "<script" not in page
    for one in EVERY_OPERATION:
        assert f'id="{one.name}"' in page
    for code in TABLE:
        assert f'id="{code}"' in page


@pytest.mark.parametrize("code", TABLE)
def test_every_code_is_documented_with_its_status(code: str) -> None:
    written = (DOCS / "errors.md").read_text()

    assert re.search(rf"^\| `{code}` \| {TABLE[code].status} \|", written, re.MULTILINE)


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=lambda one: one.name)
def test_every_route_is_documented(one: Operation) -> None:
    assert f"{one.method} {one.path}" in (DOCS / "http.md").read_text()


def test_schemas_have_plain_names() -> None:
    assert [name for name in DESCRIPTION.document["components"]["schemas"] if not name.isidentifier()] == []


def test_notes_under_fields_are_told() -> None:
    schemas = DESCRIPTION.document["components"]["schemas"]

    assert schemas["Rotation"]["properties"]["overlap_seconds"]["description"].startswith(
        "How long the present"
    )
    parameters = DESCRIPTION.document["paths"]["/v1/keys/{key_id}/usage"]["get"]["parameters"]
    (to,) = [one for one in parameters if one["name"] == "to"]
    assert to["description"] == "The end, not included."
