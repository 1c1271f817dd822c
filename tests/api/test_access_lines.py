"""The access log: refusals always, granted quick requests by setting, and never so much that a disk fills."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from services.api.answering import lines
from services.api.answering.lines import MOST_A_SECOND
from tests.api.quick.world import Reply, call
from tests.api.world import Management


def requests_in(logs: list[Any]) -> list[tuple[str, str, int, str]]:
    return [
        (one["method"], one["path"], one["status"], one["code"]) for one in logs if one["event"] == "request"
    ]


async def quick(api: Management, made: dict[str, Any], *, at_once: bool) -> list[Reply]:
    """A verdict, a charge, and forward-auth; all are granted."""
    shown, secret = {"Authorization": f"Bearer {api.root}"}, made["secret"]
    keyspace_id = made["key"]["keyspace_id"]
    proxied = {"X-Keyledger-Proxy-Key": api.root, "X-API-Key": secret}
    verify = {"secret": secret, "keyspace_id": keyspace_id}
    charge = verify | {"request_id": "r-1", "amount_micros": 0}
    auth = f"/v1/forward-auth?keyspace_id={keyspace_id}"
    return [
        await call(api.app, "POST", "/v1/verify", headers=shown, body=verify, at_once=at_once),
        await call(api.app, "POST", "/v1/charges", headers=shown, body=charge, at_once=at_once),
        await call(api.app, "GET", auth, headers=proxied, at_once=at_once),
    ]


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("log_granted", [True, False])
async def test_granted_quick_requests_have_a_line_where_the_operator_asks_for_it(
    api: Management, *, log_granted: bool, at_once: bool
) -> None:
    made = await api.create()
    api.serve(log_granted=log_granted)
    with capture_logs() as logs:
        replies = await quick(api, made, at_once=at_once)
        await api.get("/v1/plans")

    assert [reply.status for reply in replies] == [200, 201, 200]
    granted = [
        ("POST", "/v1/verify", 200, "valid"),
        ("POST", "/v1/charges", 201, "ok"),
        ("GET", "/v1/forward-auth", 200, "valid"),
    ]
    assert requests_in(logs) == [*(granted if log_granted else []), ("GET", "/v1/plans", 200, "ok")]


async def test_a_refused_quick_request_is_found_by_its_request_id(api: Management) -> None:
    charge = {"key_id": "key_1", "request_id": "r-1", "amount_micros": 1}
    with capture_logs() as logs:
        refused = await api.post("/v1/charges", charge)

    (line,) = [one for one in logs if one["event"] == "request"]

    assert (line["status"], line["code"]) == (refused.status, "not_found") == (404, "not_found")
    assert line["request_id"] == refused.headers["x-request-id"]
    assert line["caller"] == next(iter(api.ledger.books.keys))


async def test_of_a_flood_of_refusals_some_have_a_line_and_the_rest_is_a_number(
    api: Management, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(lines, "monotonic", lambda: now[0])
    bad: dict[str, Any] = {"secret": 1}
    with capture_logs() as logs:
        for _ in range(MOST_A_SECOND + 3):
            await api.post("/v1/verify", bad)
        now[0] += 0.999
        await api.post("/v1/verify", bad)

    assert len(requests_in(logs)) == MOST_A_SECOND

    now[0] += 0.001
    with capture_logs() as logs:
        await api.post("/v1/verify", bad)

    assert [one["number"] for one in logs if one["event"] == "requests.refused_without_a_line"] == [4]
    assert len(requests_in(logs)) == 1
    counted = (await api.get("/metrics")).body.decode()
    assert (
        'keyledger_answers_total{code="invalid_request",method="POST",route="/v1/verify",status="400"} '
        f"{MOST_A_SECOND + 5}.0"
    ) in counted
