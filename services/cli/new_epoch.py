"""`keyledger new-epoch`: after a restore or a fail-over that lost events, continue with this log."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import click

from services.cli.faults import CONFLICT, CommandError
from services.cli.main import examples
from services.cli.session import Session, local, yes_option

if TYPE_CHECKING:
    from domain.publishing import Place
    from infra.nats.told import StreamComparison
    from infra.postgres.epochs import History

_NATS_SECONDS: Final = 30.0
_MOST_SHOWN: Final = 20
_MOST_EDGES: Final = 100_000


@click.command("new-epoch", **examples("keyledger new-epoch", "keyledger new-epoch --yes --json"))
@yes_option
@local
def new_epoch(session: Session, yes: bool) -> None:
    """Continue with this log, although it lost events that others have seen: after a restore, or a fail-over.

    Prints where the log ends, and what NATS and edges received beyond it. Ledger processes read the log
    again, edges and cursors start empty, and NATS receives all of it again under the new epoch.
    """
    from infra.postgres.epochs import EpochMovedError, raise_epoch, read_history  # noqa: PLC0415 - a quick start
    from services.bootstrap import check_migrated  # noqa: PLC0415 - a quick start
    from services.cli.databases import reachable_servers  # noqa: PLC0415 - a quick start
    from services.cli.running import sentences  # noqa: PLC0415 - a quick start

    session.log_to_stderr()
    with sentences(), reachable_servers(session.settings) as servers:
        check_migrated(servers.database_url)
        history = read_history(servers.database_url)
        told, why_not = _told(servers.database_url, servers.nats_url, history)
        edges, edges_unknown = _edges_beyond(session, history)
        end = history.end
        for line in _sentences(history, told, why_not, edges, edges_unknown):
            session.say(line)
        session.confirm(
            f"Raise the epoch from {end.epoch}? Everything continues after position {_head(history)}.",
            yes=yes,
        )
        seen = told.place.epoch if told is not None and told.place is not None else 0
        try:
            raised = raise_epoch(servers.database_url, from_epoch=end.epoch, seen_epoch=seen)
        except EpochMovedError as error:
            raise CommandError(str(error), code="epoch_moved", exit_code=CONFLICT) from None
    session.show(
        _document(history, told, why_not, edges, raised) | {"edges_unknown": edges_unknown},
        lambda: session.say(
            f"The epoch is {raised} now. Ledger processes notice within seconds, and NATS receives the whole"
            " log again."
        ),
    )


def _told(
    database_url: str, nats_url: str | None, history: History
) -> tuple[StreamComparison | None, str | None]:
    """What NATS holds, or why that is unknown."""
    from domain.publishing import StreamUnavailableError  # noqa: PLC0415 - a quick start
    from infra.nats.told import told_beyond  # noqa: PLC0415 - a quick start
    from infra.postgres.epochs import marks_at  # noqa: PLC0415 - a quick start

    if nats_url is None:
        return None, "NATS was not checked: KEYLEDGER_NATS_URL is not set."
    looking = told_beyond(nats_url, 0, history.log_id, lambda positions: marks_at(database_url, positions))
    try:
        return asyncio.run(asyncio.wait_for(looking, _NATS_SECONDS)), None
    except (StreamUnavailableError, TimeoutError) as error:
        return None, f"NATS could not be reached: {str(error) or 'it does not answer.'}"


def _edges_beyond(session: Session, history: History) -> tuple[list[dict[str, Any]] | None, str | None]:
    """The edges that know more than the log has, or why that is unknown.

    A process that stopped itself answers nothing, not even about edges: it would check the caller's root key
    by a history that is void. A process on standby never knew the edges.
    """
    try:
        found = list(session.ledger.pages("/v1/edges", limit=_MOST_EDGES))
    except CommandError as error:
        return None, f"The edges are unknown: {str(error) or 'no ledger process answers.'}"
    return [one for one in found if _number(one.get("position")) > history.end.position], None


def _head(history: History) -> str:
    return _position(history.end.epoch, history.end.position)


def _told_at(place: Place, number: int | None = None) -> str:
    """A position as NATS received it: the end of its stream, or the one given."""
    return _position(place.epoch, place.number if number is None else number)


def _position(epoch: int, number: int) -> str:
    from domain.ids import format_position  # noqa: PLC0415 - a quick start
    from keyledger_language import position_prefix  # noqa: PLC0415 - a quick start

    return format_position(position_prefix(0, epoch), number)


def _number(position: Any) -> int:
    number = str(position or "").rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _sentences(
    history: History,
    told: StreamComparison | None,
    why_not: str | None,
    edges: list[dict[str, Any]] | None,
    edges_unknown: str | None,
) -> list[str]:
    end = history.end
    lines = [f"The log ends at {_head(history)}, in epoch {end.epoch}."]
    if told is None:
        lines.append(str(why_not))
    elif told.place is None:
        lines.append("NATS holds nothing of it.")
    elif not told.lost_count:
        lines.append(f"NATS received it up to {_told_at(told.place)}, and nothing that is not in it.")
    else:
        lines.append(
            f"NATS received {told.lost_count:,} events that are not in it, up to {_told_at(told.place)}:"
        )
        lines += [
            f"  {_told_at(told.place, one.position)} {one.type} {one.subject} {one.time}"
            for one in told.lost[:_MOST_SHOWN]
        ]
        if told.lost_count > _MOST_SHOWN:
            lines.append("  ... (--json lists up to 1,000)")
    if edges_unknown is not None:
        lines.append(f"{edges_unknown} They forget the lost events by themselves.")
    for one in edges or ():
        lines.append(f"The edge {one.get('id')} had received events up to {one.get('position')}.")
    return lines


def _document(
    history: History,
    told: StreamComparison | None,
    why_not: str | None,
    edges: list[dict[str, Any]] | None,
    raised: int,
) -> dict[str, Any]:
    end = history.end
    published: dict[str, Any] | None = None
    if told is not None and told.place is not None:
        published = {
            "position": _told_at(told.place),
            "epoch": told.place.epoch,
            "lost_count": told.lost_count,
            "lost": [{**one._asdict(), "position": _told_at(told.place, one.position)} for one in told.lost],
        }
    return {
        "epoch": raised,
        "epoch_before": end.epoch,
        "head": _head(history),
        "published": published,
        "published_unknown": why_not,
        "edges_beyond": edges,
    }
