"""History and explanations: in plain words, and no wider than a terminal of 80 columns."""

import re

import pytest

from services.cli.explain import why
from tests.cli.conftest import Shop
from tests.cli.terminals import on_terminal

PYTHON = re.compile(r"\b(None|True|False)\b|[{}\[\]()]?'|[{}\[\]]|=")


@pytest.fixture(scope="module")
def key(shop: Shop) -> str:
    """A key to which everything that has an odd shape happened."""
    rich = ("--quota", "money/month=10.00@80", "--rate-limit", "100/60s", "--tag", "web")
    key, _ = shop.key("Told of", *rich, "--metadata", 'team={"lead": true}', "--allow-ip", "10.0.0.0/8")
    project = shop.ledger.ask("projects", "create", "Acme", "told of")["id"]
    shop.ledger.ask("keys", "scopes", key, "models=gpt-5,claude", f"projects={project}")
    shop.ledger.ask("keys", "update", key, "--quota", "money/month=20.00", "--expires", "30d", "--any-ip")
    shop.ledger.ask("keys", "disable", key, "--yes", "--reason", "a reason that is long " * 8)
    shop.ledger.ask("keys", "enable", key)
    return key


WAYS = ["history", "explain"]


def words_of(way: str, key: str) -> list[str]:
    if way == "history":
        return ["keys", "history", key]
    return ["explain", "--key", key, "--model", "o1", "--cost", "0.30", "--tenant-user", "u-1"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("columns", [60, 80])
def test_it_fits_the_terminal(shop: Shop, key: str, way: str, columns: int) -> None:
    shown = on_terminal(shop.ledger, words_of(way, key), columns=columns, NO_COLOR="1")

    assert shown.exit_code == 0
    lines = shown.terminal.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if len(line) > columns] == []


@pytest.mark.parametrize("way", WAYS)
def test_in_a_pipe_it_is_80_columns_wide_and_holds_nothing_of_python(shop: Shop, key: str, way: str) -> None:
    done = shop.ledger.run(*words_of(way, key))

    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert PYTHON.findall(done.stdout) == []


def test_a_change_says_what_it_was_before(shop: Shop, key: str) -> None:
    told = shop.ledger.run("keys", "history", key).stdout

    assert "\n  quotas: 20.00 a month (was 10.00 a month)\n" in told
    assert "\n  disabled: yes (was no)\n" in told
    assert "\n  allowed ips: none (was 10.0.0.0/8)\n" in told
    assert "\n  metadata: team: (lead: yes)\n" in told


def test_json_has_all_of_it(shop: Shop, key: str) -> None:
    entries = {one["action"]: one for one in shop.json("keys", "history", key)["items"]}
    assert entries["QuotasSet"]["before"]["quotas"][0]["limit"] == 10_000_000

    rules = {one["code"]: one for one in shop.json(*words_of("explain", key))["rules"]}
    assert rules["model_denied"]["figures"]["asked"] == {"model": "o1"}


FIGURES = [
    ({}, ""),
    ({"revoked": False}, "it is not revoked"),
    ({"expires_at": None, "now": "2026-11-22T09:47:47Z"}, "it never expires"),
    ({"expires_at": "2026-11-22T09:47:47Z"}, "it expires 2026-11-22 09:47:47"),
    ({"allowed_ips": []}, "from any address"),
    ({"allowed_ips": ["10.0.0.0/8"]}, "from 10.0.0.0/8 only"),
    ({"scope": ["a", "b"], "plan_models": "*"}, "the key allows a, b; its plan allows everything"),
    ({"plan_models": None, "asked": {"model": "x"}}, "asked for model x"),
    ({"asked": {"tenant": {"user_id": "u"}}}, "asked for tenant user_id: u"),
    ({"available_micros": 1_500_000, "credit_limit_micros": None}, "1.50 available; credit limit: no limit"),
    ({"something_new_micros": 2_000_000, "other": True}, "something new: 2.00; other: yes"),
]


@pytest.mark.parametrize("figures,sentence", FIGURES)
def test_figures_are_told_in_words(figures: dict[str, object], sentence: str) -> None:
    assert why(figures) == sentence


def test_a_quota_says_whether_the_use_fits() -> None:
    quota = {
        "unit": "micros", "window": "month", "limit": 10_000_000, "spent": 9_000_000, "remaining": 1_000_000,
        "asked": 1_000_001, "fits": False, "resets_at": "2026-12-01T00:00:00Z",
    }  # fmt: skip

    told = why({"quotas": [quota, quota | {"asked": 1_000_000, "fits": True, "window": "total"}]})
    assert told == (
        "9.00 of 10.00 spent this month, 1.000001 asked: it does not fit, resets at 2026-12-01 00:00:00; "
        "9.00 of 10.00 spent in total, 1.00 asked: it fits, resets at 2026-12-01 00:00:00"
    )
