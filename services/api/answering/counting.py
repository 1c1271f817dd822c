"""Counters of answers, by route, method, status and code, and of how long they took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class _Durations:
    """Durations of the answers of one route and method."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_BOUNDS) + 1)
        self.seconds = 0.0


class _Answers:
    """Answers of one route and method with one status and code."""

    __slots__ = ("durations", "number")

    def __init__(self, durations: _Durations) -> None:
        self.number = 0
        self.durations = durations


class Counts(Collector):
    """Counters in plain integers, which Prometheus reads when it scrapes: they cost a request little."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, str, int, str], _Answers] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}

    def count(self, route: str, method: str, status: int, code: str, seconds: float) -> None:
        """Count one answer."""
        found = self._answers.get((route, method, status, code)) or self._first(route, method, status, code)
        found.number += 1
        durations = found.durations
        durations.buckets[bisect_left(_BOUNDS, seconds)] += 1
        durations.seconds += seconds

    def _first(self, route: str, method: str, status: int, code: str) -> _Answers:
        durations = self._durations.setdefault((route, method), _Durations())
        found = self._answers[route, method, status, code] = _Answers(durations)
        return found

    def answered(self, route: str, code: str) -> int:
        """How many answers a route gave with this code."""
        return sum(one.number for (r, _, _, c), one in self._answers.items() if (r, c) == (route, code))

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        answers = CounterMetricFamily(
            "keyledger_answers", "Answers of the API.", labels=["route", "method", "status", "code"]
        )
        for (route, method, status, code), one in self._answers.items():
            answers.add_metric([route, method, str(status), code], one.number)
        yield answers
        seconds = HistogramMetricFamily(
            "keyledger_answer_seconds", "From a request's headers to its answer.", labels=["route", "method"]
        )
        for (route, method), durations in self._durations.items():
            seconds.add_metric([route, method], _cumulated(durations.buckets), durations.seconds)
        yield seconds


def _cumulated(buckets: list[int]) -> list[tuple[str, float]]:
    total = 0
    told: list[tuple[str, float]] = []
    for bound, number in zip((*map(str, _BOUNDS), "+Inf"), buckets, strict=True):
        total += number
        told.append((bound, float(total)))
    return told
