"""Quotas: how much of each is spent, and which one a use would exceed first."""

from __future__ import annotations

from typing import Literal

import msgspec

from domain.accounts import Counters, Tally
from domain.keys import Key
from domain.state import Books
from domain.windows import WINDOWS, Window, window_end, window_starts
from keyledger_language.events import Quota
from keyledger_language.instants import DAY, Instant

Level = Literal["key", "project", "organization"]

CODE_OF_LEVEL: dict[Level, str] = {
    "key": "api_key_quota_exceeded",
    "project": "project_quota_exceeded",
    "organization": "organization_quota_exceeded",
}
"""In the order in which they are decided."""


class QuotaState(msgspec.Struct, frozen=True, kw_only=True):
    """A quota and its current state."""

    level: Level
    subject_id: str
    unit: Literal["micros", "requests"]
    window: Window
    limit: int
    alert_percents: tuple[int, ...]
    spent: int
    remaining: int
    resets_at: Instant | None


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """The limit that refused a use, what is left of it, and when it resets."""

    code: str
    level: Literal["key", "project", "organization", "wallet"]
    unit: Literal["micros", "requests"]
    window: Window | None
    limit: int | None
    remaining: int
    resets_at: Instant | None


Levels = tuple[tuple[Level, str, tuple[Quota, ...]], ...]
"""(level, subject, its quotas) in the order in which they are decided."""

Starts = tuple[int, int, int, int]


def levels_of(books: Books, key: Key, project_id: str | None) -> Levels:
    """The levels whose quotas a use of the key is checked against; levels without quotas are left out."""
    levels: Levels = (("key", key.id, key.quotas),) if key.quotas else ()
    if project_id is not None:
        project = books.projects.find(project_id)
        if project is not None and project.quotas:
            levels = (*levels, ("project", project.id, project.quotas))
    if key.organization_id is not None:
        organization = books.organizations.find(key.organization_id)
        if organization is not None and organization.quotas:
            levels = (*levels, ("organization", organization.id, organization.quotas))
    return levels


def tally_of(counters: Counters | None, window: Window, start: int) -> Tally | None:
    """The tally of a window; None if nothing was counted in it."""
    return None if counters is None else counters.tally(window, start)


def spent_of(counters: Counters | None, quota: Quota, starts: Starts) -> int:
    """How much of a quota is spent in its window."""
    tally = tally_of(counters, quota.window, starts[WINDOWS.index(quota.window)])
    if tally is None:
        return 0
    return tally.micros if quota.unit == "micros" else tally.requests


def first_refusal(
    books: Books, levels: Levels, starts: Starts, *, micros: int, requests: int
) -> Refusal | None:
    """The first quota that such a use would exceed, or None."""
    for level, subject, quotas in levels:
        counters = books.counters.find(subject)
        for quota in quotas:
            asked = micros if quota.unit == "micros" else requests
            spent = spent_of(counters, quota, starts)
            # A use that takes nothing from a quota exceeds none, even if it was lowered below what is spent.
            if asked and spent + asked > quota.limit:
                return _refusal(level, quota, spent, starts)
    return None


def exhausted(books: Books, levels: Levels, starts: Starts) -> Refusal | None:
    """The first quota of which nothing is left, or None."""
    for level, subject, quotas in levels:
        counters = books.counters.find(subject)
        for quota in quotas:
            spent = spent_of(counters, quota, starts)
            if spent >= quota.limit:
                return _refusal(level, quota, spent, starts)
    return None


def room(books: Books, levels: Levels, starts: Starts) -> int | None:
    """How many more micros the quotas allow; None if none of them limits money."""
    rooms = [
        quota.limit - spent_of(books.counters.find(subject), quota, starts)
        for _, subject, quotas in levels
        for quota in quotas
        if quota.unit == "micros"
    ]
    return max(0, min(rooms)) if rooms else None


def _refusal(level: Level, quota: Quota, spent: int, starts: Starts) -> Refusal:
    return Refusal(
        code=CODE_OF_LEVEL[level],
        level=level,
        unit=quota.unit,
        window=quota.window,
        limit=quota.limit,
        remaining=max(0, quota.limit - spent),
        resets_at=window_end(quota.window, starts[WINDOWS.index(quota.window)]),
    )


def wallet_refusal(books: Books, organization_id: str | None, amount: int) -> Refusal | None:
    """The wallet's refusal of this amount, or None; an amount of 0 is never refused."""
    wallet = books.wallets.find(organization_id or "")
    if wallet is None or amount == 0 or wallet.covers(amount):
        return None
    return Refusal(
        code="billing_shortfall",
        level="wallet",
        unit="micros",
        window=None,
        limit=wallet.credit_limit,
        remaining=max(0, wallet.available + (wallet.credit_limit or 0)),
        resets_at=None,
    )


def balance_refusal(books: Books, key: Key, project_id: str | None, now: Instant) -> Refusal | None:
    """For a keyspace with `require_balance`: the refusal if a quota or the wallet is at zero."""
    starts = window_starts(now // DAY)
    return exhausted(books, levels_of(books, key, project_id), starts) or wallet_refusal(
        books, key.organization_id, 1
    )


def quota_states(
    books: Books, key: Key, now: Instant, project_id: str | None = None
) -> tuple[QuotaState, ...]:
    """The state of every quota that a use of the key would be checked against."""
    return states_of(books, levels_of(books, key, project_id), now)


def states_of(books: Books, levels: Levels, now: Instant) -> tuple[QuotaState, ...]:
    """The states of these quotas."""
    starts = window_starts(now // DAY)
    states: list[QuotaState] = []
    for level, subject, quotas in levels:
        counters = books.counters.find(subject)
        for quota in quotas:
            spent = spent_of(counters, quota, starts)
            states.append(
                QuotaState(
                    level=level,
                    subject_id=subject,
                    unit=quota.unit,
                    window=quota.window,
                    limit=quota.limit,
                    alert_percents=quota.alert_percents,
                    spent=spent,
                    remaining=max(0, quota.limit - spent),
                    resets_at=window_end(quota.window, starts[WINDOWS.index(quota.window)]),
                )
            )
    return tuple(states)
