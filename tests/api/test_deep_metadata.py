"""Metadata is 32 levels deep at most, wherever it is sent; what is deeper in the log already is shown cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from domain.metadata import TOO_DEEP
from tests.api.quick.world import Owned
from tests.api.world import Management

DEEPEST_EVER = 971
"""So deep a charge's metadata could be, before there was a bound."""


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {"n": 1}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def levels_of(value: Any) -> int:
    levels = 0
    while isinstance(value, dict):
        value = next(iter(value.values()))
        levels += 1
    return levels


@pytest.fixture
async def owned(api: Management) -> Owned:
    keyspace, acme = await api.make_keyspace(), await api.make_organization(credit=1_000)
    return await api.make_key(keyspace, acme)


async def charge(api: Management, owned: Owned, metadata: Any, path: str = "/v1/charges") -> Any:
    ask = {"key_id": owned.id, "request_id": "r1", "amount_micros": 1, "metadata": metadata}
    return await api.post(path, {"items": [ask]} if path.endswith("batch") else ask)


@pytest.mark.parametrize("path", ["/v1/charges", "/v1/reservations"])
async def test_metadata_of_a_use_is_at_most_32_levels_deep(api: Management, owned: Owned, path: str) -> None:
    fits = await charge(api, owned, nested(32), path)
    deeper = await charge(api, owned, nested(33), path)

    assert fits.status == 201
    assert (deeper.status, deeper.code) == (400, "invalid_request")
    assert [one["field"] for one in deeper.json["errors"]] == ["metadata"]


async def test_so_is_that_of_a_batchs_item(api: Management, owned: Owned) -> None:
    fits = await charge(api, owned, nested(32), "/v1/charges/batch")
    deeper = await charge(api, owned, nested(33), "/v1/charges/batch")

    assert fits.json["results"][0]["status"] == 201
    assert deeper.json["results"][0]["errors"][0]["field"] == "metadata"


@pytest.mark.parametrize("path", ["/v1/verify", "/v1/explain"])
async def test_so_is_that_of_a_question(api: Management, owned: Owned, path: str) -> None:
    ask = {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id}
    fits = await api.post(path, ask | {"metadata": nested(32)})
    deeper = await api.post(path, ask | {"metadata": nested(33)})

    assert (fits.status, deeper.status, deeper.json["errors"][0]["field"]) == (200, 400, "metadata")


async def test_so_is_that_of_a_key_and_of_an_organization(api: Management, owned: Owned) -> None:
    fits = await api.patch(f"/v1/keys/{owned.id}", {"metadata": nested(32)})
    deeper = await api.patch(f"/v1/keys/{owned.id}", {"metadata": nested(33)})
    opened = await api.post("/v1/organizations", {"name": "Deep", "metadata": nested(32)})
    refused = await api.post("/v1/organizations", {"name": "Deeper", "metadata": nested(33)})

    assert (fits.status, fits.json["metadata"] == nested(32)) == (200, True)
    assert [one["field"] for one in deeper.json["errors"]] == ["metadata"]
    assert (opened.status, refused.status, refused.json["errors"][0]["field"]) == (201, 400, "metadata")


async def test_deeper_metadata_in_the_log_is_shown_as_far_as_it_can_be(api: Management, owned: Owned) -> None:
    made = await charge(api, owned, nested(2))
    deepen(api, int(made.json["position"].partition("-")[2]))

    feed = await api.get("/v1/events?limit=500&types=UsageCharged")
    found = await api.get("/v1/requests/r1")
    replayed = await charge(api, owned, None)

    assert feed.status == 200, feed.body
    assert found.status == 200, found.body
    shown = feed.json["items"][0]["data"]["metadata"]
    assert (levels_of(shown), TOO_DEEP in str(shown)) == (32, True)
    assert found.json["items"][0]["metadata"] == shown
    assert replayed.json["replayed"] is True


def deepen(api: Management, position: int) -> None:
    """Let the log hold what was taken once: metadata as deep as it could be sent."""
    mapper, events = api.ledger._ports.mapper, api.storage.events
    recorded = events[position - 1]
    event = mapper.decode(recorded)
    assert event.private is not None
    private = msgspec.structs.replace(event.private, metadata=nested(DEEPEST_EVER))
    event = msgspec.structs.replace(event, private=private)
    with ThreadPoolExecutor(1) as shallow:
        new = shallow.submit(mapper.new_event, recorded.stream, recorded.version, event).result()
    events[position - 1] = recorded._replace(data=new.data)
