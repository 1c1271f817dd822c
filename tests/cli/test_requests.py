"""What became of requests, on the command line."""

import pytest

from tests.cli.conftest import Shop
from tests.e2e.ledgers import until


@pytest.fixture(scope="module")
def key(shop: Shop) -> str:
    """A key with a charge, and a refused one."""
    key, _ = shop.key("Asked about", "--quota", "money/month=1.00")
    charge = ("charges", "create", "--key", key)
    shop.ledger.ask(*charge, "--amount", "0.75", "--request-id", "shop/1?x", "--tenant-user", "u-1")
    assert shop.ledger.run(*charge, "--amount", "0.50", "--request-id", "refused").returncode == 1
    # A refusal is written down a moment later, with others.
    until(lambda: shop.ledger.run("requests", "show", "refused").returncode == 0)
    return key


def test_a_request_is_found_by_its_id_whatever_that_holds(shop: Shop, key: str) -> None:
    found = shop.json("requests", "show", "shop/1?x")
    shown = shop.ledger.run("requests", "show", "shop/1?x", "--org", "Acme").stdout

    assert [(one["kind"], one["amount_micros"]) for one in found["items"]] == [("charge", 750_000)]
    assert f"key           {key}\n" in shown
    assert "amount        0.75\n" in shown
    assert "tenant        u-1\n" in shown


def test_a_refused_one_says_why(shop: Shop, key: str) -> None:
    shown = shop.ledger.run("requests", "show", "refused").stdout

    assert "refused as    api_key_quota_exceeded\n" in shown


def test_one_that_nobody_used_is_exit_code_4(shop: Shop) -> None:
    assert shop.ledger.run("requests", "show", "nobody used this").returncode == 4


def test_the_list_is_narrowed_by_organization_key_code_and_time(shop: Shop, key: str) -> None:
    def named(*more: str) -> list[str]:
        return [one["request_id"] for one in shop.json("requests", "list", *more)["items"]]

    assert named("--key", key) == ["refused", "shop/1?x"]
    assert named("--org", "cus_42", "--key", key, "--limit", "1") == ["refused"]
    assert named("--key", key, "--code", "api_key_quota_exceeded") == ["refused"]
    assert named("--key", key, "--from", "-1h", "--to", "1h") == ["refused", "shop/1?x"]
    assert named("--key", key, "--to", "-1h") == []
    shown = shop.ledger.run("requests", "--key", key).stdout
    assert any("shop/1?x" in line and "0.75" in line for line in shown.splitlines())
