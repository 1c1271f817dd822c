"""What every command uses: settings, the ledger it talks to, and the ways to show an answer."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
import msgspec

from services.cli.colours import colour_of
from services.cli.faults import NOT_FOUND, WRONG_USAGE, CommandError, LedgerProblemError
from services.cli.http import ApiClient, Document
from services.settings import Settings, load_settings

P = ParamSpec("P")
R = TypeVar("R")

_MOST_LOOKED_AT = 10_000
_BAD_REQUEST = 400
_NARROW = 80
_WIDE = 100
_MOST_NAMED = 10


class Session:
    """One run of one command."""

    def __init__(
        self,
        *,
        config: Path | None = None,
        as_json: bool = False,
        overrides: dict[str, Any] | None = None,
        key_file: Path | None = None,
    ) -> None:
        self.as_json = as_json
        self._config = config
        self._overrides = overrides or {}
        self._key_file = key_file

    @functools.cached_property
    def settings(self) -> Settings:
        """The settings, read when they are first needed."""
        return self.settings_with()

    def log_to_stderr(self) -> None:
        """For commands that run parts of the ledger here: standard output is for the answer."""
        from services.cli.logs import configure_logs  # noqa: PLC0415 - a quick start

        configure_logs(self.settings, least="warning")

    def settings_with(self, **overrides: Any) -> Settings:
        """The settings, overridden by options of the command; None means that an option was not given."""
        return load_settings(config=self._config, overrides=self._overrides | overrides)

    @functools.cached_property
    def ledger(self) -> ApiClient:
        """The ledger, called with the root key that was found."""
        from services.cli.root_key import find_root_key  # noqa: PLC0415 - a quick start

        return ApiClient(self.settings.url, find_root_key(self.settings, self._key_file))

    # -- showing

    def show(self, document: Any, people: Callable[[], None]) -> None:
        """The document as JSON, or what `people` prints."""
        if self.as_json:
            self.print_json(document)
        else:
            people()

    def print_json(self, document: Any) -> None:
        """Print a document, indented, and nothing else on standard output."""
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())

    def say(self, sentence: str) -> None:
        """Print a sentence for people; with `--json` nothing is printed."""
        if not self.as_json:
            click.echo(sentence)

    def note(self, sentence: str) -> None:
        """Print a remark on standard error: standard output is for the answer alone."""
        click.echo(sentence, err=True)

    def headline(self, word: str, *, good: bool) -> None:
        """Print the answer in one word."""
        click.secho(word, fg="green" if good else "red", bold=True, color=colour_of(sys.stdout))

    @property
    def width(self) -> int:
        """The width of prose and paragraphs: that of the terminal, within bounds; 80 without a terminal."""
        return max(40, min(shutil.get_terminal_size((_NARROW, 24)).columns, _WIDE))

    def table(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        empty: str,
        width: int | None = None,
    ) -> None:
        """Print rows under their headings: as wide as the terminal, or as `width`.

        A column that begins with `+` holds numbers; one that begins with `?` is left out if there is no
        room for it.
        """
        shown = list(rows)
        if not shown:
            click.echo(empty)
            return
        from services.cli.tables import print_table  # noqa: PLC0415 - a quick start

        print_table(columns, shown, width)

    def facts(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and values, one pair per line."""
        shown = [(name, value) for name, value in pairs if value not in {"", "-"}]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            click.echo(f"{name:<{width}}  {value}")

    # -- asking

    def confirm(self, question: str, *, yes: bool) -> None:
        """Ask before something is destroyed; without a terminal `--yes` is required."""
        if yes:
            return
        if not sys.stdin.isatty():
            raise CommandError(
                f"{question} There is no terminal to ask on: add --yes.",
                code="not_confirmed",
                exit_code=WRONG_USAGE,
            )
        click.confirm(question, abort=True, err=True)

    def read_secret(self, given: str | None, name: str = "secret") -> str:
        """A secret from standard input (`-`) or a hidden prompt; one in the arguments causes a warning."""
        if given is None and sys.stdin.isatty():
            return str(click.prompt(name.capitalize(), hide_input=True, err=True)).strip()
        if given is None or given == "-":
            secret = sys.stdin.readline().strip()
            if not secret:
                raise CommandError(f"No {name} on standard input.", exit_code=WRONG_USAGE)
            return secret
        click.echo(f"Careful: others can see a {name} in the arguments; give - and pipe it in.", err=True)
        return given

    def show_secret(self, key: Document, secret: str, *, replaces: bool = False) -> None:
        """Show a secret, the only time that it is shown."""
        click.echo(f"{'New secret of' if replaces else 'Created'} {key['name']} ({key['id']}).")
        click.echo(f"\n    {secret}\n")
        click.echo("Keep it now: it is shown only once, and stored nowhere.")

    # -- finding

    def find(self, path: str, kind: str, wanted: str, *also: str) -> str:
        """The id of the one item in a list that has this id, name, or other field."""
        prefix = {"keyspace": "ks_", "organization": "org_", "project": "prj_", "plan": "plan_"}[kind]
        if wanted.startswith(prefix) and len(wanted) == len(prefix) + 26:
            return wanted
        found = [
            one
            for one in self.ledger.pages(path, limit=_MOST_LOOKED_AT)
            if wanted in {str(one.get(field)) for field in ("id", "name", *also)}
        ]
        if len(found) == 1:
            return str(found[0]["id"])
        ids = ", ".join(str(one["id"]) for one in found)
        raise CommandError(
            f"{len(found)} {kind}s are called {wanted}: {ids}; give the id of one."
            if found
            else f"There is no {kind} {wanted}.",
            code="ambiguous_name" if found else "not_found",
            exit_code=WRONG_USAGE if found else NOT_FOUND,
        )

    def organization(self, wanted: str) -> str:
        """An organization's id by id, name or external id."""
        return self.find("/v1/organizations", "organization", wanted, "external_id")

    def keyspace(self, wanted: str | None) -> str:
        """A keyspace's id by id or name; without either, the id of the only keyspace."""
        if wanted is not None:
            return self.find("/v1/keyspaces", "keyspace", wanted)
        own = [one for one in self.ledger.pages("/v1/keyspaces", limit=1_000) if not one.get("builtin")]
        if len(own) == 1:
            return str(own[0]["id"])
        raise CommandError(
            "There is no keyspace yet: `keyledger keyspaces create`."
            if not own
            else f"There are several keyspaces: name one with --keyspace ({_names(own)}).",
            code="keyspace_needed",
            exit_code=WRONG_USAGE,
        )

    def in_keyspace(self, named: str | None, ask: Callable[[Document], Document]) -> Document:
        """Ask about a secret, naming a keyspace only if one is given, or if the ledger requires one."""
        if named is not None:
            return ask({"keyspace_id": self.keyspace(named)})
        try:
            return ask({})
        except LedgerProblemError as error:
            if error.status != _BAD_REQUEST or "keyspace_id" not in dict(error.fields):
                raise
            wanted = error
        try:
            found = self.keyspace(None)
        except LedgerProblemError:
            # A root key that may ask about a secret may not be allowed to list keyspaces.
            raise wanted from None
        return ask({"keyspace_id": found})

    def plan(self, wanted: str) -> str:
        """A plan's id by id or name."""
        return self.find("/v1/plans", "plan", wanted)

    def project(self, organization_id: str, wanted: str) -> str:
        """A project's id by id or name."""
        return self.find(f"/v1/organizations/{organization_id}/projects", "project", wanted)


