"""Usage, requests and statements on a real PostgreSQL, beside sums over the events themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypedDict

import msgspec
import pytest

from keyledger_language import events as e
from keyledger_language.instants import DAY, SECOND, Instant, to_datetime
from projections import requests
from projections.request_lists import RequestFilter, list_requests
from projections.requests import (
    REFUSALS_KEPT_DAYS,
    RequestEntry,
    TooManyOrganizationsError,
    charge_and_refunds,
    find_request,
    find_reservation,
)
from projections.statements import StatementLine, list_statement
from projections.usage import Bucket, By, list_denials, list_usage, list_verifications
from tests.contract.projected_worlds import (
    Reading,
    projecting,
    reached,
    reading,
    written_log,
)
from tests.histories import NOON, History


class Span(TypedDict):
    from_at: Instant
    to_at: Instant


EVER: Span = {"from_at": 0, "to_at": NOON + 10_000 * DAY}


# -- usage ----------------------------------------------------------------------------------------

BUCKET_START: dict[Bucket, Callable[[datetime], datetime]] = {
    "hour": lambda at: at.replace(minute=0, second=0, microsecond=0),
    "day": lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda at: at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}
GROUP_OF: dict[By | None, Callable[[Any], tuple[str | None, ...]]] = {
    None: lambda _: (),
    "model": lambda event: (event.model,),
    "project": lambda event: (event.project_id,),
    "provider": lambda event: (event.provider,),
    "tenant": lambda event: (event.tenant_org_id, event.tenant_user_id),
    "key": lambda event: (event.key_id,),
}


def expected_usage(
    events: list[e.Event], whose: Callable[[Any], bool], bucket: Bucket, by: By | None
) -> dict[Any, list[int]]:
    """(bucket's start, group) to requests, charged, refunds, refunded: plain sums."""
    sums: dict[Any, list[int]] = {}
    for event in events:
        if not isinstance(event, e.Metered | e.ReservationCaptured | e.UsageRefunded) or not whose(event):
            continue
        at = event.at if isinstance(event, e.Metered) else event.window_at
        start = BUCKET_START[bucket](to_datetime(at))
        row = sums.setdefault((start, GROUP_OF[by](event)), [0, 0, 0, 0])
        match event:
            case e.UsageRefunded():
                row[2] += 1
                row[3] += event.amount_micros
            case e.ReservationCaptured():
                row[1] += event.amount_micros
            case e.CreditsReserved():
                row[0] += 1
            case _:
                row[0] += 1
                row[1] += event.amount_micros
    return sums


@pytest.mark.parametrize("by", GROUP_OF)
@pytest.mark.parametrize("bucket", BUCKET_START)
async def test_usage_is_the_sum_of_the_events_by_any_dimension(
    history: History, asked: Reading, bucket: Bucket, by: By | None
) -> None:
    organization_id = history.organizations[0]
    rows = await list_usage(asked.queries, organization_id=organization_id, bucket=bucket, by=by, **EVER)
    expected = expected_usage(
        history.events, lambda event: event.organization_id == organization_id, bucket, by
    )

    assert expected == {
        (to_datetime(row.start), row.group): [
            row.requests,
            row.charged_micros,
            row.refunds,
            row.refunded_micros,
        ]
        for row in rows
    }
    assert [row.start for row in rows] == sorted(row.start for row in rows)


async def test_usage_of_a_key_is_cut_by_whole_hours(history: History, asked: Reading) -> None:
    key_id = history.charges[0].key_id
    of_key = [event for event in history.charges if event.key_id == key_id]
    first_hour = of_key[0].at - of_key[0].at % (3_600 * SECOND)

    def spent(start: Instant, end: Instant) -> int:
        return sum(event.amount_micros for event in of_key if start <= event.at < end)

    for hours in (1, 24, 240):
        end = first_hour + hours * 3_600 * SECOND
        rows = await list_usage(
            asked.queries, key_id=key_id, from_at=first_hour, to_at=end, bucket="hour", by=None
        )
        charged_by_captures = sum(
            event.amount_micros
            for event in history.events
            if isinstance(event, e.ReservationCaptured)
            and event.key_id == key_id
            and first_hour <= event.window_at < end
        )
        assert spent(first_hour, end) + charged_by_captures == sum(row.charged_micros for row in rows)


async def test_months_are_of_the_utc_calendar(history: History, asked: Reading) -> None:
    rows = await list_usage(asked.queries, organization_id=history.organizations[0], bucket="month", **EVER)

    assert {1} == {to_datetime(row.start).day for row in rows}
    assert all(to_datetime(row.start).tzinfo is UTC for row in rows)


async def test_an_unknown_bucket_or_dimension_is_a_value_error(history: History, asked: Reading) -> None:
    with pytest.raises(ValueError, match="hour, day, month"):
        await list_usage(asked.queries, organization_id="org", bucket="week", **EVER)  # type: ignore[arg-type]  # a caller's mistake
    with pytest.raises(ValueError, match="model, project"):
        await list_usage(asked.queries, organization_id="org", by="secret", **EVER)  # type: ignore[arg-type]  # a caller's mistake


async def test_denials_and_verifications_are_counted(history: History, asked: Reading) -> None:
    denied, seen = Counter[str](), Counter[str]()
    for event in history.events:
        if isinstance(event, e.UsageDenied):
            denied[event.key_id] += sum(event.counts.values())
        if isinstance(event, e.KeysSeen):
            for key_id, _, count in event.seen:
                seen[key_id] += count

    for key_id in history.keys:
        denials = await list_denials(asked.queries, key_id=key_id, **EVER)
        verifications = await list_verifications(asked.queries, key_id=key_id, **EVER)

        assert denied[key_id] == sum(row.denials for row in denials)
        assert seen[key_id] == sum(row.verifications for row in verifications)


async def test_the_greatest_amounts_do_not_stop_the_projector(database: str) -> None:
    history = History(32)
    history.grow(60)
    huge = next(event for event in history.events if isinstance(event, e.UsageCharged))
    async with written_log(database) as log, reading(database) as asked:
        with projecting(database, batch=1) as projector:
            await log.write(history.untold())
            for number in range(3):
                fields = {"amount_micros": 2**63 - 1, "request_id": f"huge-{number}"}
                await log.write([msgspec.structs.replace(huge, **fields)])
            await reached(projector, log.head)
        rows = await list_usage(asked.queries, key_id=huge.key_id, bucket="hour", **EVER)

    assert 2**62 - 1 in {row.charged_micros for row in rows}


# -- requests -------------------------------------------------------------------------------------


async def test_every_request_id_is_found_with_what_it_did(history: History, asked: Reading) -> None:
    for position, event in enumerate(history.events[:400], start=1):
        request_id = getattr(event, "request_id", None)
        if request_id is None:
            continue
        for organization_id in (event.organization_id, None):
            found = await find_request(
                asked.queries, asked.events, request_id, organization_id=organization_id, now=history.at
            )
            assert [(position, request_id)] == [(one.position, one.request_id) for one in found]
        assert (
            await find_request(
                asked.queries, asked.events, request_id, organization_id="org_other", now=history.at
            )
            == []
        )


async def test_a_request_is_looked_for_in_so_many_organizations_and_not_in_one_more(
    history: History, asked: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = history.charges[0]
    count = len({one.organization_id for one in history.events if isinstance(one, e.OrganizationOpened)})
    assert count > 1

    monkeypatch.setattr(requests, "MOST_SEARCHED", count)
    found = await find_request(asked.queries, asked.events, charge.request_id, now=history.at)
    assert [one.charge_id for one in found] == [charge.charge_id]

    monkeypatch.setattr(requests, "MOST_SEARCHED", count - 1)
    with pytest.raises(TooManyOrganizationsError):
        await find_request(asked.queries, asked.events, charge.request_id, now=history.at)
    named = await find_request(
        asked.queries, asked.events, charge.request_id, organization_id=charge.organization_id, now=history.at
    )
    assert found == named


async def test_a_charge_is_found_with_all_its_refunds(history: History, asked: Reading) -> None:
    refunds: dict[str, list[int]] = {}
    for position, event in enumerate(history.events, start=1):
        if isinstance(event, e.UsageRefunded):
            refunds.setdefault(event.charge_id, []).append(position)
    for charge in history.charges:
        found = await charge_and_refunds(asked.queries, asked.events, charge.charge_id)

        assert found is not None
        assert found.charge.event == charge
        assert refunds.get(charge.charge_id, []) == [one.position for one in found.refunds]
    assert len(refunds) > 10


async def test_a_reservation_is_shown_as_it_stands(history: History, asked: Reading) -> None:
    assert len({one.status for one in history.state.reservations.values()}) == 4
    for one in history.state.reservations.values():
        found = await find_reservation(asked.queries, asked.events, one.id)

        assert found is not None
        assert (one.status, one.held_micros, one.captured_micros) == (
            found.status,
            found.held_micros,
            found.captured_micros,
        )


@pytest.mark.parametrize("unknown", ["", "chg_1", "chg_00000000000000000000000000", "\0", "rsv_" + "Z" * 26])
async def test_unknown_ids_are_not_found(history: History, asked: Reading, unknown: str) -> None:
    assert await charge_and_refunds(asked.queries, asked.events, unknown) is None
    assert await find_reservation(asked.queries, asked.events, unknown) is None
    assert await find_request(asked.queries, asked.events, unknown, now=history.at) == []


async def test_refused_requests_are_found_for_a_stated_time(history: History, asked: Reading) -> None:
    position, denied = next(
        (position, event)
        for position, event in reversed(list(enumerate(history.events, start=1)))
        if isinstance(event, e.UsageDenied)
    )
    request_id = denied.requests[0].request_id

    async def found_at(now: Instant) -> list[RequestEntry]:
        return await find_request(asked.queries, asked.events, request_id, now=now)

    (refusal,) = await found_at(denied.at)
    assert ("refusal", position, "billing_shortfall") == (refusal.kind, refusal.position, refusal.code)
    assert len(await found_at(denied.at + (REFUSALS_KEPT_DAYS - 1) * DAY)) == 1
    assert len(await found_at(denied.at + REFUSALS_KEPT_DAYS * DAY)) == 0


async def test_a_keys_requests_are_paged_newest_first(history: History, asked: Reading) -> None:
    kinds = (e.Metered, e.UsageRefunded, e.ReservationCaptured, e.ReservationReleased)
    for key_id in history.keys[:8]:
        expected = [
            position
            for position, event in enumerate(history.events, start=1)
            if isinstance(event, kinds) and event.key_id == key_id
        ]
        found: list[int] = []
        cursor = None
        while True:
            page = await list_requests(
                asked.queries,
                asked.events,
                RequestFilter(key_id=key_id),
                limit=7,
                cursor=cursor,
                now=history.at,
            )
            found += [one.position for one in page.entries if one.kind != "refusal"]
            cursor = page.next_cursor
            if cursor is None:
                break

        assert expected[::-1] == found


# -- statements -----------------------------------------------------------------------------------


async def test_a_statement_has_every_line_with_the_balance_after_it(history: History, asked: Reading) -> None:
    for organization_id in history.organizations[:4]:
        lines: list[StatementLine] = []
        cursor = None
        while True:
            page = await list_statement(
                asked.events, organization_id, newest_first=False, limit=9, cursor=cursor
            )
            lines += page.lines
            cursor = page.next_cursor
            if cursor is None:
                break
        expected = [
            position
            for position, event in enumerate(history.events, start=1)
            if isinstance(event, e.WalletEvent) and event.organization_id == organization_id
        ]
        newest = await list_statement(asked.events, organization_id, limit=500)
        balance = 0
        for line in lines:
            balance += line.amount_micros
            assert balance == line.balance_micros, line.position

        assert expected == [line.position for line in lines]
        assert lines[::-1][:500] == newest.lines
        assert history.state.wallets[organization_id].balance == balance
