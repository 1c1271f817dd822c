"""The preset `leapter`: `lpt_` and base62; X-API-Key; every use names its project."""

import re

import pytest

from tests.e2e.presets import Shop, denied, no_secret_is_written, passed, self_is_free, shop
from tests.e2e.running import Running


@pytest.fixture(scope="module")
def here(running: Running) -> Shop:
    return shop(running, "leapter")


def test_a_secret_is_lpt_and_base62(here: Shop) -> None:
    assert re.fullmatch("lpt_[0-9A-Za-z]{22,}", here.secret)


def test_it_is_shown_as_x_api_key_and_nowhere_else(here: Shop) -> None:
    passed(here.gateway.ask(X_API_Key=here.secret, X_Keyledger_Project=here.project_id), here)
    denied(here.gateway.use(here.secret, X_Keyledger_Project=here.project_id), 401, "missing")


def test_another_shape_is_malformed_and_a_stranger_not_found(here: Shop) -> None:
    stranger = "lpt_" + "0" * (len(here.secret) - 4)

    denied(here.gateway.ask(X_API_Key="lpt_0", X_Keyledger_Project=here.project_id), 401, "malformed")
    denied(here.gateway.ask(X_API_Key=stranger, X_Keyledger_Project=here.project_id), 401, "not_found")


def test_outside_its_projects_it_is_403(here: Shop) -> None:
    other = here.running.project(here.organization_id)
    scoped = here.key(scopes={"projects": [here.project_id]}).secret

    assert here.gateway.ask(X_API_Key=scoped, X_Keyledger_Project=here.project_id).status == 200
    denied(here.gateway.ask(X_API_Key=scoped, X_Keyledger_Project=other), 403, "project_denied")


def test_a_use_must_name_a_project_even_with_a_key_for_all(here: Shop) -> None:
    denied(here.gateway.ask(X_API_Key=here.secret), 403, "project_denied")

    verdict = here.running.verify(here.secret, here.keyspace_id)
    assert (verdict["valid"], verdict["code"]) == (False, "project_denied")


def test_a_project_of_somebody_else_or_archived_is_403(here: Shop) -> None:
    foreign = here.running.project(here.running.organization())
    closed = here.running.project(here.organization_id)
    here.running.root.post(f"/v1/organizations/{here.organization_id}/projects/{closed}/archive")

    for project_id in (foreign, closed, "prj_00000000000000000000000000"):
        answer = here.gateway.ask(X_API_Key=here.secret, X_Keyledger_Project=project_id)
        denied(answer, 403, "project_denied")


def test_self_is_free_and_needs_no_project(here: Shop) -> None:
    self_is_free(here, X_API_Key=here.secret)


def test_no_log_holds_it(here: Shop) -> None:
    no_secret_is_written(here)
