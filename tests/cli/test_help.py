"""Help: complete, true, and quick."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from services.cli.faults import MEANINGS
from services.cli.main import SECTIONS, cli, run

NAMES = [name for section in SECTIONS.values() for name in section]
PROGRAM = [sys.executable, "-P", "-c", "from keyledger_boot import main; main()"]


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in NAMES:
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            for inner, one in command.commands.items():
                yield f"{name} {inner}", one
        else:
            yield name, command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    command = COMMANDS[name]

    assert (command.help or "").strip().endswith((".", "?"))
    assert "Examples:" in (command.epilog or "")


@pytest.mark.parametrize("name", COMMANDS)
def test_each_example_names_options_that_there_are(name: str) -> None:
    for line in (COMMANDS[name].epilog or "").splitlines()[2:]:
        words = shlex.split(line.split("#")[0].rsplit("|", 1)[-1])
        words = words[words.index("keyledger") + 1 :]
        called = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
        known = {option for one in COMMANDS[called].params for option in (*one.opts, *one.secondary_opts)}

        assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= known


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_answers_as_json_too(name: str) -> None:
    assert "--json" in {option for one in COMMANDS[name].params for option in one.opts}


DESTROY = [
    "keys revoke",
    "keys delete",
    "keys disable",
    "keys rotate",
    "keyspaces archive",
    "orgs suspend",
    "projects archive",
    "wallet credit",
    "leak",
    "new-epoch",
]


@pytest.mark.parametrize("name", DESTROY)
def test_what_destroys_takes_yes(name: str) -> None:
    assert "--yes" in {option for one in COMMANDS[name].params for option in one.opts}


def test_the_overview_shows_every_command_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0

    shown = capsys.readouterr().out
    assert [name for name in NAMES if f"\n  {name} " not in shown] == []
    assert [code for code in MEANINGS if f"\n  {code} " not in shown] == []


def test_the_overview_costs_less_than_a_third_of_a_second() -> None:
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    # Of the processor's time: the machine may be busy with other tests.
    used = subprocess.run(
        [sys.executable, "-c", script, *PROGRAM, "--help"], capture_output=True, text=True, check=True
    )

    assert float(used.stdout) < 0.3


def test_a_mistyped_command_is_told_what_it_may_have_been(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["audti"]) == 2
    assert "No such command 'audti'. Did you mean audit?" in capsys.readouterr().err
    assert run(["xyz"]) == 2
    assert "No such command 'xyz'.\n" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["keys", "show"]) == 2
    assert "Missing argument" in capsys.readouterr().err
    assert run(["keys", "show", "--json"]) == 2
    assert '"code": "usage"' in capsys.readouterr().err
