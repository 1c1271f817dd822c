"""What a session of tests leaves in the ledger that they share: true books, and nowhere a secret.

It runs behind the files that use that ledger; alone, it looks at what it makes itself.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.running import UNIT, Running


@pytest.fixture(scope="module", autouse=True)
def use(running: Running) -> None:
    """A little of everything, so that there is something to find."""
    made = running.key(running.organization(UNIT))
    running.verify(made.secret, cost_micros=5, request_id=running.name("use"))
    running.as_root(made.secret).get("/v1/self")
    running.root.ask("PATCH", f"/v1/keys/{made.id}", {"name": made.secret})
    running.root.ask("POST", "/v1/charges", {made.secret: 1})
    running.root.ask("GET", f"/v1/keys/{made.secret}?{made.secret}=1")


def test_the_books_are_right_to_the_micro(running: Running) -> None:
    assert running.here.ask("reconcile")["differences"] == []


def test_the_projections_are_what_a_rebuild_gives(running: Running) -> None:
    assert running.here.ask("rebuild", "--check")["clean"]


def test_no_secret_is_in_any_file(running: Running) -> None:
    """Logs, tables, PostgreSQL's journal, NATS: all that the ledger writes is below its folder."""
    secrets = tuple(one.encode() for one in running.secrets)
    begin = re.compile(b"|".join({re.escape(one[:4]) for one in secrets}))
    known, id_ = 0, running.main.encode()

    for file in _files(running.here.folder):
        data = file.read_bytes()
        known += id_ in data
        found = [
            begins.start() for begins in begin.finditer(data) if data.startswith(secrets, begins.start())
        ]
        assert not found, file
    assert known, "what is no secret is found: the search looks at the right places"


def _files(folder: Path) -> Iterator[Path]:
    return (one for one in folder.rglob("*") if one.is_file() and one.name != "root-key")
