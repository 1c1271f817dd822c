"""`keyledger rebuild`, `reconcile` and `edges`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from services.cli.amounts import clock_time
from services.cli.faults import CONFLICT, REFUSED, CommandError
from services.cli.main import examples
from services.cli.progress import progress
from services.cli.session import Session, local, talking

if TYPE_CHECKING:
    from infra.postgres.rebuilding import Check

_MOST_SHOWN = 100
_MOST_EDGES = 100_000


@click.command("rebuild", **examples("keyledger rebuild --check", "keyledger rebuild"))
@click.option("--check", is_flag=True, help="Only compare: print what differs, change nothing.")
@local
def rebuild(session: Session, check: bool) -> int:
    """Rebuild the projections from the log, beside the live ones, and swap them in.

    With --check both are only compared, row by row; exit code 1 if anything differs. Works while the
    ledger runs, and while it does not.
    """
    from infra.postgres import rebuilding  # noqa: PLC0415 - a quick start
    from projections.every import every_projection  # noqa: PLC0415 - a quick start
    from services.bootstrap import check_migrated, event_mapper  # noqa: PLC0415 - a quick start
    from services.cli.databases import reachable_database  # noqa: PLC0415 - a quick start
    from services.cli.running import sentences  # noqa: PLC0415 - a quick start

    session.log_to_stderr()
    with sentences(), reachable_database(session.settings) as url:
        check_migrated(url)
        mapper = event_mapper(session.settings)
        what = "Checking" if check else "Rebuilding"
        try:
            if not check:
                with progress(what, _head(url), "events") as tell:
                    position = rebuilding.rebuild(
                        url, every_projection(), mapper, on_progress=lambda one: tell(one.position)
                    )
                place = _place(position, _epoch(url))
                session.show(
                    {"rebuilt": True, "position": place},
                    lambda: session.say(f"The projections are rebuilt, as of position {place}."),
                )
                return 0
            with progress(what, _head(url), "events") as tell:
                found = rebuilding.check(
                    url, every_projection(), mapper, on_progress=lambda one: tell(one.position)
                )
            epoch = _epoch(url)
        except rebuilding.RebuildRunningError as error:
            raise CommandError(str(error), code="rebuild_running", exit_code=CONFLICT) from None
    session.show(_check_document(found, epoch), lambda: _check_people(session, found, epoch))
    return 0 if found.clean else REFUSED


@click.command("reconcile", **examples("keyledger reconcile", "keyledger reconcile --json"))
@local
def reconcile(session: Session) -> int:
    """Check that every balance and counter equals the sum of its events. Exit code 1 if one does not.

    Sums up the whole log in its own way: wallet = deposits - charges + refunds, reserved = what open
    reservations hold, every counter = its window's uses. The sums are compared with what each event
    states, the state that results from the log, the saved state, and the usage counters.
    """
    from services.cli.databases import reachable_database  # noqa: PLC0415 - a quick start
    from services.cli.reconciling import reconcile as reconcile_all  # noqa: PLC0415 - a quick start
    from services.cli.running import sentences  # noqa: PLC0415 - a quick start

    session.log_to_stderr()
    with sentences(), reachable_database(session.settings) as url:
        with progress("Adding up", _head(url), "events") as tell:
            found = asyncio.run(reconcile_all(session.settings, url, tell))
        epoch = _epoch(url)
    document = {
        "clean": found.clean,
        "position": _place(found.position, epoch),
        "saved_position": _place(found.saved_position, epoch),
        "usage_position": _place(found.usage_position, epoch),
        "wallets": found.wallets,
        "counters": found.counters,
        "differences": [one._asdict() for one in found.findings],
    }

    def people() -> None:
        session.say(
            f"{found.wallets:,} wallets and the counters of {found.counters:,} keys, projects and"
            f" organizations, as of position {_place(found.position, epoch)}."
        )
        if found.saved_position is None:
            session.say("No saved state to compare.")
        if found.usage_position is None:
            session.say("No usage counters to compare.")
        if found.clean:
            session.say("Difference: none.")
        for one in found.findings[:_MOST_SHOWN]:
            session.say(str(one))
        if len(found.findings) > _MOST_SHOWN:
            session.say(f"... and {len(found.findings) - _MOST_SHOWN:,} more; --json lists all.")

    session.show(document, people)
    return 0 if found.clean else REFUSED


def _head(url: str) -> int:
    from infra.postgres.epochs import read_history  # noqa: PLC0415 - a quick start

    return read_history(url).end.position


def _epoch(url: str) -> int:
    from infra.postgres.epochs import read_history  # noqa: PLC0415 - a quick start

    return read_history(url).end.epoch


def _place(position: int | None, epoch: int) -> str | None:
    from domain.ids import format_position  # noqa: PLC0415 - a quick start
    from keyledger_language import position_prefix  # noqa: PLC0415 - a quick start

    return None if position is None else format_position(position_prefix(0, epoch), position)


@click.command("edges", **examples("keyledger edges"))
@talking
def edges(session: Session) -> None:
    """List the connected edges: version, position, lease."""
    found = {"items": list(session.ledger.pages("/v1/edges", limit=_MOST_EDGES))}
    columns = ("id", "version", "position", "lease left", "last heard (UTC)")
    rows = [
        (str(one.get("id", "-")), str(one.get("version") or "-"), str(one.get("position") or "-"),
         f"{one['lease_left_ms']} ms",
         clock_time(one["last_heard_at"]))
        for one in found["items"]
    ]  # fmt: skip
    session.show(found, lambda: session.table(columns, rows, empty="No edge is connected."))


def _check_document(found: Check, epoch: int) -> dict[str, Any]:
    return {
        "clean": found.clean,
        "position": _place(found.position, epoch),
        "tables": [
            {
                "table": table.table,
                "rows": table.rows,
                "different": table.different,
                "differences": [
                    {"key": _plain(one.key), "live": _plain(one.live), "rebuilt": _plain(one.rebuilt)}
                    for one in table.differences
                ],
            }
            for table in found.tables
        ],
    }


def _check_people(session: Session, found: Check, epoch: int) -> None:
    rows = [(table.table, f"{table.rows:,}", f"{table.different:,}") for table in found.tables]
    session.table(("table", "+rows", "+different"), rows, empty="")
    for table in found.tables:
        for one in table.differences:
            session.say(f"\n{table.table} {_plain(one.key)}\n  is        {_plain(one.live)}")
            session.say(f"  should be {_plain(one.rebuilt)}")
    clean = "The projections agree with the log" if found.clean else "The projections differ from the log"
    advice = "" if found.clean else ": `keyledger rebuild` rebuilds them"
    session.say(f"\n{clean}, as of position {_place(found.position, epoch)}{advice}.")


def _plain(row: dict[str, Any] | None) -> dict[str, str | int | float | bool | None] | None:
    if row is None:
        return None
    return {
        name: value if isinstance(value, str | int | float | bool | None) else str(value)
        for name, value in row.items()
    }
