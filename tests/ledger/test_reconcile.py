"""Money is recomputed from the log by plain sums; every discrepancy is reported."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from domain.state import State
from keyledger_language import events as e
from services.ledger.reconcile import ReadEvents, Reconciliation, Sums, UsageSums, reconcile
from tests.histories import History

HISTORY = History(41)
EVENTS = [*HISTORY.grow(3_000)]


def reading(events: Sequence[e.Event]) -> ReadEvents:
    numbered = list(enumerate(events, start=1))

    async def read(after: int, limit: int) -> list[tuple[int, e.Event]]:
        return numbered[after : after + limit]

    return read


async def reconciled(
    events: Sequence[e.Event], *, usage: UsageSums | None = None, saved: State | None = None
) -> Reconciliation:
    return await reconcile(reading(events), head=len(events), usage=usage, saved=saved)


def usage_of(events: Sequence[e.Event]) -> UsageSums:
    sums = Sums()
    for position, event in enumerate(events, start=1):
        sums.add(event, position)
    return UsageSums(len(events), {name: (row[0], row[1]) for name, row in sums.by_key.items()})


def first(kind: type[e.Event]) -> int:
    return next(index for index, event in enumerate(EVENTS) if type(event) is kind)


def damaged(kind: type[e.Event], **changes: int | str) -> list[e.Event]:
    """The history, with one event forged."""
    index = first(kind)
    return [*EVENTS[:index], replace(EVENTS[index], **changes), *EVENTS[index + 1 :]]


async def test_a_history_agrees_with_its_own_sums() -> None:
    found = await reconciled(EVENTS, usage=usage_of(EVENTS))

    assert found.findings == []
    assert (found.position, found.wallets) == (len(EVENTS), len(HISTORY.organizations))
    assert found.counters > len(HISTORY.organizations)


async def test_a_saved_state_is_compared_as_of_its_own_position() -> None:
    earlier = History(41)
    earlier.grow(1_000)

    found = await reconciled(EVENTS, saved=earlier.state)

    assert found.clean
    assert earlier.head == found.saved_position
    earlier.state.head += 1
    assert not (await reconciled(EVENTS, saved=earlier.state)).clean


@pytest.mark.parametrize("seed", range(5))
async def test_any_history_reconciles(seed: int) -> None:
    history = History(seed)

    assert (await reconciled(history.grow(400))).findings == []


FORGED: dict[str, tuple[type[e.Event], dict[str, int], str]] = {
    "a deposit that is not in the balance": (e.CreditsDeposited, {"amount_micros": 1}, "balance_micros"),
    "a price that was rounded down": (e.UsageCharged, {"amount_micros": 1}, "amount_micros"),
    "a refund that forgets earlier ones": (e.UsageRefunded, {"refunded_micros": 0}, "refunded_micros"),
    "a hold that is not reserved": (e.CreditsReserved, {"reserved_micros": 1}, "reserved_micros"),
    "a capture of another amount": (e.ReservationCaptured, {"amount_micros": 10**9}, "balance_micros"),
}


@pytest.mark.parametrize("case", FORGED)
async def test_a_forged_event_is_found(case: str) -> None:
    kind, changes, figure = FORGED[case]

    found = await reconciled(damaged(kind, **changes))

    assert (f"event {first(kind) + 1}", figure) in {(one.where, one.figure) for one in found.findings}


async def test_a_saved_wallet_that_is_off_by_one_micro_is_found() -> None:
    saved = History(41)
    saved.grow(3_000)
    wallet = next(iter(saved.state.wallets.values()))
    wallet.balance += 1

    found = await reconciled(EVENTS, saved=saved.state)

    assert [("saved state", wallet.organization_id, "balance", wallet.balance - 1, wallet.balance)] == [
        tuple(one) for one in found.findings
    ]


async def test_a_saved_counter_that_is_off_is_found() -> None:
    saved = History(41)
    saved.grow(3_000)
    subject, counters = next(iter(saved.state.counters.items()))
    counters.month_requests += 1

    found = await reconciled(EVENTS, saved=saved.state)

    assert [subject] == [one.subject for one in found.findings]
    assert "month" in str(found.findings[0])


async def test_a_usage_counter_that_is_off_is_found() -> None:
    usage = usage_of(EVENTS)
    name, (requests, micros) = next(iter(usage.by_key.items()))
    usage.by_key[name] = (requests, micros - 1)

    found = await reconciled(EVENTS, usage=usage)

    assert [f"{requests} and {micros - 1}"] == [one.found for one in found.findings]


async def test_usage_is_compared_where_it_is_and_not_where_the_log_is() -> None:
    behind = usage_of(EVENTS[:1_000])

    assert (await reconciled(EVENTS, usage=behind)).clean
