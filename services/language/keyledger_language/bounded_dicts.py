"""Dicts of bounded size, by what is forgotten: all that can be made again, the older half, the oldest."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """At most `most` entries, each of which can be made again: when one more comes, all are forgotten."""

    __slots__ = ("_entries", "_most", "get")

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[K, V] = {}
        self.get: Callable[[K], V | None] = self._entries.get
        """The entry, or None. The dict's own method, for whoever asks at each request."""

    def put(self, key: K, value: V) -> None:
        """Keep it."""
        entries = self._entries
        if len(entries) >= self._most and key not in entries:
            entries.clear()
        entries[key] = value

    def drop(self, key: K) -> None:
        """Forget one."""
        self._entries.pop(key, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._entries.clear()


class TwoGenerations(Generic[K, V]):
    """At least the newest `kept` entries, and at most twice as many: the older half is dropped whole.

    What is written again, or renewed, is among the newest.
    """

    __slots__ = ("_kept", "_newer", "_older")

    def __init__(self, kept: int) -> None:
        self._kept = max(1, kept)
        self._newer: dict[K, V] = {}
        self._older: dict[K, V] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def __iter__(self) -> Iterator[K]:
        yield from self._older
        yield from self._newer

    def __contains__(self, key: K) -> bool:
        return key in self._newer or key in self._older

    def get(self, key: K) -> V | None:
        """The entry, or None."""
        value = self._newer.get(key)
        return self._older.get(key) if value is None else value

    def renew(self, key: K) -> V | None:
        """The entry, which is among the newest from now on; or None."""
        value = self._newer.get(key)
        if value is None and key in self._older:
            value = self._older[key]
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Keep it."""
        if len(self._newer) >= self._kept and key not in self._newer:
            self.turn()
        self._older.pop(key, None)
        self._newer[key] = value

    @property
    def full(self) -> bool:
        """Does the older half go when one more comes?"""
        return len(self._newer) >= self._kept

    def turn(self) -> None:
        """Drop the older half; what is kept now is the older one."""
        self._older, self._newer = self._newer, {}

    def drop(self, key: K) -> None:
        """Forget one."""
        self._newer.pop(key, None)
        self._older.pop(key, None)

    def clear(self) -> None:
        """Forget all of them."""
        self._newer, self._older = {}, {}


class NewestDict(OrderedDict[K, V]):
    """A dict of at most `most` entries: when one more comes, the one that was written first goes.

    A plain dict looks for its first entry behind all that were deleted: of 100,000 entries that took 50
    microseconds for each one that came, and takes one here.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        if len(self) > self._most:
            self.popitem(last=False)
