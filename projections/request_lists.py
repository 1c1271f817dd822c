"""The request log by pages, newest first: a key's, an organization's or everybody's; all or by code."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Final, NamedTuple

from domain.projecting import EventReader, FoundEvent, Queries
from keyledger_language import events as e
from keyledger_language.instants import DAY, Instant
from projections.pages import decode_place, encode_place
from projections.requests import (
    BLOCK,
    EVERYBODY,
    KINDS,
    REFUSALS_KEPT_DAYS,
    RequestEntry,
    list_digest,
    list_name,
    refused_in,
    unpacked,
    with_settlements,
)

GRANTED: Final = "valid"
"""The code of requests that were not refused."""
MOST_READ: Final = 5_000
"""How many events are examined for one page, in addition to a block for each line: if few of them match,
the page is short, and the next one continues."""
_ROWS_AT_ONCE: Final = 2
_LONGEST_RUN: Final = 4
_PROBES: Final = 31
_NEWEST: Final = 2**62
_DENIED: Final = str(e.UsageDenied.__struct_config__.tag)
_GRANTED: Final = tuple(str(event_type.__struct_config__.tag) for event_type in KINDS)
_BLOCKS: Final = """
SELECT first, blocks FROM {schema}.request_blocks WHERE list_digest = %s AND first <= %s
ORDER BY first DESC LIMIT %s
"""


class RequestPage(NamedTuple):
    """Lines, newest first, and where the next page begins."""

    entries: list[RequestEntry]
    next_cursor: str | None


class RequestFilter(NamedTuple):
    """Which lines to list; all conditions that are given must match."""

    key_id: str | None = None
    organization_id: str | None = None
    code: str | None = None
    """`valid`: granted requests; another code: those refused with it."""
    sees: Callable[[str], bool] | None = None
    """Whether to list the lines of a key, by its id; None: those of all keys."""

    @property
    def name(self) -> str:
        """The list that contains these lines, and few others."""
        whose = self.key_id or self.organization_id or EVERYBODY
        return list_name(whose, None if self.code == GRANTED else self.code)

    @property
    def types(self) -> tuple[str, ...]:
        """Names on disk of the events that contain these lines."""
        if self.code is None:
            return (*_GRANTED, _DENIED)
        return _GRANTED if self.code == GRANTED else (_DENIED,)

    def fits(self, event: e.Event) -> bool:
        """Whether the event may contain such lines; its refusals are then checked one by one."""
        key_id = getattr(event, "key_id", "")
        return (
            self.key_id in {None, key_id}
            and self.organization_id in {None, event.organization_id}
            and (self.sees is None or self.sees(key_id))
        )


class _Line(NamedTuple):
    placed: FoundEvent
    passed: int
    """How many lines of its event come before it, newest first."""
    refused: RequestEntry | None


async def list_requests(
    queries: Queries,
    events: EventReader,
    wanted: RequestFilter,
    *,
    first: int = 0,
    last: int = _NEWEST,
    limit: int = 50,
    cursor: str | None = None,
    now: Instant,
) -> RequestPage:
    """One page of the lines from position `first` to `last`, newest first, including those of deleted keys.

    A page may have fewer lines than `limit`, or even none, and still be followed by others: what is
    examined for one page is bounded.
    """
    last, passed = (last, 0) if cursor is None else min(decode_place(cursor), (last, 0))
    lines: list[_Line] = []
    goes_on: tuple[int, int] | None = None
    read, most = 0, MOST_READ + limit * BLOCK
    async for begins, found in _newest_first(queries, events, wanted, first, last):
        for one in found:
            if first <= one.position <= last and wanted.fits(one.event):
                skipped = passed if one.position == last else 0
                lines += [line for line in _lines(one, wanted.code, now) if line.passed >= skipped]
        read += len(found) or BLOCK
        if len(lines) > limit:
            goes_on = lines[limit].placed.position, lines[limit].passed
            break
        if wanted.code not in {None, GRANTED} and found and _is_forgotten(found[-1].event, now):
            break
        if read >= most and begins > first:
            goes_on = begins - 1, 0
            break
    entries = await _shown(queries, events, lines[:limit])
    return RequestPage(entries, None if goes_on is None else encode_place(*goes_on))


async def first_since(events: EventReader, at: Instant, head: int) -> int:
    """The first position that was written at this time or later; the one after `head` if there is none.

    Time never goes back in the log, so a time corresponds to a position, which takes few reads to find.
    """
    low, high = 1, head + 1
    while low < high:
        step = max(1, (high - low) // (_PROBES + 1))
        placed = await events.at(range(low, high, step)[: _PROBES + 1])
        later = next((one.position for one in placed if one.event.at >= at), None)
        if later is not None:
            high = later
        earlier = [one.position for one in placed if one.event.at < at]
        low = earlier[-1] + 1 if earlier else high
    return high


async def _newest_first(
    queries: Queries, events: EventReader, wanted: RequestFilter, first: int, last: int
) -> AsyncIterator[tuple[int, list[FoundEvent]]]:
    """Runs of the list's blocks: where each begins, and its events that may be wanted."""
    digest, next_block = list_digest(wanted.name), min(last // BLOCK, 2**31 - 1)
    while next_block >= 0:
        rows = await queries.rows(_BLOCKS, (digest, next_block, _ROWS_AT_ONCE))
        newest_first = [block for _, packed in rows for block in reversed(unpacked(packed))]
        for oldest, newest in _runs([block for block in newest_first if block <= next_block]):
            if newest * BLOCK + BLOCK <= first:
                return
            placed = await events.between(
                oldest * BLOCK, newest * BLOCK + BLOCK - 1, wanted.types, wanted.organization_id
            )
            yield oldest * BLOCK, placed[::-1]
        if len(rows) < _ROWS_AT_ONCE:
            return
        next_block = rows[-1][0] - 1


def _runs(blocks: Sequence[int]) -> Iterable[tuple[int, int]]:
    """Neighbouring blocks (given newest first) as ranges: those of a hot list are read a few at a time."""
    run: list[int] = []
    for block in blocks:
        if run and (block != run[-1] - 1 or len(run) == _LONGEST_RUN):
            yield run[-1], run[0]
            run = []
        run.append(block)
    if run:
        yield run[-1], run[0]


def _lines(placed: FoundEvent, code: str | None, now: Instant) -> Iterable[_Line]:
    if not isinstance(placed.event, e.UsageDenied):
        return [_Line(placed, 0, None)]
    refused = reversed(refused_in(placed.position, placed.event, now))
    return [_Line(placed, at, one) for at, one in enumerate(refused) if code in {None, one.code}]


def _is_forgotten(event: e.Event, now: Instant) -> bool:
    """Whether refusals of its day, and of all days before, are no longer shown."""
    return event.at // DAY <= now // DAY - REFUSALS_KEPT_DAYS


async def _shown(queries: Queries, events: EventReader, lines: Sequence[_Line]) -> list[RequestEntry]:
    granted = await with_settlements(queries, events, [one.placed for one in lines if one.refused is None])
    by_position = {entry.position: entry for entry in granted}
    return [one.refused or by_position[one.placed.position] for one in lines]
