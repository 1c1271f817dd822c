"""docs/cli.md, from the commands' own help. `python -m tests.docs.cli_reference` writes it."""

from collections.abc import Iterator

import click

from services.cli.faults import MEANINGS
from services.cli.main import SECTIONS, cli
from tests.docs.examples import ROOT

PAGE = ROOT / "docs" / "cli.md"
_WIDTH = 100

_INTRODUCTION = """\
# Command line

In a checkout the command is `.venv/bin/keyledger`. Commands that talk to a ledger find it at
`KEYLEDGER_URL` and use the root key in `--key-file`, in `KEYLEDGER_API_KEY`, or in `root-key` in the data
folder; a file that others may read is refused. Tables are for people, `--json` is for programs: the answer
is on standard output, a refusal on standard error, as problem details. Commands that destroy something ask
first; `--yes` skips the question, and is required without a terminal. Secrets are read from standard input
(`-`), and shown only once. Amounts are in units (`0.25`); in files and JSON they are in micros.

Tables, `keys history` and `explain` fit the terminal; without one, and with `NO_COLOR`, there are no colours.
Long commands (`rebuild`, `reconcile`, `keys import`, `charges batch`) show their progress on standard error.
`keyledger completion` lets your shell complete commands and options.

This page is written by `python -m tests.docs.cli_reference` from the commands' own help.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield _INTRODUCTION
    yield "## Exit codes\n\n| code | meaning |\n| --- | --- |"
    yield from (f"| {code} | {meaning} |" for code, meaning in MEANINGS.items())
    root = click.Context(
        cli,
        info_name="keyledger",
        help_option_names=cli.context_settings["help_option_names"],
        max_content_width=_WIDTH,
        terminal_width=_WIDTH,
    )
    for title, entries in SECTIONS.items():
        yield f"\n## {title}"
        for name in entries:
            command = cli.get_command(root, name)
            assert command is not None
            yield from _help(command, name, root)


def _help(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(
        command, info_name=name, parent=parent, max_content_width=_WIDTH, terminal_width=_WIDTH
    )
    if isinstance(command, click.Group):
        for inner, one in command.commands.items():
            yield from _help(one, inner, context)
        return
    lines = [line.rstrip() for line in command.get_help(context).splitlines()]
    yield f"\n### {context.command_path}\n\n```text"
    yield from lines
    yield "```"


if __name__ == "__main__":
    PAGE.write_text(reference())
