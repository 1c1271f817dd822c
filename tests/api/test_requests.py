"""The request log over HTTP. That every filter finds what it should is in tests/contract."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from domain import commands as c
from keyledger_language.instants import SECOND, to_text
from projections import requests as projected
from tests.api.quick.world import Owned
from tests.api.world import Management


class Two(NamedTuple):
    """Two keys of two organizations in two keyspaces, each charged once, the first refused once."""

    own: Owned
    other: Owned


@pytest.fixture
async def two(api: Management) -> Two:
    own, other = [
        await api.make_key(await api.make_keyspace(preset), await api.make_organization(credit=1_000))
        for preset in ("default", "leadmagic")
    ]
    for number, key in enumerate((own, other), start=1):
        body = {"key_id": key.id, "request_id": f"r-{number}", "amount_micros": 400, "model": "gpt-5"}
        assert (await api.post("/v1/charges", body)).status == 201
    refused = {"key_id": own.id, "request_id": "r-3", "amount_micros": 4_000}
    assert (await api.post("/v1/charges", refused)).status == 402
    seen = api.ledger._sightings.take(api.clock.now())
    assert seen is not None
    await api.do(seen)
    return Two(own, other)


async def listed(api: Management, query: str = "", **named: Any) -> list[str]:
    reply = await api.get(f"/v1/requests{query}", **named)
    assert reply.status == 200, reply.body
    return [one["request_id"] for one in reply.json["items"]]


async def test_all_requests_are_listed_newest_first(api: Management, two: Two) -> None:
    refused, _, charged = (await api.get("/v1/requests")).json["items"]

    assert await listed(api) == ["r-3", "r-2", "r-1"]
    assert (refused["kind"], refused["code"], refused["amount_micros"]) == (
        "refusal",
        "billing_shortfall",
        4_000,
    )
    assert (charged["kind"], charged["code"], charged["model"]) == ("charge", None, "gpt-5")
    assert (charged["base_micros"], charged["price_multiplier"], charged["amount_micros"]) == (400, "1", 400)


async def test_requests_are_chosen_by_organization_key_and_code(api: Management, two: Two) -> None:
    organization_id = api.ledger.books.keys[two.other.id].organization_id

    assert await listed(api, f"?organization_id={organization_id}") == ["r-2"]
    assert await listed(api, f"?key_id={two.own.id}") == ["r-3", "r-1"]
    assert await listed(api, f"?key_id={two.own.id}&organization_id={organization_id}") == []
    assert await listed(api, "?code=billing_shortfall") == ["r-3"]
    assert await listed(api, "?code=valid") == ["r-2", "r-1"]
    assert await listed(api, "?code=rate_limited") == []


async def test_a_code_that_there_is_not_is_refused_and_those_there_are_are_told(api: Management) -> None:
    reply = await api.get("/v1/requests?code=billing")

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "code")
    assert "billing_shortfall" in reply.json["errors"][0]["message"]


async def test_a_span_holds_what_was_written_from_then_up_to_then(api: Management, two: Two) -> None:
    first = next(one for one in api.reader.events.placed() if getattr(one.event, "request_id", "") == "r-1")
    at = first.event.at

    assert await listed(api, f"?from={to_text(at)}&to={to_text(at + SECOND)}") == ["r-3", "r-2", "r-1"]
    assert await listed(api, f"?to={to_text(at)}") == []
    assert await listed(api, f"?from={to_text(at + SECOND)}") == []


async def test_pages_follow_each_other_without_a_gap(api: Management, two: Two) -> None:
    found: list[str] = []
    cursor = ""
    while True:
        page = (await api.get(f"/v1/requests?limit=1{cursor}")).json
        found += [one["request_id"] for one in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"

    assert found == ["r-3", "r-2", "r-1"]


async def test_a_bound_root_key_sees_the_requests_of_its_own_only(api: Management, two: Two) -> None:
    keys = api.ledger.books.keys
    own, other = keys[two.own.id], keys[two.other.id]
    of_organization = await api.make_root("usage:read", organization_id=other.organization_id)
    of_keyspace = await api.make_root("usage:read", bound_keyspace_id=other.keyspace_id)

    for secret in (of_organization, of_keyspace):
        assert await listed(api, as_=secret) == ["r-2"]
        assert await listed(api, f"?key_id={own.id}", as_=secret) == []
        assert await listed(api, f"?organization_id={own.organization_id}", as_=secret) == []


async def test_the_requests_of_a_deleted_key_are_listed(api: Management, two: Two) -> None:
    await api.do(c.DeleteKey(key_id=two.own.id))

    assert await listed(api, f"?key_id={two.own.id}") == ["r-3", "r-1"]


async def test_requests_need_usage_read(api: Management) -> None:
    reply = await api.get("/v1/requests", as_=await api.make_root("keys:read"))

    assert (reply.status, reply.code) == (403, "permission_denied")


async def test_a_platform_with_many_organizations_names_one_to_find_a_request(
    api: Management, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    organization_id = api.ledger.books.keys[two.own.id].organization_id
    searched = await api.get("/v1/requests/r-1")
    monkeypatch.setattr(projected, "MOST_SEARCHED", 1)
    refused = await api.get("/v1/requests/r-1")
    named = await api.get(f"/v1/requests/r-1?organization_id={organization_id}")
    of_it = await api.make_root("usage:read", organization_id=organization_id)

    assert searched.json["items"] == named.json["items"]
    assert (refused.status, refused.code) == (400, "invalid_request")
    assert [error["field"] for error in refused.json["errors"]] == ["organization_id"]
    assert (await api.get("/v1/requests/r-1", as_=of_it)).status == 200
