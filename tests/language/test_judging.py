"""Every reason to refuse a key is written once, in its order, and the narrower checks agree with it."""

from __future__ import annotations

import ast
from collections import Counter
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from keyledger_language import NO_USE, KeyFacts, Scopes, Tenant, Use, is_easy, judge, judge_key, state_of
from keyledger_language import judging as module

NOW = 1_000
GOOD: dict[str, Any] = {
    "key_id": "key_1",
    "keyspace_id": "ks_1",
    "organization_id": "org_1",
    "kind": "solo",
    "generation": 1,
    "projects": frozenset({"prj_1"}),
}
ANYTHING = Use(
    permissions=("read",), project_id="prj_1", model="small", tenant=Tenant(user_id="ada"), ip="10.0.0.1"
)


class Reason(NamedTuple):
    code: str
    facts: dict[str, Any]
    scopes: dict[str, Any]


IN_ORDER = (
    Reason("revoked", {"revoked": True}, {}),
    Reason("expired", {"expires_at": NOW}, {}),
    Reason("rotated", {"secret_ends_at": NOW}, {}),
    Reason("disabled", {"disabled": True}, {}),
    Reason("organization_suspended", {"organization_suspended": True}, {}),
    Reason("ip_denied", {"allowed_ips": ("192.0.2.0/24",)}, {}),
    Reason("permission_denied", {}, {"permissions": ("write",)}),
    Reason("project_denied", {}, {"projects": ("prj_2",)}),
    Reason("model_denied", {}, {"models": ("large",)}),
    Reason("tenant_denied", {}, {"tenants": ("bob",)}),
)
CODES = [one.code for one in IN_ORDER]
OF_THE_KEY, OF_THE_ADDRESS = CODES[:5], CODES[:6]
SUBSETS = list(chain.from_iterable(combinations(IN_ORDER, size) for size in range(len(IN_ORDER) + 1)))


def facts_with(reasons: tuple[Reason, ...]) -> KeyFacts:
    facts: dict[str, Any] = {}
    scopes: dict[str, Any] = {}
    for reason in reasons:
        facts |= reason.facts
        scopes |= reason.scopes
    return KeyFacts(**GOOD, **facts, scopes=Scopes(**scopes))


def places(source: str) -> Counter[str]:
    """How often each name in capitals is returned."""
    returns = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Return)]
    return Counter(
        node.id
        for value in returns
        if value is not None
        for node in ast.walk(value)
        if isinstance(node, ast.Name) and node.id.isupper()
    )


def test_of_all_reasons_that_hold_the_first_is_said() -> None:
    for reasons in SUBSETS:
        facts = facts_with(reasons)
        holding = [one.code for one in reasons]

        assert judge(facts, ANYTHING, NOW) == next(iter(holding), "valid")
        assert state_of(facts, NOW) == next((one for one in holding if one in OF_THE_KEY), None)
        expected = next((one for one in holding if one in OF_THE_ADDRESS), "valid")
        assert judge_key(facts, "10.0.0.1", NOW) == expected


@pytest.mark.parametrize("ip, code", [("192.0.2.7", "valid"), ("10.0.0.1", "ip_denied"), (None, "ip_denied")])
def test_a_key_is_judged_from_an_address_whatever_a_use_must_name(ip: str | None, code: str) -> None:
    platform: dict[str, Any] = {**GOOD, "kind": "platform"}
    facts = KeyFacts(
        **platform,
        scopes=Scopes(),
        allowed_ips=("192.0.2.0/24",),
        required_dimensions=("permission", "project", "model", "tenant"),
    )

    assert judge_key(facts, ip, NOW) == code
    assert state_of(facts, NOW) is None


@pytest.mark.parametrize("dimension", ["permission", "project", "model", "tenant"])
def test_what_a_use_must_name_and_does_not_is_denied(dimension: str) -> None:
    facts = KeyFacts(**GOOD, scopes=Scopes(), required_dimensions=(dimension,))

    assert judge(facts, NO_USE, NOW) == f"{dimension}_denied"
    assert judge(facts, Use(tenant=Tenant()), NOW) == f"{dimension}_denied"
    assert judge(facts, ANYTHING, NOW) == "valid"


def test_who_is_easy_is_valid_at_any_time() -> None:
    easy = [reasons for reasons in SUBSETS if is_easy(facts_with(reasons))]

    assert {one.code for reasons in easy for one in reasons} == set(CODES[6:])
    for reasons in easy:
        assert {judge(facts_with(reasons), NO_USE, now) for now in (0, NOW, 2**62)} == {"valid"}


def test_each_reason_stands_in_one_place() -> None:
    found = places(Path(module.__file__).read_text("utf-8"))

    assert {code.upper(): found[code.upper()] for code in CODES} == dict.fromkeys(map(str.upper, CODES), 1)


def test_a_reason_that_stands_twice_is_noticed() -> None:
    source = "def judge(a):\n    return REVOKED if a else EXPIRED\ndef state_of(a):\n    return REVOKED\n"

    assert places(source) == {"REVOKED": 2, "EXPIRED": 1}
