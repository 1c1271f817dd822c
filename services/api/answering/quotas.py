"""Quotas as JSON: what is left of them, and which of them refused a use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from domain.quotas import Level, QuotaState, Refusal, states_of
from domain.state import Books
from keyledger_language.events import Quota
from keyledger_language.instants import Instant
from services.api.answering.times import time_of
from services.api.answering.views import Time, View


class RefusalView(View, frozen=True, gc=False):
    """Which limit refused a use, what is left of it, and when it resets."""

    level: Literal["key", "project", "organization", "wallet"]
    """Whose limit it is."""
    unit: Literal["micros", "requests"]
    """What it counts: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"] | None
    """Of a quota, its UTC calendar window; null for a wallet."""
    limit: int | None
    """The quota, or the wallet's credit limit; null: a wallet without limit."""
    remaining: int
    """What is left, in its unit."""
    resets_at: Time | None
    """When the quota's next window begins; null for `total` and for a wallet."""


class QuotaView(View, frozen=True, gc=False):
    """A quota and what is left of it."""

    level: Literal["key", "project", "organization"]
    """Whose quota it is."""
    subject_id: str
    """The key, project or organization that has it."""
    unit: Literal["micros", "requests"]
    """What is counted: money in micros, or requests."""
    window: Literal["day", "week", "month", "total"]
    """The UTC calendar window in which it counts; `total` never resets."""
    limit: int
    """The most in one window."""
    alert_percents: tuple[int, ...]
    """An event reports when these percentages of the limit are reached."""
    spent: int
    """What was used in the present window, holds included."""
    remaining: int
    """What is left in the present window."""
    resets_at: Time | None
    """When the next window begins; null for `total`."""


def quota_figures(states: Sequence[QuotaState]) -> list[QuotaView]:
    """Every quota that a use was checked against, or that a subject has, and what is left of it."""
    return [
        QuotaView(
            one.level,
            one.subject_id,
            one.unit,
            one.window,
            one.limit,
            one.alert_percents,
            one.spent,
            one.remaining,
            time_of(one.resets_at),
        )
        for one in states
    ]


def quotas_of(
    books: Books, level: Level, subject: str, quotas: tuple[Quota, ...], now: Instant
) -> list[QuotaView]:
    """The quotas of one subject and what is left of them."""
    return quota_figures(states_of(books, ((level, subject, quotas),), now))


def refusal_view(refusal: Refusal) -> RefusalView:
    """Which limit refused a use, what is left of it, and when it resets."""
    return RefusalView(
        refusal.level,
        refusal.unit,
        refusal.window,
        refusal.limit,
        refusal.remaining,
        time_of(refusal.resets_at),
    )
