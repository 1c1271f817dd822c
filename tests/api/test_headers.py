"""What headers say of every operation: each is honoured, or refused by its name."""

from __future__ import annotations

import pytest

from services.api.operations import Operation
from tests.api.good_requests import ask_well, one_of_everything
from tests.api.world import EVERY_OPERATION, Management

OURS = [one for one in EVERY_OPERATION if one.path.startswith("/v1/") and not one.proxied]
CHANGES = [one for one in OURS if one.method != "GET"]


def named(one: Operation) -> str:
    return f"{one.method}-{one.path}"


@pytest.mark.parametrize("one", EVERY_OPERATION, ids=named)
async def test_every_operation_has_a_good_request(api: Management, one: Operation) -> None:
    answer = await ask_well(api, await one_of_everything(api), one)

    assert answer.status == one.status, answer.body


@pytest.mark.parametrize("one", OURS, ids=named)
async def test_if_match_is_compared_or_refused(api: Management, one: Operation) -> None:
    things = await one_of_everything(api)
    head = api.ledger.books.head
    answer = await ask_well(api, things, one, if_match='"77"')

    assert api.ledger.books.head == head, "nothing is written"
    if one.conditional:
        assert (answer.status, answer.code) == (412, "version_conflict")
    else:
        assert (answer.status, answer.code) == (400, "unsupported_header")
        assert [each["field"] for each in answer.json["errors"]] == ["If-Match"]


@pytest.mark.parametrize("one", CHANGES, ids=named)
async def test_a_change_of_what_has_a_version_may_name_it(api: Management, one: Operation) -> None:
    answer = await ask_well(api, await one_of_everything(api), one)

    if one.conditional or one.status != 201:
        assert ("etag" in answer.headers) is one.conditional


@pytest.mark.parametrize("one", OURS, ids=named)
async def test_an_idempotency_key_is_kept_or_refused(api: Management, one: Operation) -> None:
    things = await one_of_everything(api)
    head = api.ledger.books.head
    first = await ask_well(api, things, one, idempotency_key="mine")
    wrote = api.ledger.books.head
    again = await ask_well(api, things, one, idempotency_key="mine")

    assert (wrote > head) is one.idempotent
    assert api.ledger.books.head == wrote or not one.idempotent, "it is carried out once"
    if one.idempotent:
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers
        assert (again.status, again.headers.get("etag")) == (first.status, first.headers.get("etag"))
    else:
        assert (first.status, first.code) == (400, "unsupported_header")
        assert [each["field"] for each in first.json["errors"]] == ["Idempotency-Key"]


@pytest.mark.parametrize("one", CHANGES, ids=named)
async def test_a_change_of_state_is_idempotent_or_has_another_name(api: Management, one: Operation) -> None:
    things = await one_of_everything(api)
    head = api.ledger.books.head
    await ask_well(api, things, one)

    if api.ledger.books.head > head and not one.idempotent:
        assert one.instead_of_a_key != Operation.instead_of_a_key, "it does change something"


@pytest.mark.parametrize("one", [one for one in EVERY_OPERATION if one.path.startswith("/v1/")], ids=named)
async def test_every_answer_says_on_which_state_it_rests_and_is_kept_by_nobody(
    api: Management, one: Operation
) -> None:
    things = await one_of_everything(api)
    answers = [
        await ask_well(api, things, one),
        await ask_well(api, things, one, authorization="Bearer nobody", x_keyledger_proxy_key="nobody"),
    ]

    assert [answer.headers["cache-control"] for answer in answers] == ["no-store", "no-store"]
    assert "x-keyledger-position" in answers[0].headers
