"""What takes something away asks first, takes `--yes`, and refuses where there is nobody to ask."""

import pytest

from tests.cli.conftest import Shop
from tests.cli.terminals import on_terminal

KEY = "key_01JD0000000000000000000000"
TAKE_AWAYS = {
    "keys revoke": ["keys", "revoke", KEY],
    "keys delete": ["keys", "delete", KEY],
    "keys disable": ["keys", "disable", KEY],
    "keys rotate": ["keys", "rotate", KEY],
    "orgs suspend": ["orgs", "suspend", "Acme"],
    "keyspaces archive": ["keyspaces", "archive", "main"],
    "a wallet's adjustment downwards": ["wallet", "credit", "Acme", "--reference", "x", "--", "-1.00"],
    "leak": ["leak", "--sha256", "ab" * 32],
}


@pytest.mark.parametrize("words", TAKE_AWAYS.values(), ids=TAKE_AWAYS)
def test_without_a_terminal_it_is_refused_in_a_sentence_that_says_what_to_add(
    shop: Shop, words: list[str]
) -> None:
    done = shop.ledger.run(*words)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.rstrip().endswith("There is no terminal to ask on: add --yes.")


def test_a_disabled_key_is_asked_about_first_and_stays_as_it_was_after_a_no(shop: Shop) -> None:
    key, _ = shop.key("Asked about")

    refused = on_terminal(shop.ledger, ["keys", "disable", key], typed="n\n")
    assert f"Disable {key}?" in refused.terminal
    assert (refused.exit_code, shop.json("keys", "show", key)["status"]) == (130, "active")

    agreed = on_terminal(shop.ledger, ["keys", "disable", key], typed="y\n")
    assert (agreed.exit_code, shop.json("keys", "show", key)["status"]) == (0, "disabled")


def test_yes_is_an_answer_without_a_terminal(shop: Shop) -> None:
    key, _ = shop.key("Told at once")

    assert shop.ledger.run("keys", "disable", key, "--yes").returncode == 0
    assert shop.json("keys", "show", key)["status"] == "disabled"


def test_what_gives_is_not_asked_about(shop: Shop) -> None:
    assert shop.ledger.run("wallet", "credit", "Acme", "0.01", "--reference", "gift").returncode == 0
