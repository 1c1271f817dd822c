"""The examples of the API description are what a ledger answers."""

import msgspec

from services.api.description.examples import examples
from tests.api.world import EVERY_OPERATION
from tests.docs import api_routes
from tests.docs.api_examples import RECORDED, recorded, to_json

UNLIKE_ANY_OTHER = {"getSchema", "getDocs", "getMetrics", "getStart"}
"""Their answers are long texts, and a document that would hold itself."""


async def test_every_example_is_what_a_ledger_answers(database: str) -> None:
    came = to_json(await recorded(database))

    assert msgspec.json.decode(came) == msgspec.json.decode(RECORDED.read_bytes()), "run `make examples`"


def test_every_operation_has_an_example() -> None:
    assert set(examples()) | UNLIKE_ANY_OTHER == {one.name for one in EVERY_OPERATION}


def test_every_body_that_is_shown_is_that_of_its_operation() -> None:
    shown = {name: example.body for name, example in examples().items()}

    assert {one.name: one.example for one in EVERY_OPERATION if one.name in shown} == shown


def test_the_tables_of_routes_are_those_of_the_operations() -> None:
    assert api_routes.written() == api_routes.tables(), "run `make examples`"


def test_no_secret_is_shown() -> None:
    text = RECORDED.read_text()

    assert "kl_root_..." in text
    assert "acme_live_..." in text
    for shape in ("kl_root_", "acme_live_"):
        after = [part[:12] for part in text.split(shape)[1:]]
        assert [part for part in after if len(part) == 12 and part.isalnum()] == []
