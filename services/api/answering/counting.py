"""What the hot paths count: answers by route and code, and how long they took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class _Route:
    """Durations of one route."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0


class _Answers:
    """Answers of one route with one status and code."""

    __slots__ = ("number", "times")

    def __init__(self, times: _Route) -> None:
        self.number = 0
        self.times = times


class HotCounts(Collector):
    """Counters in plain integers; Prometheus reads them when it asks, so a request pays little for them."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int, str], _Answers] = {}
        self._routes: dict[str, _Route] = {}

    def count(self, route: str, status: int, code: str, seconds: float) -> None:
        """One answer went out."""
        answers = self._answers.get((route, status, code)) or self._first(route, status, code)
        answers.number += 1
        times = answers.times
        times.buckets[bisect_left(_BOUNDS, seconds)] += 1
        times.seconds += seconds

    def _first(self, route: str, status: int, code: str) -> _Answers:
        times = self._routes.setdefault(route, _Route())
        answers = self._answers[route, status, code] = _Answers(times)
        return answers

    def answered(self, route: str, code: str) -> int:
        """How many answers a route gave with this code."""
        return sum(one.number for (r, _, c), one in self._answers.items() if (r, c) == (route, code))

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        answers = CounterMetricFamily(
            "keyledger_answers", "Answers of the hot paths.", labels=["route", "status", "code"]
        )
        for (route, status, code), one in self._answers.items():
            answers.add_metric([route, str(status), code], one.number)
        yield answers
        seconds = HistogramMetricFamily(
            "keyledger_answer_seconds", "From a request's headers to its answer.", labels=["route"]
        )
        for route, times in self._routes.items():
            seconds.add_metric([route], _cumulated(times.buckets), times.seconds)
        yield seconds


def _cumulated(buckets: list[int]) -> list[tuple[str, float]]:
    total = 0
    told: list[tuple[str, float]] = []
    for bound, number in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
        total += number
        told.append((bound, float(total)))
    return told
