"""A keyspace is asked for only where the ledger does not know it: with several, by a key bound to none."""

from collections.abc import Iterator

import pytest

from tests.e2e.ledgers import Place, place


@pytest.fixture(scope="module")
def ledger() -> Iterator[Place]:
    """A ledger of its own: it gets a second keyspace."""
    with place() as here:
        here.start()
        here.ask("keyspaces", "create", "main")
        here.ask("orgs", "create", "Acme")
        yield here


@pytest.fixture(scope="module")
def secret(ledger: Place) -> str:
    made = ledger.ask("keys", "create", "Early", "--org", "Acme")
    verdict = ledger.ask("verify", "-", given=made["secret"])

    # With one keyspace, none is named.
    assert verdict["valid"]
    assert ledger.ask("explain", "-", given=made["secret"])["valid"]
    ledger.ask("keyspaces", "create", "other", "--prefix", "oth_")
    return str(made["secret"])


@pytest.mark.parametrize("command", ["verify", "explain"])
def test_with_several_the_sentence_says_which_there_are(ledger: Place, secret: str, command: str) -> None:
    done = ledger.run(command, "-", given=secret)

    assert done.returncode == 2
    assert "There are several keyspaces: name one with --keyspace (main, other)." in done.stderr
    assert ledger.ask(command, "-", "--keyspace", "main", given=secret)["valid"]


def test_a_root_key_that_is_bound_to_one_need_not_say_which(ledger: Place, secret: str) -> None:
    words = ("keys", "create", "bound", "--root", "--permission", "verify", "--bound-to", "main")
    bound = ledger.ask(*words)["secret"]

    done = ledger.run("verify", "-", given=secret, KEYLEDGER_API_KEY=bound)

    assert done.returncode == 0, done.stderr


def test_one_that_may_not_list_keyspaces_hears_what_the_ledger_wants(ledger: Place, secret: str) -> None:
    blind = ledger.ask("keys", "create", "blind", "--root", "--permission", "verify")["secret"]

    done = ledger.run("verify", "-", given=secret, KEYLEDGER_API_KEY=blind)

    assert done.returncode != 0
    assert "keyspace" in done.stderr


def test_a_leak_is_found_wherever_it_is(ledger: Place) -> None:
    made = ledger.ask("keys", "create", "Leaky", "--org", "Acme", "--keyspace", "other")

    done = ledger.run("leak", "-", "--yes", given=made["secret"])

    assert done.returncode == 0, done.stderr
    assert "is revoked, with all its generations" in done.stdout


def test_a_leak_that_is_looked_for_in_one_keyspace_is_not_found_in_another(ledger: Place) -> None:
    made = ledger.ask("keys", "create", "Narrow", "--org", "Acme", "--keyspace", "other")

    done = ledger.run("leak", "-", "--keyspace", "main", "--yes", given=made["secret"])

    assert "No key of this ledger has that secret." in done.stdout


def test_an_archived_keyspace_gives_its_prefix_back(ledger: Place) -> None:
    ledger.ask("keyspaces", "create", "short-lived", "--prefix", "short_")
    assert ledger.run("keyspaces", "create", "second", "--prefix", "short_").returncode == 5

    done = ledger.run("keyspaces", "archive", "short-lived", "--yes")

    assert done.stdout == "short-lived is archived, and its prefix is free again.\n"
    assert ledger.run("keyspaces", "create", "second", "--prefix", "short_").returncode == 0
    assert "short-lived" not in ledger.run("keyspaces", "list").stdout
    assert "short-lived" in ledger.run("keyspaces", "list", "--include-archived").stdout


def test_a_keyspace_that_keys_are_in_is_not_archived(ledger: Place, secret: str) -> None:
    done = ledger.run("keyspaces", "archive", "main", "--yes")

    assert done.returncode == 5
    assert ledger.ask("verify", "-", "--keyspace", "main", given=secret)["valid"]
