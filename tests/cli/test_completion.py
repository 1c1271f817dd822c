"""The shell completes commands and options."""

import os
import subprocess

import pytest

from services.cli.main import run
from tests.e2e.ledgers import PROGRAM


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert "_KEYLEDGER_COMPLETE" in capsys.readouterr().out


COMPLETED = [
    ("keyledger ch", 1, ["charges"]),
    ("keyledger charges re", 2, ["refund"]),
    ("keyledger audit list --form", 3, ["--format"]),
]


@pytest.mark.parametrize("line,word,choices", COMPLETED)
def test_what_is_begun_is_completed(line: str, word: int, choices: list[str]) -> None:
    asked = {"_KEYLEDGER_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(word)}

    done = subprocess.run(PROGRAM, env=os.environ | asked, capture_output=True, text=True, check=True)

    assert [one.partition(",")[2] for one in done.stdout.split()] == choices
