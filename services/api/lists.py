"""Lists: paged by opaque cursors; ids come from projections, what is shown from committed state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec

from projections.pages import Page
from services.api.answering.problems import invalid
from services.api.asking.call import Call
from services.api.operations import Query, Reply

T = TypeVar("T")

Limit = Annotated[int, msgspec.Meta(ge=1, le=500, description="At most this many; 50 if not given.")]
Cursor = Annotated[str, msgspec.Meta(max_length=2_000, description="`next_cursor` of the page before.")]
Search = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Filter = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Paging(Query, frozen=True, kw_only=True):
    """Which page."""

    limit: Limit = 50
    cursor: Cursor | None = None


async def read_page(page: Awaitable[T]) -> T:
    """A page; the one thing that can be wrong with it now is its cursor."""
    try:
        return await page
    except ValueError as error:
        raise invalid("cursor", str(error)) from None


async def listed(call: Call[Any, Any], page: Awaitable[Page], show: Callable[[str], Any | None]) -> Reply:
    """A page of things by their ids; one that the state does not have (any more) is left out."""
    position = call.reader.position  # before the question: the answer shows at least so much
    found = await read_page(page)
    body = {
        "items": [shown for one in found.ids if (shown := show(one)) is not None],
        "next_cursor": call.next_cursor(found.next_cursor),
        "position": call.place(position),
    }
    return Reply(body, position=position)
