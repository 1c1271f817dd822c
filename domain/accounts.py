"""Wallets, counters by window, reservations."""

from __future__ import annotations

from typing import Literal, TypeVar

import msgspec
from msgspec.structs import replace

from domain.money import MAX_MICROS
from domain.windows import WINDOWS, Window, window_starts
from keyledger_language.instants import Instant

Unit = Literal["micros", "requests"]

S = TypeVar("S", bound=msgspec.Struct)


def copied(row: S) -> S:
    """A shallow copy, in half the time of `replace`."""
    copy: S = row.__copy__()  # type: ignore[attr-defined]  # missing in the stubs
    return copy


class Wallet(msgspec.Struct, kw_only=True, gc=False):
    """An organization's prepaid balance. `balance - reserved` may be spent, plus the credit limit."""

    organization_id: str
    currency: str = "USD"
    balance: int = 0
    reserved: int = 0
    credit_limit: int | None = 0
    """How far below zero the balance may go; None: postpaid without end."""
    alert_below: int | None = None
    alerted: bool = False
    deposited: int = 0
    charged: int = 0
    refunded: int = 0

    @property
    def available(self) -> int:
        """What is neither spent nor reserved (may be negative if there is a credit limit)."""
        return self.balance - self.reserved

    def covers(self, amount: int) -> bool:
        """Whether this much more may be taken."""
        return self.credit_limit is None or amount <= self.available + self.credit_limit

    def pays(self, amount: int) -> bool:
        """Whether it covers this much, and its figures stay within 64 bits."""
        free = self.balance - self.reserved
        covered = self.credit_limit is None or amount <= free + self.credit_limit
        return covered and amount <= self.headroom

    @property
    def headroom(self) -> int:
        """How much more may be taken or held before one of its figures would exceed 64 bits.

        `charged` and `reserved` together bound every counter of the organization's keys and
        projects, so those stay in range too.
        """
        return MAX_MICROS - self.reserved - max(self.charged, -self.balance)

    def takes(self, deposit: int) -> bool:
        """Whether its figures stay within 64 bits after this top-up (or correction, below 0).

        The balance is never above what was deposited, so refunds need no such check.
        """
        return abs(self.deposited + deposit) <= MAX_MICROS and self.available + deposit >= -MAX_MICROS

    def copy(self) -> Wallet:
        """A copy, for a decision that may still be dropped."""
        return copied(self)


