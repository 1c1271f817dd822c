"""Rate limits, counted in this process: exact within it; each process counts for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

_SWEEP_AT = 65_536


class RateLimit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Requests per number of seconds; with a provider, only uses that name it are counted."""

    name: str
    """The limit's name; you choose it."""
    limit: int
    """The most requests in a window."""
    window_seconds: int
    """How long a window is."""
    provider: str | None = None
    """Only uses that name this provider are counted; null: all."""


class RateState(NamedTuple):
    """The state of one limit after the check."""

    name: str
    limit: int
    window_seconds: int
    remaining: int
    reset_seconds: int
    """Seconds until the window ends, rounded up."""


class _Window:
    __slots__ = ("ends", "used")

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.used = 0


class RateLimiter:
    """Counts uses in windows that open with the first use and last `window_seconds`.

    `take` either counts one use against every limit that applies or, when one of them is
    used up, against none. `clock` is monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._windows: dict[tuple[str, str], _Window] = {}

    def take(
        self, key_id: str, limits: tuple[RateLimit, ...], provider: str | None
    ) -> tuple[bool, list[RateState]]:
        """Count one use: (allowed, the state of each limit that applies)."""
        now = self._clock()
        applying = [one for one in limits if one.provider is None or one.provider == provider]
        windows = [self._window(key_id, one, now) for one in applying]
        pairs = list(zip(applying, windows, strict=True))
        allowed = all(window.used < limit.limit for limit, window in pairs)
        if allowed:
            for window in windows:
                window.used += 1
        return allowed, [_state(limit, window, now) for limit, window in pairs]

    def peek(self, key_id: str, limits: tuple[RateLimit, ...], provider: str | None) -> list[RateState]:
        """The state of each limit that applies; nothing is counted."""
        now = self._clock()
        applying = [one for one in limits if one.provider is None or one.provider == provider]
        return [_state(one, self._window(key_id, one, now), now) for one in applying]

    def give_back(self, key_id: str, limits: tuple[RateLimit, ...], provider: str | None) -> None:
        """Undo one `take`: the use was refused for another reason."""
        for one in limits:
            if one.provider is None or one.provider == provider:
                window = self._windows.get((key_id, one.name))
                if window is not None and window.used:
                    window.used -= 1

    def _window(self, key_id: str, limit: RateLimit, now: float) -> _Window:
        window = self._windows.get((key_id, limit.name))
        if window is None or now >= window.ends:
            if len(self._windows) >= _SWEEP_AT:
                self._sweep(now)
            window = self._windows[key_id, limit.name] = _Window(now + limit.window_seconds)
        return window

    def _sweep(self, now: float) -> None:
        self._windows = {k: w for k, w in self._windows.items() if w.ends > now}


def _state(limit: RateLimit, window: _Window, now: float) -> RateState:
    return RateState(
        limit.name,
        limit.limit,
        limit.window_seconds,
        max(0, limit.limit - window.used),
        max(0, -int(-(window.ends - now) // 1)),
    )