def _json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, also for errors (on stderr).")(
        function
    )


def local(function: Callable[Concatenate[Session, P], R]) -> Callable[..., R]:
    """A command that works with the settings alone: it gets a Session, and `--json`."""

    @_json_option
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> R:
        as_json = bool(kwargs.pop("as_json")) or _root(context, "as_json")
        return function(Session(config=_root(context, "config"), as_json=as_json), *args, **kwargs)

    return command


def talking(function: Callable[Concatenate[Session, P], R]) -> Callable[..., R]:
    """A command that talks to a ledger: it gets a Session, `--json`, `--url` and `--key-file`."""

    @_json_option
    @click.option("--url", metavar="URL", help="The ledger to talk to [KEYLEDGER_URL].")
    @click.option(
        "--key-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="A file with the root key, mode 0600 [KEYLEDGER_API_KEY, or root-key in the data folder].",
    )
    @click.pass_context
    @functools.wraps(function)
    def command(context: click.Context, /, *args: P.args, **kwargs: P.kwargs) -> R:
        session = Session(
            config=_root(context, "config"),
            as_json=bool(kwargs.pop("as_json")) or _root(context, "as_json"),
            overrides={"url": kwargs.pop("url")},
            key_file=kwargs.pop("key_file"),  # type: ignore[arg-type]  # the option's own type
        )
        return function(session, *args, **kwargs)

    return command


def yes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--yes`: do not ask."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def reason_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--reason`: the reason for a change, for the history."""
    return click.option("--reason", help="The reason; it is kept in the history.")(function)


def read_with(read: Callable[[str], Any]) -> click.ParamType[Any]:
    """An option's type from a function that raises ValueError with a sentence."""

    class Read(click.ParamType[Any]):
        name = read.__name__.removesuffix("_of").replace("_", " ")

        def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
            if not isinstance(value, str):
                return value
            try:
                return read(value)
            except ValueError as error:
                self.fail(f"{error}.", param, ctx)

    return Read()


def not_together(options: Mapping[str, Any], because: str | None = None) -> None:
    """Refuse options that exclude each other: none is ignored silently."""
    found = [name for name, value in options.items() if value not in (None, False, ())]
    if len(found) > 1:
        reason = f": {because}" if because else ""
        raise CommandError(
            f"Give {' or '.join(found)}, not {'both' if len(found) == 2 else 'all'}{reason}.",  # noqa: PLR2004
            code="usage",
            exit_code=WRONG_USAGE,
        )


def each_once(pairs: Iterable[tuple[str, Any]], option: str) -> dict[str, Any]:
    """Pairs as a mapping; a name that is given twice is refused, since one of the two would be ignored."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CommandError(
                f"{option} gives {name} twice: give it once.", code="usage", exit_code=WRONG_USAGE
            )
        found[name] = value
    return found


def given(**fields: Any) -> Document:
    """A body without the fields that are None or empty."""
    return {name: value for name, value in fields.items() if value is not None and value not in ((), [], {})}


def _names(keyspaces: Sequence[Document]) -> str:
    names = sorted(str(one["name"]) for one in keyspaces)
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def _root(context: click.Context, name: str) -> Any:
    return (context.find_root().obj or {}).get(name)
