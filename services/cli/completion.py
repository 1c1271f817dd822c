"""`keyledger completion`: the script for shell completion."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from services.cli.main import cli, examples
from services.cli.session import Session, local

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    "completion",
    **examples(
        "keyledger completion bash >> ~/.bashrc",
        "keyledger completion fish > ~/.config/fish/completions/keyledger.fish",
    ),
)
@click.argument("shell", type=click.Choice(_SHELLS))
@local
def completion(session: Session, shell: str) -> None:
    """Print the script that lets your shell complete commands and options."""
    kind = get_completion_class(shell)
    assert kind is not None, "click knows the three"
    script = kind(cli, {}, "keyledger", "_KEYLEDGER_COMPLETE").source()
    session.show({"shell": shell, "script": script}, lambda: session.say(script))
