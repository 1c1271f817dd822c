"""One real ledger for the tests of the command line, with an organization, a keyspace and money."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.e2e.ledgers import Place, place


class Shop(NamedTuple):
    """A ledger, and an organization in it."""

    ledger: Place
    organization_id: str

    def key(self, name: str, *more: str) -> tuple[str, str]:
        """A key's id and secret."""
        made = self.ledger.ask("keys", "create", name, "--org", "Acme", *more)
        return made["key"]["id"], made["secret"]

    def json(self, *words: str, given: str | None = None) -> Any:
        """What a command answers as JSON, whatever its exit code."""
        done = self.ledger.run(*words, "--json", given=given)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="session")
def shop() -> Iterator[Shop]:
    with place() as ledger:
        ledger.start()
        ledger.ask("keyspaces", "create", "main")
        made = ledger.ask("orgs", "create", "Acme", "--external-id", "cus_42")
        ledger.ask("wallet", "credit", "Acme", "1000.00", "--reference", "invoice-7")
        yield Shop(ledger, made["id"])
