"""The request log by filters, on a real PostgreSQL, beside the events themselves."""

from __future__ import annotations

from typing import Any

import pytest

from infra.postgres.rebuilding import check
from keyledger_language import events as e
from keyledger_language.instants import DAY, SECOND, Instant
from projections import request_lists
from projections.every import every_projection
from projections.request_lists import GRANTED, RequestFilter, first_since, list_requests
from projections.requests import BLOCK, KINDS, REFUSALS_KEPT_DAYS
from tests.contract.projected_worlds import (
    Reading,
    mapper,
    projecting,
    reached,
    reading,
    written_log,
)
from tests.contract.test_request_blocks import A, B, charges
from tests.histories import NOON, History

Line = tuple[int, str | None]


def lines_of(history: History, wanted: RequestFilter, now: Instant) -> list[Line]:
    """(position, request id), newest first, as the events say."""
    found: list[Line] = []
    for position, event in enumerate(history.events, start=1):
        if not isinstance(event, (*KINDS, e.UsageDenied)) or not wanted.fits(event):
            continue
        if not isinstance(event, e.UsageDenied):
            if wanted.code in {None, GRANTED}:
                found.append((position, getattr(event, "request_id", None)))
        elif event.at // DAY > now // DAY - REFUSALS_KEPT_DAYS:
            found += [(position, one.request_id) for one in event.requests if wanted.code in {None, one.code}]
    return found[::-1]


async def all_lines(
    asked: Reading, wanted: RequestFilter, *, now: Instant, limit: int = 7, **span: int
) -> list[Line]:
    """All pages, none of which is longer than it may be."""
    found: list[Line] = []
    cursor = None
    while True:
        page = await list_requests(
            asked.queries, asked.events, wanted, now=now, limit=limit, cursor=cursor, **span
        )
        assert len(page.entries) <= limit
        found += [(one.position, one.request_id) for one in page.entries]
        cursor = page.next_cursor
        if cursor is None:
            return found


async def test_every_filter_finds_what_the_events_say(history: History, asked: Reading) -> None:
    filters: list[dict[str, Any]] = [{}, {"code": GRANTED}, {"code": "billing_shortfall"}]
    owners: list[dict[str, Any]] = [
        {},
        *({"organization_id": one} for one in history.organizations[:3]),
        *({"key_id": one} for one in history.keys[:4]),
        {"organization_id": history.organizations[0], "key_id": history.keys[0]},
    ]
    for filtered in filters:
        for owner in owners:
            wanted = RequestFilter(**filtered, **owner)

            assert lines_of(history, wanted, history.at) == await all_lines(asked, wanted, now=history.at)


async def test_only_keys_that_one_sees_are_listed(history: History, asked: Reading) -> None:
    seen = frozenset(history.keys[::3])
    wanted = RequestFilter(sees=seen.__contains__)

    lines = await all_lines(asked, wanted, now=history.at)

    assert lines_of(history, wanted, history.at) == lines
    assert 0 < len(lines) < len(lines_of(history, RequestFilter(), history.at))


async def test_a_time_is_a_position(history: History, asked: Reading) -> None:
    head, times = len(history.events), [event.at for event in history.events]

    for at in {times[0] - 1, *times[::97], times[200] + 1, times[-1], times[-1] + 1}:
        expected = next((position for position, one in enumerate(times, start=1) if one >= at), head + 1)
        assert expected == await first_since(asked.events, at, head)


async def test_a_span_is_kept_to_on_every_page(history: History, asked: Reading) -> None:
    first, last = 300, 900
    lines = await all_lines(asked, RequestFilter(), now=history.at, first=first, last=last)
    every = lines_of(history, RequestFilter(), history.at)

    assert [one for one in every if first <= one[0] <= last] == lines


async def test_refusals_are_listed_for_a_stated_time(history: History, asked: Reading) -> None:
    wanted = RequestFilter(code="billing_shortfall")
    newest = next(event for event in reversed(history.events) if isinstance(event, e.UsageDenied))
    kept, gone = (newest.at + days * DAY for days in (REFUSALS_KEPT_DAYS - 1, REFUSALS_KEPT_DAYS))

    assert lines_of(history, wanted, kept) == await all_lines(asked, wanted, now=kept) != []
    assert await all_lines(asked, wanted, now=gone) == []


def denied(key_id: str, at: Instant, codes: list[str]) -> e.UsageDenied:
    requests = tuple(e.Denial(request_id=f"no-{n}", code=code, at=at) for n, code in enumerate(codes))
    return e.UsageDenied(at=at, organization_id="org_1", key_id=key_id, counts={}, requests=requests)


async def test_refusals_that_were_written_together_are_cut_where_the_page_ends(database: str) -> None:
    codes = ["rate_limited", "model_denied"] * 5
    async with written_log(database) as log, reading(database) as asked:
        await log.write([*charges(1, 3, lambda _: A), denied(A, NOON + SECOND, codes)])
        with projecting(database) as projector:
            await reached(projector, log.head)

        every = [(4, f"no-{number}") for number in range(9, -1, -1)]
        granted = [(position, f"req-{position}") for position in (3, 2, 1)]
        for limit in (1, 3, 10, 13, 500):
            for whose in (RequestFilter(key_id=A), RequestFilter(organization_id="org_1"), RequestFilter()):
                found = await all_lines(asked, whose, now=NOON, limit=limit)
                assert every + granted == found
                only = whose._replace(code="model_denied")
                refused = await all_lines(asked, only, now=NOON, limit=limit)
                assert every[::2] == refused
    assert check(database, every_projection(), mapper()).clean


async def test_a_page_that_finds_nothing_looks_at_so_much_and_goes_on(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_lists, "MOST_READ", 0)
    blocks = 20
    async with written_log(database) as log, reading(database) as asked:
        await log.write(list(charges(1, blocks * BLOCK, lambda position: B if position == 1 else A)))
        with projecting(database) as projector:
            await reached(projector, log.head)

        wanted = RequestFilter(sees=B.__eq__)
        first = await list_requests(asked.queries, asked.events, wanted, now=NOON, limit=1)
        assert (first.entries, first.next_cursor is not None) == ([], True)
        assert await all_lines(asked, wanted, now=NOON, limit=1) == [(1, "req-1")]
