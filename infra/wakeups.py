"""Wake-ups within one process: whoever waits for a position wakes when it is there."""

from __future__ import annotations

from infra.position_watch import PositionWatch


class LocalWakeups(PositionWatch):
    """The newest position that was heard of, and those who wait for a later one."""

    def __init__(self) -> None:
        super().__init__(lambda: self.head)
        self.head = 0
        """The newest position heard of."""

    def hear(self, position: int) -> None:
        """Take a wake-up from within this process."""
        if position > self.head:
            self.head = position
            self.moved()
