"""Recompute all money from the log by plain sums, and compare it with everything else that has the figures.

Deliberately shares no arithmetic with `domain.evolve`, `domain.accounts` and `domain.money`: an error
there must not hide here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

from domain.evolve import evolve
from domain.projecting import Queries
from domain.state import State
from keyledger_language import events as e
from keyledger_language.instants import Instant

ReadEvents = Callable[[int, int], Awaitable[Sequence[tuple[int, e.Event]]]]
"""(after, limit) to events in order."""
Window = tuple[str, int]
"""A window's name and the day it began on, counted from 1970-01-01."""

_BATCH: Final = 5_000
_MICROSECONDS_PER_DAY: Final = 86_400_000_000
_EPOCH: Final = date(1970, 1, 1)


class Discrepancy(NamedTuple):
    """A figure that is not what the events add up to."""

    where: str
    """Where it was found: an event, the state, the saved state, the usage projection."""
    subject: str
    figure: str
    expected: int | str
    found: int | str | None

    def __str__(self) -> str:
        """The discrepancy in one line, for display."""
        return f"{self.where}: {self.figure} of {self.subject} is {self.found}, and should be {self.expected}"


class Reconciliation(NamedTuple):
    """What was compared, and the discrepancies: there should be none."""

    position: int
    wallets: int
    counters: int
    usage_position: int | None
    """The position of the usage projection; None if it was not compared."""
    saved_position: int | None
    """The position of the ledger's saved state; None if it was not compared."""
    findings: list[Discrepancy]

    @property
    def clean(self) -> bool:
        """Whether everything agrees."""
        return not self.findings


class UsageSums(NamedTuple):
    """What the usage projection has counted, as of one position."""

    position: int
    by_key: dict[tuple[str, str], tuple[int, int]]
    """(organization, key) to (requests, micros charged and not given back)."""


class _Purse:
    """An organization's money, in plain sums."""

    def __init__(self) -> None:
        self.deposited = self.charged = self.refunded = self.held = 0

    @property
    def balance(self) -> int:
        return self.deposited - self.charged + self.refunded


class _Held:
    """An open reservation: what is left of it, and where it counts."""

    def __init__(self, event: e.CreditsReserved) -> None:
        self.left = event.amount_micros
        self.reserved_at = event.at
        self.subjects = _subjects(event)


