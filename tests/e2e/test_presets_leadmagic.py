"""The preset `leadmagic`: `lm_`, base62 and a checksum; x-leadmagic-key; 403 when no credits remain."""

import re

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
from tests.e2e.running import Running, refused


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "leadmagic")


def test_a_secret_is_lm_base62_and_a_checksum(here: Shop) -> None:
    assert re.fullmatch("lm_[0-9A-Za-z]{28,}", here.secret)
    assert here.secret[-6:] == checksum(here.secret[3:-6])


def test_it_is_shown_as_x_leadmagic_key_and_nowhere_else(here: Shop) -> None:
    passed(here.gateway.ask(x_leadmagic_key=here.secret), here)
    passed(here.gateway.ask(X_Leadmagic_Key=here.secret), here)
    denied(here.gateway.use(here.secret), 401, "missing")


def test_a_mistyped_one_is_malformed_and_a_stranger_not_found(here: Shop) -> None:
    unknown = "0" * (len(here.secret) - 9)

    denied(here.gateway.ask(x_leadmagic_key=mistyped(here.secret)), 401, "malformed")
    denied(here.gateway.ask(x_leadmagic_key=here.secret[:-1]), 401, "malformed")
    denied(here.gateway.ask(x_leadmagic_key=f"lm_{unknown}{checksum(unknown)}"), 401, "not_found")


def test_no_credits_are_403(here: Shop) -> None:
    poor = here.poor()
    denied(here.gateway.ask(x_leadmagic_key=poor.secret), 403, "billing_shortfall")
    dear = {"X_Keyledger_Cost_Micros": "1", "X_Keyledger_Request_Id": here.running.name("use")}
    denied(here.gateway.ask(x_leadmagic_key=poor.secret, **dear), 403, "billing_shortfall")
    asked = {"key_id": poor.id, "request_id": here.running.name("use"), "amount_micros": 1}
    refused(here.running.root.ask("POST", "/v1/charges", asked), 403, "billing_shortfall")

    here.running.deposit(poor.key["organization_id"], 1)
    assert here.gateway.ask(x_leadmagic_key=poor.secret).status == 200


def test_a_spent_quota_leaves_no_credits_either(here: Shop) -> None:
    capped = here.key(quotas=[{"unit": "micros", "window": "total", "limit": 1}]).secret
    cost = {"X_Keyledger_Cost_Micros": "1", "X_Keyledger_Request_Id": here.running.name("use")}
    assert here.gateway.ask(x_leadmagic_key=capped, **cost).status == 200

    denied(here.gateway.ask(x_leadmagic_key=capped), 403, "api_key_quota_exceeded")


def test_nginx_needs_no_help_with_403(here: Shop) -> None:
    answer = here.gateway.ask("/", "nginx", x_leadmagic_key=here.poor().secret)

    assert (answer.status, answer.headers["X-Keyledger-Status"]) == (403, "403")


def test_what_is_left_is_asked_for_free(here: Shop) -> None:
    told = self_is_free(here, x_leadmagic_key=here.secret)
    assert told["wallet_available_micros"] > 0

    poor = here.poor()
    left = here.client.ask("GET", "/v1/self", None, x_leadmagic_key=poor.secret)
    assert (left.status, left.body["wallet_available_micros"]) == (200, 0)


def test_no_log_holds_it(here: Shop) -> None:
    no_secret_is_written(here)
