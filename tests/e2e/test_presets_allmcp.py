"""The preset `allmcp`: `allmcp_` and 32 base62; X-API-Key or Bearer; tenants out of the URL."""

import re

import pytest

from tests.e2e.presets import Shop, denied, no_secret_is_written, passed, self_is_free, shop
from tests.e2e.running import Running, refused


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "allmcp")


def test_a_secret_is_allmcp_and_32_base62(here: Shop) -> None:
    assert re.fullmatch("allmcp_[0-9A-Za-z]{32}", here.secret)


def test_it_is_shown_as_x_api_key_or_bearer(here: Shop) -> None:
    passed(here.gateway.ask(X_API_Key=here.secret), here)
    passed(here.gateway.use(here.secret), here)


def test_another_shape_is_malformed_and_a_stranger_not_found(here: Shop) -> None:
    denied(here.gateway.use(here.secret[:-1]), 401, "malformed")
    denied(here.gateway.use("allmcp_" + "0" * 32), 401, "not_found")


def test_a_client_key_serves_its_users_and_must_name_one(here: Shop) -> None:
    client = here.key(kind="client").secret

    assert here.gateway.ask("/mcp?user_id=u1", X_API_Key=client).status == 200
    denied(here.gateway.ask("/mcp", X_API_Key=client), 403, "tenant_denied")
    denied(here.gateway.ask("/mcp?org_id=o1", X_API_Key=client), 403, "tenant_denied")


def test_a_platform_key_names_company_and_user(here: Shop) -> None:
    platform = here.key(kind="platform").secret

    assert here.gateway.ask("/mcp?org_id=o1&user_id=u1", X_API_Key=platform).status == 200
    for uri in ("/mcp", "/mcp?org_id=o1", "/mcp?user_id=u1"):
        denied(here.gateway.ask(uri, X_API_Key=platform), 403, "tenant_denied")


def test_other_tenants_are_403(here: Shop) -> None:
    client = here.key(kind="client", scopes={"tenants": ["u1", "u2"]}).secret
    assert here.gateway.ask("/mcp?user_id=u2", X_API_Key=client).status == 200
    denied(here.gateway.ask("/mcp?user_id=u3", X_API_Key=client), 403, "tenant_denied")

    platform = here.key(kind="platform", scopes={"tenants": ["o1"]}).secret
    assert here.gateway.ask("/mcp?org_id=o1&user_id=any", X_API_Key=platform).status == 200
    denied(here.gateway.ask("/mcp?org_id=o2&user_id=any", X_API_Key=platform), 403, "tenant_denied")


def test_one_tenant_at_a_time(here: Shop) -> None:
    client = here.key(kind="client").secret
    answer = here.gateway.ask("/mcp?user_id=u1&user_id=u2", X_API_Key=client)

    refused(answer, 400, "invalid_request", "user_id")


def test_the_charge_remembers_its_tenant(here: Shop) -> None:
    platform = here.key(kind="platform").secret
    request_id = here.running.name("use")
    cost = {"X_Keyledger_Cost_Micros": "7", "X_Keyledger_Request_Id": request_id}
    assert here.gateway.ask("/mcp?org_id=o1&user_id=u1", X_API_Key=platform, **cost).status == 200

    found = here.running.request(request_id)
    assert found[0]["tenant"] == {"org_id": "o1", "user_id": "u1"}


def test_self_is_free_and_needs_no_tenant(here: Shop) -> None:
    self_is_free(here, X_API_Key=here.secret)

    client = here.key(kind="client").secret
    assert here.client.ask("GET", "/v1/self", None, X_API_Key=client).status == 200


def test_no_log_holds_it(here: Shop) -> None:
    no_secret_is_written(here)
