"""Charges on the command line: one, many, back again."""

import json

import pytest

from tests.cli.conftest import Shop


@pytest.fixture(scope="module")
def key(shop: Shop) -> str:
    return shop.key("Charged", "--quota", "money/month=100.00")[0]


def test_a_charge_by_id_counts_once_per_request_id(shop: Shop, key: str) -> None:
    words = (
        "charges",
        "create",
        "--key",
        key,
        "--amount",
        "0.25",
        "--request-id",
        "once",
        "--model",
        "gpt-5",
    )
    first, again = shop.json(*words), shop.json(*words)

    assert (first["charge"]["amount_micros"], first["charge"]["model"]) == (250_000, "gpt-5")
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert first["charge"]["id"] == again["charge"]["id"]
    assert "It was charged before" in shop.ledger.run(*words).stdout


def test_a_charge_by_secret_needs_no_keyspace_where_there_is_one(shop: Shop) -> None:
    _, secret = shop.key("Charged by secret")

    done = shop.ledger.run("charges", "create", "-", "--amount", "1", given=secret)

    assert done.returncode == 0, done.stderr
    assert "amount        1.00\n" in done.stdout
    assert secret not in done.stdout + done.stderr


def test_a_refused_charge_says_why(shop: Shop, key: str) -> None:
    done = shop.ledger.run(
        "charges", "create", "--key", key, "--amount", "100.01", "--request-id", "too much"
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert "api_key_quota_exceeded" in done.stderr


def test_a_charge_is_given_back_in_part_and_then_whole(shop: Shop, key: str) -> None:
    charge = shop.json("charges", "create", "--key", key, "--amount", "2")["charge"]["id"]

    part = shop.json("charges", "refund", charge, "--amount", "0.50", "--request-id", f"{charge} part")
    again = shop.json("charges", "refund", charge, "--amount", "0.50", "--request-id", f"{charge} part")
    rest = shop.ledger.run("charges", "refund", charge)

    assert (part["refund"]["amount_micros"], part["replayed"], again["replayed"]) == (500_000, False, True)
    assert "refunded   1.50\n" in rest.stdout
    assert "in total   2.00\n" in rest.stdout
    too_much = shop.ledger.run("charges", "refund", charge, "--json")
    assert (too_much.returncode, json.loads(too_much.stderr)["code"]) == (5, "refund_exceeds_charge")


def uses(key: str, *amounts: int, named: str) -> list[dict[str, object]]:
    return [
        {"key_id": key, "request_id": f"{named}-{number}", "amount_micros": amount}
        for number, amount in enumerate(amounts)
    ]


def test_a_batch_answers_each_use_on_its_own_and_a_second_try_counts_nothing_twice(
    shop: Shop, key: str
) -> None:
    text = "\n".join(map(json.dumps, uses(key, 1_000_000, 500_000_000, 2_000_000, named="batch")))
    first = shop.ledger.run("charges", "batch", "-", "--json", given=text)
    again = shop.ledger.run("charges", "batch", "-", given=text)

    found = json.loads(first.stdout)
    assert first.returncode == 1
    assert [one["status"] for one in found["results"]] == [201, 402, 201]
    assert (found["charged"], found["refused"], found["amount_micros"]) == (2, 1, 3_000_000)
    assert "batch-1" in again.stdout
    assert "2 charged, 2 of them earlier, 3.00 in total; 1 refused." in again.stdout


def test_a_batch_out_of_csv_may_be_longer_than_what_is_sent_at_once(shop: Shop, key: str) -> None:
    rows = "".join(f"{key},csv-{n},1,gpt-5\n" for n in range(600))
    (shop.ledger.folder / "uses.csv").write_text("key_id,request_id,amount_micros,model\n" + rows)

    found = shop.json("charges", "batch", "uses.csv")

    assert (found["charged"], found["refused"], found["amount_micros"]) == (600, 0, 600)


def test_a_batch_by_secrets_finds_their_keyspace(shop: Shop) -> None:
    _, secret = shop.key("In a batch")
    line = json.dumps({"secret": secret, "request_id": "by secret", "amount_micros": 1})

    assert shop.json("charges", "batch", "-", given=line)["charged"] == 1


def test_a_batch_without_request_ids_is_refused_before_anything_is_charged(shop: Shop, key: str) -> None:
    text = "\n".join(map(json.dumps, [*uses(key, 1, named="unnamed"), {"key_id": key, "amount_micros": 1}]))

    done = shop.ledger.run("charges", "batch", "-", given=text)

    assert done.returncode == 2
    assert "1 of 2 uses have no request_id" in done.stderr
    assert shop.ledger.run("requests", "show", "unnamed-0").returncode == 4


def test_a_charge_is_shown_with_what_was_given_back_of_it(shop: Shop, key: str) -> None:
    words = ("charges", "create", "--key", key, "--amount", "2", "--metadata", "order=7")
    charge = shop.json(*words)["charge"]["id"]
    shop.ledger.ask("charges", "refund", charge, "--amount", "0.50", "--request-id", "shown-back")

    done = shop.ledger.run("charges", "show", charge)

    assert done.returncode == 0, done.stderr
    assert "amount        2.00\n" in done.stdout
    assert any("shown-back" in line and "0.50" in line for line in done.stdout.splitlines())
    assert shop.ledger.run("charges", "show", "chg_01JD0000000000000000000000").returncode == 4
