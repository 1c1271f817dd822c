"""Lists: one way to page, sort and filter; ids come from projections, their contents from committed state."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Collection
from hashlib import blake2b
from typing import Annotated, Any, Final, TypeVar

import msgspec

from domain.ids import id_pattern
from keyledger_language.instants import Instant
from projections.pages import Page
from services.api.answering.problems import invalid
from services.api.asking.call import Call
from services.api.asking.fields import When, instant_of
from services.api.operations import Query, Reply

T = TypeVar("T")

Limit = Annotated[int, msgspec.Meta(ge=1, le=500, description="At most this many; 50 if not given.")]
Cursor = Annotated[
    str,
    msgspec.Meta(max_length=2_000, description="`next_cursor` of the previous page of the same list."),
]
Search = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Filter = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
KeyId = Annotated[str, msgspec.Meta(pattern=f"^{id_pattern('key')}$")]
KeyspaceId = Annotated[str, msgspec.Meta(pattern=f"^{id_pattern('ks')}$")]
OrganizationId = Annotated[str, msgspec.Meta(pattern=f"^{id_pattern('org')}$")]
ProjectId = Annotated[str, msgspec.Meta(pattern=f"^{id_pattern('prj')}$")]
"""A filter by an id: a value that is not an id is refused, since it would never find anything."""

_OF_A_PAGE: Final = frozenset({"limit", "cursor"})
"""What may differ from page to page; all else identifies the list."""
_MARK_BYTES: Final = 6
_MARK_LENGTH: Final = 8
_FOREIGN: Final = "the cursor belongs to another list, or to other filters or another sort of this one"
_encode: Final = msgspec.json.Encoder(order="sorted").encode


class Paging(Query, frozen=True, kw_only=True):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor | None = None


class Span(Query, frozen=True, kw_only=True):
    """From when to when."""

    from_: When | None = msgspec.field(name="from", default=None)
    """The beginning, included."""
    to: When | None = None
    """The end, not included."""


class PagedSpan(Paging, frozen=True, kw_only=True):
    """From when to when, and which page of it."""

    from_: When | None = msgspec.field(name="from", default=None)
    """The beginning, included."""
    to: When | None = None
    """The end, not included."""


def span_of(query: Span | PagedSpan) -> tuple[Instant | None, Instant | None]:
    """The beginning (included) and the end (not included); an empty span is refused."""
    from_at, to_at = instant_of(query.from_, "from"), instant_of(query.to, "to")
    if from_at is not None and to_at is not None and from_at >= to_at:
        raise invalid("from", "must be before to")
    return from_at, to_at


def known(field: str, value: str | None, names: Collection[str]) -> str | None:
    """A filter that has one of these values; any other is refused, since it would never find anything."""
    if value is not None and value not in names:
        raise invalid(field, f"one of {', '.join(names)}")
    return value


def cursor_of(call: Call[Any, Any]) -> str | None:
    """Where the page begins, as this list's projection gave it.

    A cursor of another list, or of other filters or another sort, is refused: it would silently leave
    things out.
    """
    given: str | None = call.query.cursor
    if given is None:
        return None
    if given[:_MARK_LENGTH] != _mark_of(call):
        raise invalid("cursor", _FOREIGN)
    return given[_MARK_LENGTH:]


def next_cursor_of(call: Call[Any, Any], cursor: str | None) -> str | None:
    """Where the next page begins, as clients get it: with its epoch and the mark of its list."""
    return None if cursor is None else call.next_cursor(_mark_of(call) + cursor)


def asked_of(call: Call[Any, Any]) -> dict[str, Any]:
    """Filters, sort, limit and cursor, as a list's projection takes them."""
    return msgspec.structs.asdict(call.query) | {"cursor": cursor_of(call)}


def _mark_of(call: Call[Any, Any]) -> str:
    """Which list this is: its route, its subject, what its caller is bound to, its filters and its sort.

    It needs no secret, since a forged mark gains nothing: what a caller may see is checked again for each
    page.
    """
    query = msgspec.structs.asdict(call.query)
    asked = {name: value for name, value in query.items() if name not in _OF_A_PAGE}
    caller, operation = call.caller, call.operation
    path = "" if operation is None else operation.path
    told = _encode([path, call.path, caller.organization_id, caller.keyspace_id, asked])
    return urlsafe_b64encode(blake2b(told, digest_size=_MARK_BYTES).digest()).decode()


async def read_page(page: Awaitable[T]) -> T:
    """A page; the only thing that can still be wrong is its cursor."""
    try:
        return await page
    except ValueError as error:
        raise invalid("cursor", str(error)) from None


async def listed(call: Call[Any, Any], page: Awaitable[Page], show: Callable[[str], Any | None]) -> Reply:
    """A page of things by their ids; one that the state does not have (any more) is left out."""
    position = call.reader.position  # read before the query: the page shows at least this position
    found = await read_page(page)
    body = {
        "items": [shown for one in found.ids if (shown := show(one)) is not None],
        "next_cursor": next_cursor_of(call, found.next_cursor),
        "position": call.place(position),
    }
    return Reply(body, position=position)
