"""Wake-ups within one process: waiters for a position wake when it is reached."""

from __future__ import annotations

from infra.position_watch import PositionWatch


class LocalWakeups(PositionWatch):
    """The newest position received, and the waiters for a later one."""

    def __init__(self) -> None:
        super().__init__(lambda: self.head)
        self.head = 0
        """The newest position received."""

    def hear(self, position: int) -> None:
        """Receive a wake-up from within this process."""
        if position > self.head:
            self.head = position
            self.moved()
