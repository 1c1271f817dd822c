"""Whether a process may answer for its partition, and until when that is certain."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from infra.position_watch import PositionWatch
from keyledger_language import Change
from services.ledger.errors import (
    NotOwnerHereError,
    OtherHistoryHereError,
    UnavailableError,
    WaitsForStandbyError,
)
from services.ledger.tenure import Tenure


class Standing:
    """Read by everything that answers; changed by `Ownership`, and by an append that shows more."""

    def __init__(self, tenure: Tenure, head_watch: PositionWatch, boottime_ns: Callable[[], int]) -> None:
        self.owner = False
        """Whether this process owns the partition; if not, requests are forwarded to the one that does."""
        self.stands_by = False
        """Whether another process owns the partition."""
        self.reachable = False
        """Whether the log answered when it was last asked."""
        self.waits_for_standby = False
        """Whether PostgreSQL completes no commit because its standby is not connected."""
        self.other_history: OtherHistoryHereError | None = None
        """Why this process answers nothing: what it knows is not in the log."""
        self.tenure = tenure
        """The current tenure; the last one, if there is none now."""
        self._appended_ns = 0
        """When the last append was sent that returned since the last confirmation."""
        self._head_watch = head_watch
        self._boottime_ns = boottime_ns

    @property
    def confirmed(self) -> bool:
        """Whether it is certain that no other process decides: answers from memory are then true."""
        return self.owner and self._boottime_ns() < self.tenure.fences.owner_until_ns

    @property
    def owner_until_ns(self) -> int:
        """Until then (boottime) answers from memory are true; 0 while another process may decide."""
        return self.tenure.fences.owner_until_ns if self.owner else 0

    def begin(self, tenure: Tenure) -> None:
        """This process is about to own the partition; it does once others are notified."""
        self.tenure = tenure
        self._appended_ns = 0

    def must_own(self) -> None:
        """Raise unless this process may answer for the partition now."""
        if self.confirmed:
            return
        if self.other_history is not None:
            raise self.other_history
        if not self.reachable:
            raise UnavailableError("postgresql", "PostgreSQL cannot be reached.")
        if self.waits_for_standby and not self.stands_by:
            raise WaitsForStandbyError
        raise NotOwnerHereError("This process does not own the partition.")

    # -- what appends show

    def committed(self, position: int, changes: Sequence[Change]) -> None:
        """The log's head is `position` now, durably, and these are the changes that edges must receive."""
        self.tenure.committed(position, changes)
        self._head_watch.moved()

    def newest_open(self, subjects: Collection[str] | None) -> int | None:
        """The newest fence that is open, of all or of those that may concern these subjects."""
        return self.tenure.fences.newest_open(subjects)

    def held(self, sent_ns: int) -> None:
        """An append that was sent then is durable: it shows what a confirmation would."""
        if self.owner:
            self._appended_ns = sent_ns
            self.tenure.fences.confirmed(sent_ns)

    def take_appended(self) -> int:
        """When the last append was sent that returned since the previous call (boottime); 0: none did."""
        appended, self._appended_ns = self._appended_ns, 0
        return appended

    def lost(self) -> None:
        """Another process may own the partition from now on, or may have in between: answer nothing."""
        self.owner = False
        self.tenure.fences.lost()
