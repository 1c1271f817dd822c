"""The master key: missed in a sentence where there was one, and recommended where there is none."""

import json
from collections.abc import Iterator

import pytest

from tests.e2e.ledgers import Place, place, stop


@pytest.fixture
def here(database: str, nats_url: str) -> Iterator[Place]:
    own = {"KEYLEDGER_DATABASE_URL": database, "KEYLEDGER_NATS_URL": nats_url}
    with place(**own, KEYLEDGER_LOG_FORMAT="json") as here:
        here.ask("migrate")
        yield here


def findings(here: Place, **environment: str) -> dict[str, str]:
    """What the doctor says of the master key, by state."""
    done = here.run("doctor", "--json", **environment)
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["healthy"] else 1)
    return {one["state"]: one["found"] for one in found["findings"] if one["what"] == "master key"}


def test_a_start_and_the_doctor_say_that_there_is_none_and_call_nothing_broken(here: Place) -> None:
    here.ask("bootstrap", "--file", "root-key")
    here.start("serve")

    [warned] = [line for line in here.log().splitlines() if "master_key.missing" in line]
    assert json.loads(warned)["problem"] == (
        "Without KEYLEDGER_MASTER_KEY anyone who can read the database can read the names in it."
    )
    assert [*findings(here)] == ["attention"]


def test_a_start_without_the_master_key_of_before_says_so_in_a_sentence(here: Place) -> None:
    here.environment["KEYLEDGER_MASTER_KEY"] = "ab" * 32
    here.ask("bootstrap", "--file", "root-key")
    process = here.start("serve")
    assert "master_key.missing" not in here.log()
    assert findings(here) == {}
    stop(process)

    for wrong, sentence in (
        ("", "The data keys are wrapped, and no master key is set: set KEYLEDGER_MASTER_KEY as it was."),
        (
            "cd" * 32,
            "The data keys are wrapped with another master key: set KEYLEDGER_MASTER_KEY to that one.",
        ),
    ):
        for command in ("serve", "project"):
            done = here.run(command, KEYLEDGER_MASTER_KEY=wrong)

            told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
            assert (done.returncode, told) == (1, [f"keyledger: {sentence}"])
        assert findings(here, KEYLEDGER_MASTER_KEY=wrong)["broken"] == sentence
