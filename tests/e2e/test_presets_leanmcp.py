"""The preset `leanmcp`: `leanmcp_` and 64 hex; Bearer; nobody calls without a balance."""

import re

import pytest

from tests.e2e.presets import Shop, denied, no_secret_is_written, passed, self_is_free, shop
from tests.e2e.running import UNIT, Running


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "leanmcp")


def test_a_secret_is_leanmcp_and_64_hex(here: Shop) -> None:
    assert re.fullmatch("leanmcp_[0-9a-f]{64}", here.secret)


def test_it_is_shown_as_bearer_and_nowhere_else(here: Shop) -> None:
    passed(here.gateway.use(here.secret), here)
    denied(here.gateway.ask(X_API_Key=here.secret), 401, "missing")
    denied(here.gateway.ask(f"/?key={here.secret}"), 401, "missing")


def test_another_shape_is_malformed_and_a_stranger_not_found(here: Shop) -> None:
    denied(here.gateway.use(here.secret[:-1]), 401, "malformed")
    denied(here.gateway.use(here.secret[:-1] + "G"), 401, "malformed")
    denied(here.gateway.use("leanmcp_" + "0" * 64), 401, "not_found")


def test_a_use_without_a_cost_needs_a_balance(here: Shop) -> None:
    poor = here.poor()
    denied(here.gateway.use(poor.secret), 402, "billing_shortfall")

    here.running.deposit(poor.key["organization_id"], 1)
    assert here.gateway.use(poor.secret).status == 200


def test_a_postpaid_customer_has_balance_enough(here: Shop) -> None:
    late = here.poor()
    organization_id = late.key["organization_id"]
    here.running.root.patch(f"/v1/organizations/{organization_id}/wallet", {"credit_limit_micros": None})

    assert here.gateway.use(late.secret).status == 200


def test_a_use_without_a_cost_needs_something_left_of_every_quota(here: Shop) -> None:
    capped = here.key(quotas=[{"unit": "micros", "window": "month", "limit": 10}])
    assert here.gateway.use(capped.secret).status == 200
    here.running.root.post(
        "/v1/charges",
        {"key_id": capped.id, "request_id": here.running.name("all"), "amount_micros": 10},
        201,
    )

    denied(here.gateway.use(capped.secret), 402, "api_key_quota_exceeded")
    verdict = here.running.verify(capped.secret, here.keyspace_id)
    assert (verdict["code"], verdict["refusal"]["remaining"]) == ("api_key_quota_exceeded", 0)


def test_self_is_free_also_without_a_balance(here: Shop) -> None:
    told = self_is_free(here, Authorization=f"Bearer {here.secret}")
    assert told["wallet_available_micros"] <= UNIT

    poor = here.poor()
    assert here.client.ask("GET", "/v1/self", None, Authorization=f"Bearer {poor.secret}").status == 200


def test_no_log_holds_it(here: Shop) -> None:
    no_secret_is_written(here)
