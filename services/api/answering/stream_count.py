"""Streams of events: how many are open, for each root key and in total."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.api.answering.problems import ProblemError

MOST: Final = 100
MOST_PER_KEY: Final = 10
_RETRY_SECONDS: Final = 10


class Streams(Collector):
    """The open streams, by the root key that reads them."""

    def __init__(self, most: int = MOST, most_per_key: int = MOST_PER_KEY) -> None:
        self._most = most
        self._most_per_key = most_per_key
        self._open: dict[str, int] = {}
        self.refused = {"key": 0, "process": 0}
        """How many were refused, by which bound."""

    @property
    def open(self) -> int:
        """How many are open."""
        return sum(self._open.values())

    def take(self, key_id: str) -> StreamSlot:
        """A slot for one more; refused if none is left."""
        if self._open.get(key_id, 0) >= self._most_per_key:
            raise self._full("key", f"A root key may have {self._most_per_key} streams of events.")
        if self.open >= self._most:
            raise self._full("process", f"A ledger process may have {self._most} streams of events.")
        self._open[key_id] = self._open.get(key_id, 0) + 1
        return StreamSlot(self, key_id)

    def _full(self, whose: str, detail: str) -> ProblemError:
        self.refused[whose] += 1
        return ProblemError("too_many_streams", detail, headers={"Retry-After": str(_RETRY_SECONDS)})

    def release(self, key_id: str) -> None:
        """Free a slot of this root key."""
        left = self._open.pop(key_id) - 1
        if left:
            self._open[key_id] = left

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield GaugeMetricFamily("keyledger_event_streams", "Open streams of events.", value=self.open)
        refused = CounterMetricFamily(
            "keyledger_event_streams_refused", "Streams of events refused, by which bound.", labels=["bound"]
        )
        for whose, times in self.refused.items():
            refused.add_metric([whose], times)
        yield refused


class StreamSlot:
    """The right to have one stream open."""

    def __init__(self, streams: Streams, key_id: str) -> None:
        self._streams = streams
        self._key_id = key_id

    def release(self) -> None:
        """The stream has ended: free its slot."""
        self._streams.release(self._key_id)
