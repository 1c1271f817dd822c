"""`keyledger`: the root of the command line. A command is imported when it is called, for a quick start."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from services.cli.colours import colour_of
from services.cli.faults import INTERRUPTED, MEANINGS, WRONG_USAGE, CommandError, LedgerProblemError
from services.settings import SettingsError


class CommandEntry(NamedTuple):
    """The module of a command, and its line in the overview."""

    module: str
    line: str


SECTIONS: Final[dict[str, dict[str, CommandEntry]]] = {
    "Run a ledger": {
        "up": CommandEntry("running", "Run everything here: embedded servers, the API, the worker."),
        "serve": CommandEntry("running", "Serve the API on your own PostgreSQL and NATS."),
        "project": CommandEntry("running", "Run the worker: projections, and the relay to NATS."),
        "edge": CommandEntry("edge", "Run a sidecar that answers near the traffic."),
        "migrate": CommandEntry("setting_up", "Migrate the database to this version."),
        "bootstrap": CommandEntry("setting_up", "Create the first root key."),
        "demo": CommandEntry("demo", "Simulate a day at five gateways."),
    },
    "Talk to a ledger": {
        "keyspaces": CommandEntry("keyspaces", "The keys of one gateway: shape, places, statuses."),
        "orgs": CommandEntry("orgs", "Organizations: who owns keys, projects and a wallet."),
        "projects": CommandEntry("projects", "Projects of an organization."),
        "plans": CommandEntry("plans", "Plans: models and a price multiplier."),
        "keys": CommandEntry("keys", "Keys: create, change, rotate, revoke, show."),
        "wallet": CommandEntry("wallet", "An organization's prepaid balance."),
        "charges": CommandEntry("charges", "Charge uses, show a charge, refund it."),
        "verify": CommandEntry("verify", "Check whether a secret is good for a use."),
        "explain": CommandEntry("explain", "Explain why a use would be allowed or refused."),
        "leak": CommandEntry("leak", "Respond to a leaked secret: revoke its key, list its uses, refund."),
        "fence": CommandEntry("leak", "Show whether a change has taken effect everywhere."),
        "audit": CommandEntry("audit", "Who did what, when, from where."),
        "requests": CommandEntry("requests", "What became of each charge, reservation and refused use."),
        "events": CommandEntry("events", "The change feed: list it, or follow it live."),
    },
    "Look after a ledger": {
        "doctor": CommandEntry("doctor", "What is configured, reachable, migrated, lagging; what to do."),
        "new-epoch": CommandEntry("new_epoch", "Continue with a log that was restored, or lost events."),
        "rebuild": CommandEntry("upkeep", "Rebuild the projections from the log, or check them."),
        "reconcile": CommandEntry("upkeep", "Check that every balance and counter equals its events."),
        "edges": CommandEntry("upkeep", "List the connected edges."),
        "completion": CommandEntry("completion", "Let your shell complete commands and options."),
    },
}
"""Every command, in the order of the overview."""

_ENTRIES: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """The root group: it knows each command's line, and imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        """All names."""
        return [*_ENTRIES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """The command, imported now."""
        entry = _ENTRIES.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"services.cli.{entry.module}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command with this name; an unknown name is refused, with commands of similar names."""
        if args[0] not in _ENTRIES and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches  # noqa: PLC0415 - a quick start

            near = " or ".join(get_close_matches(args[0], _ENTRIES))
            ctx.fail(f"No such command '{args[0]}'.{f' Did you mean {near}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The overview, without importing any command."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.line) for name, entry in entries.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """Exit codes, for scripts."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


class ListsByDefault(click.Group):
    """A group that runs `list` when none of its commands is named: `keyledger events --follow`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Insert `list` if no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A TOML file with settings [KEYLEDGER_CONFIG, or ./keyledger.toml].",
)
@click.option("--json", "as_json", is_flag=True, help="Answer as JSON.")
@click.version_option(package_name="keyledger", message="keyledger %(version)s")
@click.pass_context
def cli(context: click.Context, config: Path | None, as_json: bool) -> None:
    """Issue, verify, meter and revoke API keys, on one append-only log.

    `keyledger up` runs everything here; the other commands talk to it. They find it at KEYLEDGER_URL
    (http://127.0.0.1:8700) and use the root key in KEYLEDGER_API_KEY or in .keyledger/root-key.
    """
    context.obj = {"config": config, "as_json": as_json}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(given, prog_name="keyledger", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # The reader of the output closed it, as `head` does.
        sys.stderr.close()
        return 0
    except (click.ClickException, click.Abort, KeyboardInterrupt, SettingsError, CommandError) as error:
        return _end_with(error, as_json="--json" in given)
    return result if isinstance(result, int) else 0


_HINTS: Final = {
    "unauthenticated": "Set KEYLEDGER_API_KEY, or give --key-file.",
    "position_unknown": "Start again without the position: it is of another ledger or from before a restore.",
}
"""What to do, for problems whose remedy depends on how the command line was called."""


def _end_with(error: BaseException, *, as_json: bool) -> int:
    match error:
        case CommandError():
            return _tell(error, as_json=as_json)
        case SettingsError():
            return _tell(
                CommandError(str(error), code="invalid_setting", exit_code=WRONG_USAGE), as_json=as_json
            )
        case click.ClickException() if as_json:
            sentence = error.format_message()
            return _tell(CommandError(sentence, code="usage", exit_code=WRONG_USAGE), as_json=True)
        case click.ClickException():
            error.show()
            return WRONG_USAGE
        case _:
            click.echo("Stopped.", err=True)
            return INTERRUPTED


def _tell(error: CommandError, *, as_json: bool) -> int:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(error.problem), indent=2).decode(), err=True)
        return error.exit_code
    click.secho(f"keyledger: {error}", err=True, fg="red", color=colour_of(sys.stderr))
    if isinstance(error, LedgerProblemError):
        for field, message in error.fields:
            if message not in str(error):
                click.echo(f"  {field}: {message}", err=True)
        if request_id := error.problem.get("request_id"):
            click.echo(f"  code {error.code}, request {request_id}", err=True)
        if hint := _HINTS.get(error.code):
            click.echo(f"  {hint}", err=True)
    return error.exit_code


def main() -> None:
    """The entry point."""
    sys.exit(run())


def examples(*lines: str) -> dict[str, Any]:
    """A command's examples, as its epilog, kept as they are written."""
    return {"epilog": "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)}
