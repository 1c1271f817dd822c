"""Alerts: a quota's percentage, a wallet's line. Each once per window, since each is an event."""

from __future__ import annotations

from collections.abc import Iterator

from domain.accounts import Tally
from domain.desk import Desk
from domain.quotas import Levels, tally_of
from domain.windows import WINDOWS, window_starts
from keyledger_language import events as e
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, Instant


def alerts_ahead(
    desk: Desk, organization_id: str | None, levels: Levels, window_at: Instant, *, micros: int, requests: int
) -> list[e.ThresholdReached]:
    """An event for each alert percentage that such a use will reach, if its window has none yet.

    Call this before the use is recorded: a past window is dropped with the last reservation in it.
    """
    starts = window_starts(window_at // DAY)
    ahead: list[e.ThresholdReached] = []
    for level, subject, quotas in levels:
        counters = desk.draft.counters.find(subject)
        for quota in quotas:
            if not quota.alert_percents:
                continue
            start = starts[WINDOWS.index(quota.window)]
            tally = tally_of(counters, quota.window, start) or Tally(start)
            added = micros if quota.unit == "micros" else requests
            spent = (tally.micros if quota.unit == "micros" else tally.requests) + added
            ahead.extend(
                e.ThresholdReached(
                    at=desk.now,
                    organization_id=organization_id,
                    level=level,
                    subject_id=subject,
                    unit=quota.unit,
                    window=quota.window,
                    window_start=start,
                    percent=percent,
                    limit=quota.limit,
                    value=spent,
                )
                for percent in _reached(quota, tally, spent)
            )
    return ahead


def _reached(quota: Quota, tally: Tally, spent: int) -> Iterator[int]:
    for percent in sorted(quota.alert_percents):
        if spent * 100 >= quota.limit * percent and (quota.unit, percent) not in tally.alerts:
            yield percent


def wallet_alert(desk: Desk, organization_id: str | None) -> None:
    """Record that the wallet fell below its alert line; again only after it was back above it."""
    wallet = desk.draft.wallets.find(organization_id or "")
    if wallet is None or wallet.alert_below is None or wallet.alerted:
        return
    if wallet.available < wallet.alert_below:
        desk.record(
            e.ThresholdReached(
                at=desk.now,
                organization_id=organization_id,
                level="wallet",
                subject_id=organization_id or "",
                unit="micros",
                window=None,
                window_start=None,
                percent=None,
                limit=wallet.alert_below,
                value=wallet.available,
            )
        )
