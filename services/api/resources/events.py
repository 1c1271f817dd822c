"""The change feed: pages of CloudEvents, or a stream of Server-Sent Events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final

import msgspec

from domain.cloud_events import CloudEvent
from domain.state import Books
from keyledger_language.events import Event
from services.api.answering.answers import NO_STORE, Stream, head_of
from services.api.answering.problems import ProblemError, invalid
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.lists import Limit, OrganizationId
from services.api.operations import Query, Reply, operation
from services.ledger.feed import UnknownTypeError, tags_of
from services.ledger.tail import EventFilter

_STREAM: Final = head_of(
    (b"content-type", b"text/event-stream; charset=utf-8"), NO_STORE, (b"x-accel-buffering", b"no")
)


class FeedQuery(Query, frozen=True, kw_only=True):
    """From where, and which events."""

    after: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    """The position of the last event seen; from the beginning if not given."""
    types: Annotated[str, msgspec.Meta(max_length=2_000, examples=["KeyRevoked,KeyRotated"])] | None = None
    """Only these events, separated by commas; all if not given."""
    organization_id: OrganizationId | None = None
    """Only events of this customer."""
    limit: Limit = 50


class FeedView(View, frozen=True, kw_only=True):
    """A page of the feed."""

    items: list[CloudEvent]
    """Events in the order of the log."""
    next_after: Position
    """Continue from here, even if `items` is empty."""
    position: Position
    """The end of the log: the position of its last event."""


@operation(
    "GET",
    "/v1/events",
    operation_id="listEvents",
    tag="Events",
    summary="Read the change feed",
    description=(
        "Pages of CloudEvents in the order of the log. With `Accept: text/event-stream`, a stream that "
        "continues with new events: each event's id is its position, and a client that reconnects with "
        "`Last-Event-ID` misses nothing."
    ),
    permissions=("events:read",),
    query=FeedQuery,
    answer=FeedView,
    media_types=("application/json", "text/event-stream"),
    codes=("not_acceptable", "position_unknown", "too_many_streams"),
)
async def get_events(call: Call[FeedQuery, Any]) -> Reply | Stream:
    """A page of events, or a stream that continues with new ones."""
    wanted, feed = _wanted(call), call.api.feed
    if _wants_stream(call):
        after = _position(call, "Last-Event-ID", call.header("Last-Event-ID") or call.query.after)
        place = call.api.streams.take(call.caller.key_id)
        chunks = feed.stream(after=after, wanted=wanted, goes_on=_still_allowed(call))
        return Stream(_STREAM, chunks, ended=place.release)
    after = _position(call, "after", call.query.after)
    items, seen = await feed.page(after=after, wanted=wanted, limit=call.query.limit)
    position = call.place(call.ledger.head)
    return Reply(FeedView(items=items, next_after=call.place(seen), position=position))


def _wants_stream(call: Call[Any, Any]) -> bool:
    accept = call.header("Accept") or "*/*"
    if "text/event-stream" in accept:
        return True
    if any(kind in accept for kind in ("*/*", "application/json", "application/*")):
        return False
    raise ProblemError("not_acceptable", "The feed is available as application/json or text/event-stream.")


def _wanted(call: Call[FeedQuery, Any]) -> EventFilter:
    names = [one.strip() for one in (call.query.types or "").split(",")]
    try:
        tags = tags_of(name for name in names if name)
    except UnknownTypeError as error:
        names_wanted = f"names of events, such as KeyRevoked, separated by commas; {error}"
        raise invalid("types", names_wanted) from error
    bound, asked = call.asking.organization_id, call.query.organization_id
    if bound is not None and asked not in {None, bound}:
        return EventFilter(tags=())  # another organization: as if it had no events
    organization_id, keyspace_id = bound or asked, call.asking.keyspace_id
    sees = partial(_is_visible, call.books, keyspace_id)
    return EventFilter(tags, sees, organization_id, like=("keyspace", keyspace_id))


def _still_allowed(call: Call[Any, Any]) -> Callable[[], bool]:
    """Whether the stream may continue: if the caller's key changes, the caller must authenticate again."""
    key = call.books.keys[call.caller.key_id]
    version = key.version

    def goes_on() -> bool:
        now = call.books.keys.find(key.id)
        return (
            call.ledger.owner
            and now is not None
            and now.version == version
            and now.status(call.now) == "active"
        )

    return goes_on


def _position(call: Call[Any, Any], field: str, text: str | None) -> int:
    if text is None:
        return 0
    number = call.number_of(text)
    if number is None:
        raise invalid(field, "not a position of this ledger")
    return number


def _is_visible(books: Books, keyspace_id: str | None, event: Event) -> bool:
    if keyspace_id is None:
        return True
    key = books.keys.find(getattr(event, "key_id", ""))
    if key is not None:
        return keyspace_id in {key.keyspace_id, key.bound_keyspace_id}
    return getattr(event, "keyspace_id", None) == keyspace_id


ROUTES = [get_events]
