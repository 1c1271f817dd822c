"""`keyledger migrate` and `bootstrap`: before the first start on the operator's own database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from services.cli.main import examples
from services.cli.session import Session, local


@click.command("migrate", **examples("keyledger migrate", "keyledger migrate --json"))
@local
def migrate(session: Session) -> None:
    """Migrate the database to this version; safe to repeat, and for several processes at once."""
    from services.bootstrap import migrate as apply  # noqa: PLC0415 - a quick start
    from services.cli.databases import reachable_database  # noqa: PLC0415 - a quick start
    from services.cli.running import sentences  # noqa: PLC0415 - a quick start

    session.log_to_stderr()
    with sentences(), reachable_database(session.settings) as url:
        applied = apply(url)
    session.show(
        {"applied": applied},
        lambda: session.say(
            f"Applied {', '.join(applied)}." if applied else "Nothing to do: the database is up to date."
        ),
    )


@click.command(
    "bootstrap",
    **examples(
        "keyledger bootstrap --file ./root-key",
        "KEYLEDGER_ROOT_KEY=kl_root_... keyledger bootstrap      # with this root key",
    ),
)
@click.option(
    "--file", type=click.Path(path_type=Path, dir_okay=False), help="Write the key to this file, mode 0600."
)
@local
def bootstrap(session: Session, file: Path | None) -> None:
    """Create the first root key, on a database where no ledger process runs yet. `up` does it by itself."""
    from services.cli.bootstrapping import bootstrap_alone  # noqa: PLC0415 - a quick start
    from services.cli.databases import reachable_database  # noqa: PLC0415 - a quick start
    from services.cli.root_key import write_private  # noqa: PLC0415 - a quick start
    from services.cli.running import sentences  # noqa: PLC0415 - a quick start

    session.log_to_stderr()
    with sentences(), reachable_database(session.settings) as url:
        secret = asyncio.run(bootstrap_alone(session.settings, url))
    if secret is not None and file is not None:
        write_private(file, secret)
    shown = None if file is not None else secret
    document = {"made": secret is not None, "secret": shown, "file": str(file) if file and secret else None}

    def people() -> None:
        if secret is None:
            session.say("There is a root key already, or KEYLEDGER_ROOT_KEY has become one.")
        elif file is not None:
            session.say(f"The root key is in {file}, which only you can read.")
        else:
            session.say(f"\n    {secret}\n\nKeep it now: it is shown only once, and stored nowhere.")

    session.show(document, people)
