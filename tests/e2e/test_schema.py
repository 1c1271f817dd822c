"""Requests made from the API description, with data that exists, against a ledger that runs.

schemathesis makes them, good ones and bad ones, and judges each answer by the document: no 5xx, and status,
content type, headers and body as described; what is no request of the document is refused, and so is a
method that a path has not. `make campaign-schema` makes many more; KEYLEDGER_TEST_SEED makes others.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from requests import Session
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from tests.api.operations.document import DOCUMENT, EVERY, Described
from tests.api.operations.goods import Stocked, Things
from tests.e2e.ledgers import place
from tests.e2e.running import Running

SEED: Final = int(os.environ.get("KEYLEDGER_TEST_SEED", "8"))
EXAMPLES: Final = int(os.environ.get("KEYLEDGER_SCHEMA_EXAMPLES", "6"))
CHECKS: Final[list[Any]] = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
_CONFIG: Final = schemathesis.Config.from_dict(
    {
        "generation": {"with-security-parameters": False},
        "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}},
    }
)
_SCHEMA: Final = schemathesis.openapi.from_dict(DOCUMENT, config=_CONFIG)


SLOW_TO_MAKE: Final = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


class Linked(Stocked):
    """A ledger with one of everything that a request may name."""

    def __init__(self, running: Running) -> None:
        super().__init__(running.root_key)
        self.running = running
        self.session = Session()
        self.statuses: Counter[int] = Counter()

    def fresh(self) -> None:
        """Make one of everything anew: what was asked before may have ended what there was."""
        running, root = self.running, self.running.root
        self.prefix = running.prefix()
        keyspace = running.keyspace(prefix=self.prefix)
        organization = running.organization(10**12)
        made = running.key(organization, keyspace)
        use = {"key_id": made.id, "amount_micros": 1_000}
        request_id = running.name("request")
        charged = root.post("/v1/charges", {**use, "request_id": request_id}, 201)
        held = root.post("/v1/reservations", {**use, "request_id": running.name("held")}, 201)
        self.secret = made.secret
        self.proxy = running.root_made("verify", bound_keyspace_id=keyspace).secret
        self.things = Things(
            {
                "keyspace_id": keyspace,
                "archiveKeyspace.keyspace_id": running.keyspace(prefix=running.prefix()),
                "organization_id": organization,
                "project_id": running.project(organization),
                "plan_id": running.plan(),
                "key_id": made.id,
                "charge_id": charged["charge"]["id"],
                "reservation_id": held["reservation"]["id"],
                "request_id": request_id,
                "position": charged["position"],
                "path": "v1/chat",
            }
        )

    def link(self, case: Case[Any]) -> None:
        """Put ids of things that exist into what was made up, and what only the ledger can have told."""
        case.body = self.linked(case.body)
        query = self.linked(dict(case.query or {}))
        query.pop("cursor", None)
        told = {"after": self.things.ids["position"]}
        case.query = {name: told.get(name, value) for name, value in query.items()}
        told = {
            "X-Keyledger-Position": self.things.ids["position"],
            "Idempotency-Key": self.running.name("key"),
            "If-Match": "*",
        }
        for name in told.keys() & (case.headers or {}).keys():
            case.headers[name] = told[name]

    def linked(self, value: Any, name: str = "") -> Any:
        """What was made up, with ids of things that exist."""
        if isinstance(value, dict):
            return {each: self.linked(inner, each) for each, inner in value.items()}
        if isinstance(value, list):
            return [self.linked(inner, name.removesuffix("s")) for inner in value]
        if not isinstance(value, str) or name == "request_id":
            return value
        return self.secret if name == "secret" else self.things.ids.get(name, value)

    def send(self, one: Described, case: Case[Any], checks: list[Any]) -> int:
        """Send it, and judge the answer by the document."""
        headers = dict(self.headers_of(one))
        answer = case.call(base_url=self.running.url, session=self.session, headers=headers)
        case.validate_response(answer, checks=checks)
        self.statuses[answer.status_code] += 1
        return answer.status_code


@pytest.fixture(scope="module")
def ledger() -> Iterator[Linked]:
    """One of our own: it is asked to end things that other tests go by."""
    print(f"\nseed {SEED}, {EXAMPLES} examples of each kind for each of {len(EVERY)} operations")
    with place() as here:
        here.start()
        running = Running(here)
        made = Linked(running)
        yield made
        print(f"\n{made.statuses.total()} requests were answered {dict(sorted(made.statuses.items()))}")
        made.session.close()
        for caller in running.callers:
            caller.close()


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_the_example_of_the_document_works(ledger: Linked, one: Described) -> None:
    ledger.fresh()
    good = ledger.good(one)
    case = _SCHEMA[one.path][one.method].Case(
        path_parameters={name: ledger.id_for(one, name) for name in one.parameters("path")},
        query=dict(good.query),
    )
    if "requestBody" in one.about:
        case.body, case.media_type = cast(Any, good.body), "application/json"

    assert ledger.send(one, case, CHECKS) < 300


def ask(ledger: Linked, one: Described, mode: GenerationMode) -> None:
    """Ask it what is made up."""
    ledger.fresh()
    ids = {name: ledger.id_for(one, name) for name in one.parameters("path")}
    strategy = _SCHEMA[one.path][one.method].as_strategy(generation_mode=mode, path_parameters=ids or None)
    refused = [] if one.item is not None else [checks.negative_data_rejection]

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES, database=None, phases=[Phase.generate], suppress_health_check=SLOW_TO_MAKE
    )
    @given(case=strategy)
    def send(case: Case[Any]) -> None:
        if mode is GenerationMode.POSITIVE:
            ledger.link(case)
            ledger.send(one, case, CHECKS)
        else:
            # Of many things each has its own result: a bad one is refused alone, and the whole is answered.
            ledger.send(one, case, CHECKS + refused)

    send()


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_what_the_document_has_is_answered_as_it_says(ledger: Linked, one: Described) -> None:
    ask(ledger, one, GenerationMode.POSITIVE)


TAKES_SOMETHING: Final = [
    one
    for one in EVERY
    if not one.declared.proxied and (one.parameters("query") or "requestBody" in one.about)
]


@pytest.mark.parametrize("one", TAKES_SOMETHING, ids=lambda one: one.name)
def test_what_the_document_has_not_is_refused(ledger: Linked, one: Described) -> None:
    ask(ledger, one, GenerationMode.NEGATIVE)


METHODS: Final = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"}


@pytest.mark.parametrize("path", sorted({one.path for one in EVERY if not one.declared.proxied}))
def test_a_method_that_the_document_has_not_is_refused(ledger: Linked, path: str) -> None:
    has = {one.method for one in EVERY if one.path == path}
    for method in sorted(METHODS - has):
        answer = ledger.session.request(method, ledger.running.url + path)

        assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed"), method
        assert has <= set(answer.headers["Allow"].split(", "))
