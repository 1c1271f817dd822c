"""The preset `default`: prefix, 30 base62 and their CRC32; Bearer or X-API-Key."""

import re
import string

import pytest

from tests.e2e.presets import (
    Shop,
    checksum,
    denied,
    mistyped,
    no_secret_is_written,
    passed,
    self_is_free,
    shop,
)
from tests.e2e.running import UNIT, Gateway, Running, refused

BASE62 = string.digits + string.ascii_letters


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "default")


def test_a_secret_is_a_prefix_thirty_characters_and_their_checksum(here: Shop) -> None:
    assert re.fullmatch(r"kl_live_[0-9A-Za-z]{36}", here.secret)
    assert here.secret[-6:] == checksum(here.secret[8:-6])
    assert here.made.key["hint"] == f"kl_live_...{here.secret[-4:]}"


def test_a_prefix_of_ones_own_is_taken(running: Running) -> None:
    prefix = running.prefix()
    made = running.key(running.organization(), running.keyspace(prefix=prefix))

    assert re.fullmatch(prefix + "[0-9A-Za-z]{36}", made.secret)


def test_a_request_may_show_it_as_bearer_or_as_x_api_key(here: Shop) -> None:
    passed(here.gateway.ask(Authorization=f"Bearer {here.secret}"), here)
    passed(here.gateway.ask(authorization=f"bearer {here.secret}"), here)
    passed(here.gateway.ask(X_API_Key=here.secret), here)
    passed(here.gateway.ask(X_API_Key=here.secret, Authorization=f"Bearer {here.secret}"), here)


def test_in_a_url_it_is_not_looked_for(here: Shop) -> None:
    denied(here.gateway.ask(f"/?key={here.secret}&api_key={here.secret}"), 401, "missing")


def test_a_token_of_another_kind_beside_it_is_no_candidate(here: Shop) -> None:
    passed(here.gateway.ask(Authorization="Bearer eyJhbGciOi.J9.x", X_API_Key=here.secret), here)


def test_two_different_secrets_are_refused(here: Shop) -> None:
    other = here.key().secret
    answer = here.gateway.ask(Authorization=f"Bearer {other}", X_API_Key=here.secret)

    refused(answer, 400, "ambiguous_credentials")


def test_what_was_cut_off_or_mistyped_is_told_by_its_checksum(here: Shop) -> None:
    unknown = "0" * 30

    for wrong in (here.secret[:-1], here.secret + "0", mistyped(here.secret), here.secret[8:], "x"):
        denied(here.gateway.use(wrong), 401, "malformed")
        assert here.running.verify(wrong, here.keyspace_id)["code"] == "malformed"
    denied(here.gateway.use(f"kl_live_{unknown}{checksum(unknown)}"), 401, "not_found")
    denied(here.gateway.ask(), 401, "missing")


def test_denials_have_the_contracts_own_statuses(here: Shop) -> None:
    limited = here.key(scopes={"permissions": ["read"], "projects": [here.project_id], "models": ["gpt-5"]})
    denied(here.gateway.use(limited.secret, X_Keyledger_Permission="write"), 403, "permission_denied")
    denied(here.gateway.use(limited.secret, X_Keyledger_Project="prj_other"), 403, "project_denied")
    denied(here.gateway.use(limited.secret, X_Keyledger_Model="claude"), 403, "model_denied")
    slow = here.key(rate_limits=[{"name": "slow", "limit": 1, "window_seconds": 3600}])
    assert here.gateway.use(slow.secret).status == 200
    denied(here.gateway.use(slow.secret), 429, "rate_limited")


def test_a_use_without_a_cost_asks_for_no_money(here: Shop) -> None:
    poor = here.poor()

    assert here.gateway.use(poor.secret).status == 200
    dear = here.gateway.use(poor.secret, X_Keyledger_Cost_Micros="1", X_Keyledger_Request_Id="dear")
    denied(dear, 402, "billing_shortfall")


def test_a_use_with_a_cost_is_charged_once(here: Shop) -> None:
    cost = {"X_Keyledger_Cost_Micros": "1000", "X_Keyledger_Request_Id": here.running.name("use")}
    passed(here.gateway.use(here.secret, **cost), here)
    passed(here.gateway.use(here.secret, **cost), here)

    assert here.running.wallet(here.organization_id)["balance_micros"] == UNIT - 1000


def test_what_a_proxy_says_wrong_is_named(here: Shop) -> None:
    cost = {"X_Keyledger_Cost_Micros": "1"}
    refused(here.gateway.use(here.secret, **cost), 400, "invalid_request", "X-Keyledger-Request-Id")
    more = {"X_Keyledger_Cost_Micros": "-1", "X_Keyledger_Request_Id": "r"}
    refused(here.gateway.use(here.secret, **more), 400, "invalid_request", "X-Keyledger-Cost-Micros")
    nowhere = Gateway(here.running, "ks_nowhere").use(here.secret)
    refused(nowhere, 404, "not_found", "keyspace_id")


def test_envoy_and_traefik_say_the_uri_in_their_own_ways(running: Running) -> None:
    # A keyspace that takes its secrets from the URL shows that the URL was read.
    keyspace_id = running.keyspace(prefix=running.prefix(), credential_locations=["query:key"])
    made, proxy = running.key(running.organization(), keyspace_id), running.as_root(None)
    able = running.root_made("verify", bound_keyspace_id=keyspace_id).secret

    envoy = proxy.ask(
        "GET", f"/v1/forward-auth/v1/models?key={made.secret}", None, X_Keyledger_Proxy_Key=able
    )
    uri = f"/v1/models?key={made.secret}"
    traefik = proxy.ask("GET", "/v1/forward-auth", None, X_Keyledger_Proxy_Key=able, X_Forwarded_Uri=uri)
    assert [one.headers["X-Keyledger-Key-Id"] for one in (envoy, traefik)] == [made.id] * 2


def test_self_is_free(here: Shop) -> None:
    self_is_free(here, Authorization=f"Bearer {here.secret}")
    self_is_free(here, X_API_Key=here.secret)


def test_no_log_holds_it(here: Shop) -> None:
    here.gateway.ask(f"/search?key={here.secret}")
    here.client.ask("GET", f"/v1/self?key={here.secret}")

    no_secret_is_written(here)
