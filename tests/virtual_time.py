"""An event loop in virtual time: where nothing is left to do, the next timer is due at once."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

from keyledger_language.instants import Instant

_STUCK = "everybody waits, and no timer is left"


class _Selector(selectors.DefaultSelector):
    """Instead of sleeping it moves the loop's clock."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout != 0:
            assert timeout is not None, _STUCK
            self.loop.ns += int(timeout * 1e9) + 1
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Runs unchanged code; its time goes on only while everybody waits."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000_000
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.ns / 1e9


class VirtualClock:
    """Both clocks of a ledger, by the loop's time."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def boottime_ns(self) -> int:
        return self._loop.ns

    def now(self) -> Instant:
        return 1_700_000_000_000_000 + self._loop.ns // 1_000
