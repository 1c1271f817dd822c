"""The preset `mindproxy`: `sk-` and base62; Bearer, x-api-key or `?key=`; 402 for quota and wallet."""

import re

import pytest

from tests.e2e.presets import Shop, denied, no_secret_is_written, passed, self_is_free, shop
from tests.e2e.running import Running, refused


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "mindproxy")


def test_a_secret_is_sk_and_base62(here: Shop) -> None:
    assert re.fullmatch("sk-[0-9A-Za-z]{22,}", here.secret)


def test_it_is_shown_as_bearer_as_x_api_key_or_in_the_url(here: Shop) -> None:
    passed(here.gateway.use(here.secret), here)
    passed(here.gateway.ask(x_api_key=here.secret), here)
    passed(here.gateway.ask(f"/v1/models?key={here.secret}"), here)
    both = here.gateway.ask(f"/?key={here.key().secret}", x_api_key=here.secret)
    refused(both, 400, "ambiguous_credentials")


def test_another_shape_is_malformed_and_a_stranger_not_found(here: Shop) -> None:
    denied(here.gateway.use("sk-short"), 401, "malformed")
    denied(here.gateway.use(f"{here.secret}!"), 401, "malformed")
    denied(here.gateway.use("sk-" + "0" * (len(here.secret) - 3)), 401, "not_found")


def test_a_keys_spent_quota_is_402_api_key_quota_exceeded(here: Shop) -> None:
    capped = here.key(quotas=[{"unit": "requests", "window": "day", "limit": 1}])
    cost = {"X_Keyledger_Cost_Micros": "5", "X_Keyledger_Request_Id": here.running.name("use")}
    assert here.gateway.use(capped.secret, **cost).status == 200

    again = cost | {"X_Keyledger_Request_Id": here.running.name("use")}
    denied(here.gateway.use(capped.secret, **again), 402, "api_key_quota_exceeded")
    denied(here.gateway.use(capped.secret), 402, "api_key_quota_exceeded")


def test_an_empty_wallet_is_402_billing_shortfall(here: Shop) -> None:
    poor = here.poor()

    denied(here.gateway.use(poor.secret), 402, "billing_shortfall")
    asked = {"secret": poor.secret, "keyspace_id": here.keyspace_id, "request_id": "r", "amount_micros": 1}
    refused(here.running.root.ask("POST", "/v1/charges", asked), 402, "billing_shortfall")


def test_self_is_free_wherever_the_secret_stands(here: Shop) -> None:
    self_is_free(here, Authorization=f"Bearer {here.secret}")
    self_is_free(here, x_api_key=here.secret)
    self_is_free(here, f"/v1/self?key={here.secret}")


def test_a_secret_in_a_url_is_in_no_log(here: Shop) -> None:
    here.gateway.ask(f"/v1/models?key={here.secret}")
    here.client.ask("GET", f"/nowhere?key={here.secret}")

    no_secret_is_written(here)
