"""The shipped snippets for proxies: what the upstream believes is the ledger's word, never a client's."""

from __future__ import annotations

import re

import pytest

from keyledger_edge import KeyFacts, Scopes, Verdict, answer_verdict
from tests.docs.examples import ROOT

DEPLOY = ROOT / "infra" / "deploy"
FACTS = KeyFacts(
    key_id="key_1", keyspace_id="ks_1", organization_id=None, kind="solo", generation=1, scopes=Scopes()
)
HEADERS = [name.decode() for name, _ in answer_verdict(Verdict("valid", FACTS), None).headers]
TOLD = sorted(name for name in HEADERS if name.startswith("x-keyledger-"))


def lower(path: str) -> str:
    return (DEPLOY / path).read_text().lower()


def between(text: str, start: str, end: str) -> str:
    """A part of a file, from a line that holds `start` up to one that holds `end`."""
    found = re.search(f"{re.escape(start)}.*?(?={re.escape(end)}|\\Z)", text, re.DOTALL)
    assert found is not None, start
    return found[0]


def test_a_good_key_is_told_in_four_headers() -> None:
    assert TOLD == [
        "x-keyledger-code", "x-keyledger-key-id", "x-keyledger-organization-id", "x-keyledger-plan-id"
    ]  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_nginx_overwrites_it(name: str) -> None:
    variable = "$" + name.removeprefix("x-").replace("-", "_")

    text = lower("nginx/keyledger-protect.conf")

    assert re.search(rf"^proxy_set_header {name} +{re.escape(variable)};", text, re.MULTILINE)


@pytest.mark.parametrize("name", TOLD)
def test_traefik_removes_it_before_it_asks_and_takes_the_answers(name: str) -> None:
    text = lower("traefik/keyledger.yml")

    assert f'{name}: ""\n' in between(text, "keyledger-ask:\n", "keyledger-auth:\n")
    assert f"- {name}\n" in between(text, "authresponseheaders:\n", "keyledger-clean:\n")
    assert re.search(r"middlewares: \[keyledger-ask, keyledger-auth, keyledger-clean\]", text)


@pytest.mark.parametrize("name", TOLD)
def test_envoy_removes_it_before_it_asks_and_takes_the_answers(name: str) -> None:
    text = lower("envoy/keyledger.yaml")
    before = between(text, "envoy.filters.http.header_mutation", "- name: envoy.filters.http.ext_authz")

    assert f"- remove: {name}\n" in before
    assert f"exact: {name} }}" in between(text, "allowed_upstream_headers:", "allowed_client_headers:")
