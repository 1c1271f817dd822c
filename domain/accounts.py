"""Money in motion: wallets, counters by window, reservations."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from domain.instants import Instant
from domain.money import MAX_MICROS
from domain.windows import WINDOWS, Window, window_starts

MICROS, REQUESTS = 0, 1
Unit = Literal["micros", "requests"]


class Wallet(msgspec.Struct, kw_only=True):
    """An organization's prepaid balance. `balance - reserved` may be spent, and the credit limit."""

    organization_id: str
    currency: str = "USD"
    balance: int = 0
    reserved: int = 0
    credit_limit: int | None = 0
    """How far below zero it may go; None: postpaid without end."""
    alert_below: int | None = None
    alerted: bool = False
    deposited: int = 0
    charged: int = 0
    refunded: int = 0

    @property
    def available(self) -> int:
        """What is not spent and not reserved (may be negative where credit was given)."""
        return self.balance - self.reserved

    def covers(self, amount: int) -> bool:
        """May this much more be taken?"""
        return self.credit_limit is None or amount <= self.available + self.credit_limit

    @property
    def headroom(self) -> int:
        """How much more may be taken or held before one of its figures would leave 64 bits.

        `charged` and `reserved` together bound every counter of the organization's keys and
        projects, so those stay in range too.
        """
        return MAX_MICROS - self.reserved - max(self.charged, -self.balance)

    def takes(self, deposit: int) -> bool:
        """Would its figures stay within 64 bits with this top-up (or correction, below 0)?

        The balance is never above what was deposited, so refunds need no such question.
        """
        return abs(self.deposited + deposit) <= MAX_MICROS and self.available + deposit >= -MAX_MICROS

    def copy(self) -> Wallet:
        """A copy to be changed by a decision that may yet be thrown away."""
        return replace(self)


class Tally(msgspec.Struct, array_like=True):
    """What one window has seen: money spent or held, and requests."""

    start: int
    micros: int = 0
    requests: int = 0
    alerts: tuple[tuple[Unit, int], ...] = ()
    """The (unit, percent) thresholds already told."""


class Counters(msgspec.Struct, array_like=True):
    """The current tallies of one key, project or organization, in the order of WINDOWS.

    All four windows are always counted, so that a quota set in the middle of a month is exact.
    A past window is kept only while an open reservation belongs to it.
    """

    day: int
    tallies: list[Tally]
    past: dict[str, Tally] = {}
    held: dict[str, int] = {}
    """Open reservations by window, such as `month/20392`."""

    @classmethod
    def at(cls, day: int) -> Counters:
        """Empty tallies of the windows that hold a day."""
        return cls(day, [Tally(start) for start in window_starts(day)], {}, {})

    def copy(self) -> Counters:
        """A copy to be changed by a decision that may yet be thrown away."""
        return Counters(
            self.day,
            [replace(tally) for tally in self.tallies],
            {name: replace(tally) for name, tally in self.past.items()} if self.past else {},
            dict(self.held) if self.held else {},
        )

    def turn(self, day: int) -> None:
        """Go on to a later day: windows that are over begin anew, or are kept while held."""
        if day <= self.day:
            return
        for index, start in enumerate(window_starts(day)):
            tally = self.tallies[index]
            if tally.start != start:
                name = f"{WINDOWS[index]}/{tally.start}"
                if self.held.get(name):
                    self.past[name] = tally
                self.tallies[index] = Tally(start)
        self.day = day

    def tally(self, window: Window, start: int) -> Tally | None:
        """The tally of a window, if it is current or still held."""
        current = self.tallies[WINDOWS.index(window)]
        return current if current.start == start else self.past.get(f"{window}/{start}")

    def add(self, starts: tuple[int, int, int, int], micros: int, requests: int) -> None:
        """Count a use (or take it back) in the windows with these starts."""
        if starts[0] == self.day:
            for current in self.tallies:
                current.micros += micros
                current.requests += requests
            return
        for index, start in enumerate(starts):
            tally = self.tally(WINDOWS[index], start)
            if tally is not None:
                tally.micros += micros
                tally.requests += requests

    def hold(self, starts: tuple[int, int, int, int]) -> None:
        """An open reservation belongs to these windows: they are kept."""
        for window, start in zip(WINDOWS, starts, strict=True):
            name = f"{window}/{start}"
            self.held[name] = self.held.get(name, 0) + 1

    def let_go(self, starts: tuple[int, int, int, int]) -> None:
        """A reservation of these windows is settled."""
        for window, start in zip(WINDOWS, starts, strict=True):
            name = f"{window}/{start}"
            left = self.held.get(name, 0) - 1
            if left > 0:
                self.held[name] = left
            else:
                self.held.pop(name, None)
                self.past.pop(name, None)


class Reservation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Money held for a use whose price is not known yet."""

    id: str
    key_id: str
    organization_id: str
    request_id: str
    base_micros: int
    price_multiplier: str
    amount_micros: int
    """What was held, price applied."""
    held_micros: int
    """What is held still."""
    captured_micros: int = 0
    uncovered_micros: int = 0
    captured_base_micros: int = 0
    status: Literal["open", "captured", "released", "expired"] = "open"
    reserved_at: Instant
    expires_at: Instant
    model: str | None = None
    provider: str | None = None
    project_id: str | None = None
    tenant_org_id: str | None = None
    tenant_user_id: str | None = None
    position: int = 0
