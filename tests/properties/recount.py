"""What the events add up to, counted again with dates and sums, by none of the ledger's own code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from keyledger_language import events as e

Window = tuple[str, object]
"""A window's name, and what stands for it: a date, (year, week), (year, month), or nothing."""


def windows_of(at: int) -> list[Window]:
    """The windows that hold an instant, by the calendar."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at)
    iso = moment.isocalendar()
    return [
        ("day", moment.date()),
        ("week", (iso.year, iso.week)),
        ("month", (moment.year, moment.month)),
        ("total", None),
    ]


class Recount:
    """Sums over a history."""

    def __init__(self, events: Sequence[e.Event] = ()) -> None:
        self.deposited: Counter[str] = Counter()
        self.charged: Counter[str] = Counter()
        self.refunded: Counter[str] = Counter()
        self.held: dict[str, int] = {}
        """Micros still held, by reservation."""
        self.reserved: dict[str, e.CreditsReserved] = {}
        self.over: set[str] = set()
        """Reservations that were released, or that expired."""
        self.taken: Counter[str] = Counter()
        """Micros taken, by charge."""
        self.used_at: dict[str, int] = {}
        """The instant whose windows a charge belongs to."""
        self.given_back: Counter[str] = Counter()
        self.micros: dict[str, Counter[Window]] = defaultdict(Counter)
        """By key, project or organization, and window."""
        self.requests: dict[str, Counter[Window]] = defaultdict(Counter)
        for event in events:
            self.count(event)

    def count(self, event: e.Event) -> None:
        """Add one event."""
        match event:
            case e.CreditsDeposited() | e.CreditsAdjusted():
                self.deposited[str(event.organization_id)] += event.amount_micros
            case e.UsageCharged():
                self.charged[str(event.organization_id)] += event.amount_micros
                self.taken[event.charge_id] += event.amount_micros
                self.used_at[event.charge_id] = event.at
                self._use(event, event.at, event.amount_micros, 1)
            case e.UsageRefunded():
                assert event.window_at == self.used_at[event.charge_id], "it goes back where it was taken"
                self.refunded[str(event.organization_id)] += event.amount_micros
                self.given_back[event.charge_id] += event.amount_micros
                self._use(event, event.window_at, -event.amount_micros, 0)
            case e.CreditsReserved():
                self.held[event.reservation_id] = event.amount_micros
                self.reserved[event.reservation_id] = event
                self._use(event, event.at, event.amount_micros, 1)
            case e.ReservationCaptured():
                self._capture(event)
            case e.ReservationReleased():
                self.over.add(event.reservation_id)
                self.held[event.reservation_id] -= event.released_micros
                reserved = self.reserved[event.reservation_id]
                self._use(reserved, reserved.at, -event.released_micros, 0)
            case _:
                pass

    def _capture(self, event: e.ReservationCaptured) -> None:
        self.charged[str(event.organization_id)] += event.amount_micros
        self.taken[event.charge_id] += event.amount_micros
        late = event.reservation_id in self.over
        used_at = event.at if late else self.reserved[event.reservation_id].at
        assert event.window_at == used_at, "a use belongs to the window in which it was reserved"
        self.used_at[event.charge_id] = used_at
        self.held[event.reservation_id] -= event.held_micros + event.released_micros
        beyond = event.amount_micros - event.held_micros - event.released_micros
        self._use(event, event.window_at, beyond, 0)

    def _use(
        self,
        event: e.Metered | e.UsageRefunded | e.ReservationCaptured,
        at: int,
        micros: int,
        requests: int,
    ) -> None:
        for subject in {event.key_id, event.project_id, event.organization_id} - {None}:
            for window in windows_of(at):
                self.micros[str(subject)][window] += micros
                self.requests[str(subject)][window] += requests

    def open_holds(self, organization_id: str) -> int:
        """Micros that the organization's reservations hold."""
        return sum(
            micros
            for reservation, micros in self.held.items()
            if self.reserved[reservation].organization_id == organization_id
        )
