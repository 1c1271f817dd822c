"""Who did what, on the command line."""

import csv
import io
import json

import pytest

from tests.cli.conftest import Shop


@pytest.fixture(scope="module")
def key(shop: Shop) -> str:
    """A key that was made, renamed, disabled."""
    key, _ = shop.key("Audited")
    shop.ledger.ask("keys", "update", key, "--name", "Audited again")
    shop.ledger.ask("keys", "disable", key, "--yes", "--reason", "looks odd")
    return key


def actions(shop: Shop, *more: str) -> list[str]:
    return [one["action"] for one in shop.json("audit", "list", *more)["items"]]


def test_the_newest_is_first_and_the_other_way_round_on_demand(shop: Shop, key: str) -> None:
    assert actions(shop, "--key", key) == ["KeyDisabled", "KeyRenamed", "KeyCreated"]
    assert actions(shop, "--key", key, "--oldest-first") == ["KeyCreated", "KeyRenamed", "KeyDisabled"]
    assert actions(shop, "--key", key, "--limit", "2") == ["KeyDisabled", "KeyRenamed"]


def test_every_filter_narrows(shop: Shop, key: str) -> None:
    (entry,) = shop.json("audit", "list", "--key", key, "--action", "KeyDisabled")["items"]

    assert actions(shop, "--request-id", entry["request_id"], "--action", "KeyDisabled") == ["KeyDisabled"]
    assert len(actions(shop, "--key", key, "--actor", entry["actor"])) == 3
    assert actions(shop, "--key", key, "--actor", "system") == []
    assert actions(shop, "--key", key, "--from", entry["at"]) == ["KeyDisabled"]
    assert actions(shop, "--key", key, "--to", entry["at"]) == ["KeyRenamed", "KeyCreated"]
    assert len(actions(shop, "--org", "cus_42", "--key", key)) == 3


def test_people_read_who_did_what_and_what_it_was_before(shop: Shop, key: str) -> None:
    shown = shop.ledger.run("audit", "--key", key).stdout

    assert f"KeyDisabled  {key}\n  by key_" in shown
    assert " from 127.0.0.1, position 0-" in shown
    assert "\n  name: Audited again (was Audited)\n" in shown
    assert "\n  reason: looks odd\n" in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_lines_and_rows_have_all_of_it_over_several_pages(shop: Shop) -> None:
    entries = "\n".join(
        json.dumps({"name": f"A {n}", "sha256": f"{n:064x}", "hint": "kl_live_...x7Qd"}) for n in range(501)
    )
    shop.ledger.ask("keys", "import", "-", "--org", "Acme", given=entries)
    query = ("--action", "KeyImported", "--limit", "501")

    told = shop.ledger.run("audit", "list", *query, "--format", "ndjson").stdout.splitlines()
    rows = list(
        csv.DictReader(io.StringIO(shop.ledger.run("audit", "list", *query, "--format", "csv").stdout))
    )

    assert len({json.loads(line)["position"] for line in told}) == 501
    assert [row["position"] for row in rows] == [json.loads(line)["position"] for line in told]
    assert shop.json("audit", "list", *query)["items"][0]["position"] == rows[0]["position"]
    by_format = shop.ledger.run("audit", "list", *query, "--format", "json").stdout
    assert len(json.loads(by_format)["items"]) == 501


def test_nothing_found_is_said(shop: Shop) -> None:
    done = shop.ledger.run("audit", "list", "--actor", "nobody")

    assert (done.returncode, done.stdout) == (0, "No matching entries.\n")
