"""`keyledger`: the root of the command line. A command is imported when it is called: a quick start."""

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
    """Where a command lives, and the line that the overview shows of it."""

    module: str
    line: str


SECTIONS: Final[dict[str, dict[str, CommandEntry]]] = {
    "Run a ledger": {
        "up": CommandEntry("running", "Run everything here: embedded servers, the API, the worker."),
        "serve": CommandEntry("running", "Serve the API on a PostgreSQL and a NATS of one's own."),
        "project": CommandEntry("running", "Run the worker: projections, and the way to NATS."),
        "edge": CommandEntry("edge", "Run a sidecar that answers near the traffic."),
        "migrate": CommandEntry("setting_up", "Bring the database up to this version."),
        "bootstrap": CommandEntry("setting_up", "Make the first root key."),
        "demo": CommandEntry("demo", "Live through a day at five gateways."),
    },
    "Talk to a ledger": {
        "keyspaces": CommandEntry("keyspaces", "The keys of one gateway: shape, places, statuses."),
        "orgs": CommandEntry("orgs", "Organizations: who owns keys, projects and a wallet."),
        "projects": CommandEntry("projects", "Projects of an organization."),
        "plans": CommandEntry("plans", "Plans: models and a price multiplier."),
        "keys": CommandEntry("keys", "Keys: make, change, rotate, revoke, look at."),
        "wallet": CommandEntry("wallet", "An organization's prepaid balance."),
        "charges": CommandEntry("charges", "Charge uses, show a charge, give it back."),
        "verify": CommandEntry("verify", "Is a secret good for a use?"),
        "explain": CommandEntry("explain", "Why would a use be allowed or refused?"),
        "leak": CommandEntry("leak", "A secret is out: stop its key, see what it did, pay back."),
        "fence": CommandEntry("leak", "Has a change become true everywhere?"),
        "audit": CommandEntry("audit", "Who did what, when, from where."),
        "requests": CommandEntry("requests", "What became of each charge, reservation and refused use."),
        "events": CommandEntry("events", "The change feed: list it, or follow it live."),
    },
    "Look after a ledger": {
        "doctor": CommandEntry("doctor", "What is configured, reachable, migrated, lagging; what to do."),
        "new-epoch": CommandEntry("new_epoch", "Go on with a log that was restored, or lost events."),
        "rebuild": CommandEntry("upkeep", "Make the projections anew from the log, or check them."),
        "reconcile": CommandEntry("upkeep", "Does every balance and counter equal its events?"),
        "edges": CommandEntry("upkeep", "The edges that are connected."),
        "completion": CommandEntry("completion", "Let your shell complete commands and options."),
    },
}
"""Every command, in the order of the overview."""

_ENTRIES: Final = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class Commands(click.Group):
    """The root: knows each command's line, and imports it only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's own signature
        """All names."""
        return [*_ENTRIES]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - the same
        """The command itself, imported now."""
        entry = _ENTRIES.get(cmd_name)
        if entry is None:
            return None
        command = getattr(import_module(f"services.cli.{entry.module}"), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant; one that there is not, with those that are called nearly so."""
        if args[0] not in _ENTRIES and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches  # noqa: PLC0415 - a quick start

            near = " or ".join(get_close_matches(args[0], _ENTRIES))
            ctx.fail(f"No such command '{args[0]}'.{f' Did you mean {near}?' if near else ''}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """The overview, without an import."""
        for title, entries in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, entry.line) for name, entry in entries.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """Exit codes, for scripts."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in MEANINGS.items()])


class ListsByDefault(click.Group):
    """A group that lists when none of its commands is named: `keyledger events --follow`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Say `list` where nothing is said."""
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
    (http://127.0.0.1:8700) and show the root key of KEYLEDGER_API_KEY or of .keyledger/root-key.
    """
    context.obj = {"config": config, "as_json": as_json}


def run(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command line and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(given, prog_name="keyledger", standalone_mode=False)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does.
        sys.stderr.close()
        return 0
    except (click.ClickException, click.Abort, KeyboardInterrupt, SettingsError, CommandError) as error:
        return _end_with(error, as_json="--json" in given)
    return result if isinstance(result, int) else 0


_HINTS: Final = {
    "unauthenticated": "Set KEYLEDGER_API_KEY, or give --key-file.",
    "position_unknown": "Begin anew without the position: it is of another ledger, or of before a restore.",
}
"""What to do, where the ledger cannot know how it was asked."""


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
