"""Long work says how far it is: a bar on a terminal, lines elsewhere, and never on standard output."""

import json

import pytest

from services.cli.progress import Lines
from tests.cli.conftest import Shop
from tests.cli.terminals import on_terminal


def test_lines_come_every_five_seconds_and_no_more_often() -> None:
    moments = iter([0.0, 4.9, 5.0, 9.9, 10.0])
    lines: list[str] = []
    tell = Lines("Rebuilding", 200_000, "events", clock=lambda: next(moments), write=lines.append)

    for done in (10_000, 20_000, 30_000, 40_000):
        tell(done)

    assert lines == [
        "Rebuilding: 20,000 of 200,000 events (10 %)",
        "Rebuilding: 40,000 of 200,000 events (20 %)",
    ]


def test_a_log_of_nothing_has_no_share() -> None:
    moments = iter([0.0, 5.0])
    lines: list[str] = []

    Lines("Adding up", 0, "events", clock=lambda: next(moments), write=lines.append)(0)

    assert lines == ["Adding up: 0 of 0 events"]


LONG_WORK = {
    "rebuild": (["rebuild"], "Rebuilding"),
    "rebuild --check": (["rebuild", "--check"], "Checking"),
    "reconcile": (["reconcile"], "Adding up"),
}


@pytest.mark.parametrize("words,what", LONG_WORK.values(), ids=LONG_WORK)
def test_a_terminal_sees_a_bar_and_standard_output_stays_json(
    shop: Shop, words: list[str], what: str
) -> None:
    shown = on_terminal(shop.ledger, [*words, "--json"], stdout_piped=True)

    assert shown.exit_code == 0, shown.terminal
    assert json.loads(shown.piped)
    assert what in shown.terminal
    assert "events" in shown.terminal


@pytest.mark.parametrize("words,what", LONG_WORK.values(), ids=LONG_WORK)
def test_quick_work_without_a_terminal_says_nothing_of_it(shop: Shop, words: list[str], what: str) -> None:
    done = shop.ledger.run(*words, "--json")

    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)