class Tally(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The counts of one window: money spent or held, and requests."""

    start: int
    micros: int = 0
    requests: int = 0
    alerts: tuple[tuple[Unit, int], ...] = ()
    """The (unit, percent) thresholds that are recorded already."""


class Counters(msgspec.Struct, array_like=True, gc=False):
    """The current tallies of one key, project or organization.

    All four windows are always counted, so that a quota set in the middle of a month is exact.
    A past window is kept only while an open reservation belongs to it. The struct is flat, because there
    is one for every key and a charge copies two; copies share the tuple and the dicts, which are replaced
    and never changed in place.
    """

    day: int
    """The day of the current windows; their starts follow from it."""
    day_micros: int = 0
    day_requests: int = 0
    week_micros: int = 0
    week_requests: int = 0
    month_micros: int = 0
    month_requests: int = 0
    total_micros: int = 0
    total_requests: int = 0
    alerts: tuple[tuple[Window, Unit, int], ...] = ()
    """The (window, unit, percent) thresholds that are recorded already in the current windows."""
    past: dict[str, Tally] | None = None
    held: dict[str, int] | None = None
    """Open reservations by window, such as `month/20392`."""

    def copy(self) -> Counters:
        """A copy, for a decision that may still be dropped."""
        return copied(self)

    @property
    def tallies(self) -> tuple[Tally, Tally, Tally, Tally]:
        """The tallies of the current windows, in the order of WINDOWS."""
        day, week, month, total = window_starts(self.day)
        return (
            Tally(day, self.day_micros, self.day_requests, self._alerts_of("day")),
            Tally(week, self.week_micros, self.week_requests, self._alerts_of("week")),
            Tally(month, self.month_micros, self.month_requests, self._alerts_of("month")),
            Tally(total, self.total_micros, self.total_requests, self._alerts_of("total")),
        )

    def _alerts_of(self, window: Window) -> tuple[tuple[Unit, int], ...]:
        return tuple((unit, percent) for named, unit, percent in self.alerts if named == window)

    def tally(self, window: Window, start: int) -> Tally | None:
        """The tally of a window, if the window is current or still held."""
        if window_starts(self.day)[WINDOWS.index(window)] != start:
            return None if self.past is None else self.past.get(f"{window}/{start}")
        micros, requests = getattr(self, f"{window}_micros"), getattr(self, f"{window}_requests")
        return Tally(start, micros, requests, self._alerts_of(window) if self.alerts else ())

    def turn(self, day: int) -> None:
        """Advance to a later day: windows that are over are reset, or kept while held."""
        if day <= self.day:
            return
        for window, tally, start in zip(WINDOWS, self.tallies, window_starts(day), strict=True):
            if tally.start == start:
                continue
            name = f"{window}/{tally.start}"
            if self.held is not None and name in self.held:
                self.past = {**(self.past or {}), name: tally}
            setattr(self, f"{window}_micros", 0)
            setattr(self, f"{window}_requests", 0)
            if self.alerts:
                self.alerts = tuple(one for one in self.alerts if one[0] != window)
        self.day = day

    def add(self, starts: tuple[int, int, int, int], micros: int, requests: int) -> None:
        """Count a use (or undo it) in the windows with these starts."""
        if starts[0] == self.day:
            self.day_micros += micros
            self.week_micros += micros
            self.month_micros += micros
            self.total_micros += micros
            self.day_requests += requests
            self.week_requests += requests
            self.month_requests += requests
            self.total_requests += requests
            return
        for window, start, current in zip(WINDOWS, starts, window_starts(self.day), strict=True):
            if start == current:
                setattr(self, f"{window}_micros", getattr(self, f"{window}_micros") + micros)
                setattr(self, f"{window}_requests", getattr(self, f"{window}_requests") + requests)
            elif self.past is not None and (tally := self.past.get(f"{window}/{start}")) is not None:
                added = Tally(start, tally.micros + micros, tally.requests + requests, tally.alerts)
                self.past = {**self.past, f"{window}/{start}": added}

    def told(self, window: Window, start: int, unit: Unit, percent: int) -> None:
        """Note that a threshold was reached in a window, and recorded."""
        if window_starts(self.day)[WINDOWS.index(window)] == start:
            self.alerts = (*self.alerts, (window, unit, percent))
        elif self.past is not None and (tally := self.past.get(f"{window}/{start}")) is not None:
            told = replace(tally, alerts=(*tally.alerts, (unit, percent)))
            self.past = {**self.past, f"{window}/{start}": told}

    def hold(self, starts: tuple[int, int, int, int]) -> None:
        """Keep these windows: an open reservation belongs to them."""
        held = dict(self.held or {})
        for window, start in zip(WINDOWS, starts, strict=True):
            name = f"{window}/{start}"
            held[name] = held.get(name, 0) + 1
        self.held = held

    def let_go(self, starts: tuple[int, int, int, int]) -> None:
        """Stop keeping these windows for a reservation: it is settled."""
        held, past = dict(self.held or {}), dict(self.past or {})
        for window, start in zip(WINDOWS, starts, strict=True):
            name = f"{window}/{start}"
            left = held.pop(name, 0) - 1
            if left > 0:
                held[name] = left
            else:
                past.pop(name, None)
        self.held, self.past = held or None, past or None


class Reservation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Money held for a use whose price is not known yet."""

    id: str
    key_id: str
    organization_id: str
    request_id: str
    base_micros: int
    price_multiplier: str
    amount_micros: int
    """The amount that was held, price multiplier applied."""
    held_micros: int
    """The amount that is still held."""
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
