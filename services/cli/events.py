"""`keyledger events`: the change feed, as a list or live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import urlencode

import click
import msgspec

from services.cli.amounts import clock_time
from services.cli.faults import UNREACHABLE, CommandError, LedgerProblemError
from services.cli.http import ApiClient, Document
from services.cli.main import ListsByDefault, examples
from services.cli.session import Session, given, talking

_AT_ONCE: Final = 500
_LISTED: Final = 50
# The ledger sends a sign of life every 15 s: if three of them are missing, the connection is lost.
_SILENCE_SECONDS: Final = 45.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 10.0
_LATER: Final = frozenset({429, 502, 503, 504})


@click.group(cls=ListsByDefault)
def events() -> None:
    """The change feed: everything that happens, in the order of the log. Without a command it lists."""


@events.command(
    "list",
    **examples(
        "keyledger events list --types KeyRevoked,KeyRotated --after 0-1042",
        "keyledger events list --follow                  # from now on, until Ctrl-C",
        "keyledger events list --follow --after 0-0 --json   # from the beginning, a line of JSON for each",
    ),
)
@click.option("--types", metavar="A,B", help="Only these, such as KeyRevoked,KeyRotated.")
@click.option("--org", "organization", help="Only of this organization: id, name or external id.")
@click.option("--after", metavar="POSITION", help="Only events after this position; 0-0: from the beginning.")
@click.option("--follow", is_flag=True, help="Print new events as they come, from now on or from --after.")
@click.option(
    "--limit", type=click.IntRange(1), help="How many at most; by default 50, or with --follow no bound."
)
@talking
def list_events(
    session: Session,
    types: str | None,
    organization: str | None,
    after: str | None,
    follow: bool,
    limit: int | None,
) -> None:
    """List events, oldest first, or follow them: after a broken connection it resumes, and misses nothing."""
    query = given(types=types, organization_id=session.organization(organization) if organization else None)
    if follow:
        _follow(session, query, after, limit)
        return
    items, next_after = _pages(session.ledger, query, after, limit or _LISTED)
    rows = [(clock_time(one["time"]), _kind(one), _subject(one), one["position"]) for one in items]
    session.show(
        {"items": items, "next_after": next_after},
        lambda: session.table(("at (UTC)", "event", "of", "position"), rows, empty="No matching events."),
    )


def _pages(
    ledger: ApiClient, query: Document, after: str | None, limit: int
) -> tuple[list[Document], str | None]:
    """Events, and the position to continue from. A page may be short, or empty, long before the end."""
    found: list[Document] = []
    while len(found) < limit:
        page = ledger.get("/v1/events", **query, after=after, limit=min(_AT_ONCE, limit - len(found)))
        found += page["items"]
        ended = page["next_after"] in {page["position"], after}
        after = page["next_after"]
        if ended:
            break
    return found, after


def _follow(session: Session, query: Document, after: str | None, limit: int | None) -> None:
    start = after or session.ledger.get("/v1/events", limit=1)["position"]
    for number, event in enumerate(follow(session.ledger, query, start, note=session.note), 1):
        click.echo(msgspec.json.encode(event).decode() if session.as_json else _line(event))
        if number == limit:
            return


def follow(
    ledger: ApiClient,
    query: Document,
    after: str,
    *,
    note: Callable[[str], None],
    pause_seconds: float = _FIRST_PAUSE_SECONDS,
) -> Iterator[Document]:
    """Every event after a position, for as long as the caller iterates.

    A stream that breaks is resumed with `Last-Event-ID`. Errors that a new connection cannot fix are raised,
    and so is the error of a ledger that cannot be reached at the start.
    """
    began, failures = False, 0
    while True:
        try:
            for one in _messages(ledger, query, after):
                began, failures = True, 0
                after = one.id or after
                if one.data:
                    yield msgspec.json.decode(one.data)
            cut = "The ledger ended the stream."
        except LedgerProblemError as error:
            if not began or error.status not in _LATER:
                raise
            cut = str(error)
        except CommandError as error:
            if not began or error.exit_code != UNREACHABLE:
                raise
            cut = str(error)
        if failures == 0:
            note(f"{cut} The stream is resumed after {after} as soon as possible.")
        time.sleep(min(pause_seconds * 2**failures, _LONGEST_PAUSE_SECONDS))
        failures += 1


class ServerSentEvent(msgspec.Struct):
    """One message of Server-Sent Events; one with only an id says how far the ledger has read."""

    id: str = ""
    data: str = ""


def _messages(ledger: ApiClient, query: Document, after: str) -> Iterator[ServerSentEvent]:
    headers = {"Accept": "text/event-stream", "Last-Event-ID": after}
    path = f"/v1/events?{urlencode(query)}" if query else "/v1/events"
    return messages(ledger.lines(path, headers, silence_seconds=_SILENCE_SECONDS))


def messages(lines: Iterator[bytes]) -> Iterator[ServerSentEvent]:
    """Messages from lines; a message that is cut off before its empty line is dropped."""
    message = ServerSentEvent()
    for line in lines:
        field, _, value = line.decode().rstrip("\r\n").partition(":")
        value = value.removeprefix(" ")
        if line.strip() == b"":
            yield message
            message = ServerSentEvent()
        elif field == "id":
            message.id = value
        elif field == "data":
            message.data = f"{message.data}\n{value}" if message.data else value


def _kind(event: Document) -> str:
    return str(event["type"]).removeprefix("keyledger.")


def _subject(event: Document) -> str:
    return str(event.get("subject") or "-")


def _line(event: Document) -> str:
    told: tuple[Any, ...] = (clock_time(event["time"]), _kind(event), _subject(event), event["position"])
    return "  ".join(map(str, told))