class _Subject:
    """What a key, project or organization has used, by window, and which windows reservations hold."""

    def __init__(self) -> None:
        self.used: dict[Window, list[int]] = {}
        self.holds: dict[Window, int] = {}
        self.day = -1

    def turn(self, day: int) -> frozenset[Window]:
        """Forget windows that are over and that no open reservation belongs to."""
        current = windows_of(day)
        if day > self.day:
            self.day = day
            kept = current | self.holds.keys()
            self.used = {window: sums for window, sums in self.used.items() if window in kept}
        return current

    def use(self, at: Instant, today: int, micros: int, requests: int) -> None:
        """Count in the windows of `at` that are still kept."""
        kept = self.turn(today) | self.holds.keys()
        for window in windows_of(at // _MICROSECONDS_PER_DAY) & kept:
            sums = self.used.setdefault(window, [0, 0])
            sums[0] += micros
            sums[1] += requests

    def hold(self, at: Instant, count: int) -> None:
        """A reservation of these windows opens (1) or is settled (-1)."""
        for window in windows_of(at // _MICROSECONDS_PER_DAY):
            holds = self.holds.get(window, 0) + count
            if holds:
                self.holds[window] = holds
            else:
                del self.holds[window]


class Sums:
    """All money of a log, added up event by event."""

    def __init__(self) -> None:
        self.purses: dict[str, _Purse] = {}
        self.subjects: dict[str, _Subject] = {}
        self.reservations: dict[str, _Held] = {}
        self.refunds: dict[str, int] = {}
        self.by_key: dict[tuple[str, str], list[int]] = {}
        self.findings: list[Discrepancy] = []

    def add(self, event: e.Event, position: int) -> None:
        """Add one event, and check the figures that it carries itself."""
        if isinstance(event, e.OrganizationOpened):
            self.purses[_of(event)] = _Purse()
        if not isinstance(event, e.WalletEvent):
            return
        purse = self.purses[_of(event)]
        today = event.at // _MICROSECONDS_PER_DAY
        match event:
            case e.CreditsDeposited() | e.CreditsAdjusted():
                purse.deposited += event.amount_micros
            case e.UsageCharged():
                self._check_price(event, position)
                purse.charged += event.amount_micros
                self._use(_subjects(event), event.at, today, event.amount_micros, 1)
                self._count(event, event.key_id, 1, event.amount_micros)
            case e.UsageRefunded():
                purse.refunded += event.amount_micros
                self._refund(event, position)
                self._use(_subjects(event), event.window_at, today, -event.amount_micros, 0)
                self._count(event, event.key_id, 0, -event.amount_micros)
            case e.CreditsReserved():
                self._check_price(event, position)
                purse.held += event.amount_micros
                self._use(_subjects(event), event.at, today, event.amount_micros, 1)
                self._count(event, event.key_id, 1, 0)
                self._open(event)
            case e.ReservationCaptured():
                self._capture(event, purse, today)
            case e.ReservationReleased():
                self._release(event, purse, today)
            case _:
                pass
        self._check(position, _of(event), "balance_micros", purse.balance, event.balance_micros)
        self._check(position, _of(event), "reserved_micros", purse.held, event.reserved_micros)

    def _use(self, subjects: Iterable[str], at: Instant, today: int, micros: int, requests: int) -> None:
        for subject in subjects:
            self.subjects.setdefault(subject, _Subject()).use(at, today, micros, requests)

    def _count(self, event: e.Event, key_id: str, requests: int, micros: int) -> None:
        sums = self.by_key.setdefault((_of(event), key_id), [0, 0])
        sums[0] += requests
        sums[1] += micros

    def _refund(self, event: e.UsageRefunded, position: int) -> None:
        so_far = self.refunds.get(event.charge_id, 0) + event.amount_micros
        self.refunds[event.charge_id] = so_far
        self._check(position, event.charge_id, "refunded_micros", so_far, event.refunded_micros)

    def _open(self, event: e.CreditsReserved) -> None:
        held = self.reservations[event.reservation_id] = _Held(event)
        for subject in held.subjects:
            self.subjects[subject].hold(held.reserved_at, 1)

    def _capture(self, event: e.ReservationCaptured, purse: _Purse, today: int) -> None:
        purse.charged += event.amount_micros
        purse.held -= event.held_micros + event.released_micros
        beyond = event.amount_micros - event.held_micros - event.released_micros
        self._use(_subjects(event), event.window_at, today, beyond, 0)
        self._count(event, event.key_id, 0, event.amount_micros)
        held = self.reservations.get(event.reservation_id)
        if held is not None:
            held.left -= event.held_micros + event.released_micros
            if event.final:
                self._settle(event.reservation_id, held)

    def _release(self, event: e.ReservationReleased, purse: _Purse, today: int) -> None:
        purse.held -= event.released_micros
        held = self.reservations.get(event.reservation_id)
        if held is not None:
            held.left -= event.released_micros
            self._use(held.subjects, held.reserved_at, today, -event.released_micros, 0)
            self._settle(event.reservation_id, held)

    def _settle(self, reservation_id: str, held: _Held) -> None:
        for subject in held.subjects:
            self.subjects[subject].hold(held.reserved_at, -1)
        del self.reservations[reservation_id]
        if held.left:
            self.findings.append(Discrepancy("log", reservation_id, "held_micros when settled", 0, held.left))

    def _check_price(self, event: e.Metered, position: int) -> None:
        expected = int(Fraction(event.base_micros) * _multiplier(event.price_multiplier) + Fraction(1, 2))
        self._check(position, event.request_id, "amount_micros", expected, event.amount_micros)

    def _check(self, position: int, subject: str, figure: str, expected: int, found: int) -> None:
        if expected != found:
            self.findings.append(Discrepancy(f"event {position}", subject, figure, expected, found))


@lru_cache(maxsize=1_000)
def _multiplier(text: str) -> Fraction:
    return Fraction(text)


@lru_cache(maxsize=10_000)
def windows_of(day: int) -> frozenset[Window]:
    """The windows that contain a day, according to the calendar."""
    today = _EPOCH + timedelta(days=day)
    monday = today - timedelta(days=today.weekday())
    first = today.replace(day=1)
    return frozenset(
        {("day", day), ("week", (monday - _EPOCH).days), ("month", (first - _EPOCH).days), ("total", 0)}
    )


def _of(event: e.Event) -> str:
    assert event.organization_id is not None, "money is an organization's"
    return event.organization_id


def _subjects(event: e.Metered | e.UsageRefunded | e.ReservationCaptured) -> tuple[str, ...]:
    both = (event.key_id, _of(event))
    return both if event.project_id is None else (*both, event.project_id)


# -- comparing ------------------------------------------------------------------------------------


def compare_with_state(sums: Sums, state: State, where: str) -> Iterator[Discrepancy]:
    """Wallets, counters, open reservations and refunds of a state against the sums."""
    for organization_id, purse in sums.purses.items():
        wallet = state.wallets.find(organization_id)
        if wallet is None:
            yield Discrepancy(where, organization_id, "wallet", "there", None)
            continue
        for figure, expected, found in (
            ("balance", purse.balance, wallet.balance),
            ("reserved", purse.held, wallet.reserved),
            ("deposited", purse.deposited, wallet.deposited),
            ("charged", purse.charged, wallet.charged),
            ("refunded", purse.refunded, wallet.refunded),
        ):
            if expected != found:
                yield Discrepancy(where, organization_id, figure, expected, found)
    yield from _compare_counters(sums, state, where)
    yield from _compare_reservations(sums, state, where)
    for charge_id, refunded in sums.refunds.items():
        if state.refunds.find(charge_id) != refunded:
            yield Discrepancy(where, charge_id, "refunded", refunded, state.refunds.find(charge_id))


def _compare_counters(sums: Sums, state: State, where: str) -> Iterator[Discrepancy]:
    for subject, used in sums.subjects.items():
        counters = state.counters.find(subject)
        if counters is None:
            yield Discrepancy(where, subject, "counters", "there", None)
            continue
        tallies = [
            *zip(("day", "week", "month", "total"), counters.tallies, strict=True),
            *((name.partition("/")[0], tally) for name, tally in (counters.past or {}).items()),
        ]
        for window, tally in tallies:
            micros, requests = used.used.get((window, tally.start), (0, 0))
            began = datetime.fromtimestamp(tally.start * 86_400, UTC).date()
            if (micros, requests) != (tally.micros, tally.requests):
                figure = f"micros and requests in the {window} of {began}"
                yield Discrepancy(
                    where, subject, figure, f"{micros} and {requests}", f"{tally.micros} and {tally.requests}"
                )


def _compare_reservations(sums: Sums, state: State, where: str) -> Iterator[Discrepancy]:
    still_open = {one.id: one.held_micros for one in state.reservations.values() if one.status == "open"}
    for reservation_id, held in sums.reservations.items():
        if still_open.get(reservation_id) != held.left:
            yield Discrepancy(where, reservation_id, "held_micros", held.left, still_open.get(reservation_id))
    for reservation_id in still_open.keys() - sums.reservations.keys():
        yield Discrepancy(where, reservation_id, "held_micros", "settled", still_open[reservation_id])


def compare_with_usage(sums: Sums, usage: UsageSums) -> Iterator[Discrepancy]:
    """The usage projection's counters against the sums, by key."""
    where = "usage projection"
    for name in sorted(sums.by_key.keys() | usage.by_key.keys()):
        expected = tuple(sums.by_key.get(name, (0, 0)))
        found = usage.by_key.get(name, (0, 0))
        if expected != found:
            yield Discrepancy(
                where,
                f"{name[1]} in {name[0]}",
                "requests and micros",
                f"{expected[0]} and {expected[1]}",
                f"{found[0]} and {found[1]}",
            )


async def usage_sums(queries: Queries) -> UsageSums:
    """All counters of the usage projection, and their position: both are read in one statement."""
    rows = await queries.rows("""
        SELECT (SELECT min(notification_id) FROM {schema}.tracking), organization_id, key_id,
            sum(requests), sum(charged_micros) - sum(refunded_micros)
        FROM {schema}.usage_dimensions JOIN {schema}.usage_hours USING (dimension) GROUP BY 2, 3
        UNION ALL SELECT (SELECT min(notification_id) FROM {schema}.tracking), NULL, NULL, 0, 0
    """)
    by_key = {(row[1], row[2]): (int(row[3]), int(row[4])) for row in rows if row[1] is not None}
    return UsageSums(int(rows[-1][0] or 0), by_key)


async def reconcile(
    read: ReadEvents, *, head: int, usage: UsageSums | None = None, saved: State | None = None
) -> Reconciliation:
    """Go through the log once, up to `head` and to the positions of `usage` and `saved`, and compare all.

    `saved`: the state that the ledger would load at its start, as of its own position.
    """
    sums, folded = Sums(), State()
    position = 0
    findings: list[Discrepancy] = []
    target = max(head, usage.position if usage else 0, saved.head if saved else 0)
    if usage is not None and usage.position == 0:
        findings += compare_with_usage(sums, usage)
    while position < target:
        batch = await read(position, min(_BATCH, target - position))
        assert batch, "the log does not end before its head"
        for position, event in batch:
            sums.add(event, position)
            evolve(folded, event, position)
            if saved is not None and saved.head == position:
                findings += compare_with_state(sums, saved, "saved state")
            if usage is not None and usage.position == position:
                findings += compare_with_usage(sums, usage)
    findings += sums.findings
    findings += compare_with_state(sums, folded, "state")
    return Reconciliation(
        position=position,
        wallets=len(sums.purses),
        counters=len(sums.subjects),
        usage_position=usage.position if usage else None,
        saved_position=saved.head if saved else None,
        findings=findings,
    )
