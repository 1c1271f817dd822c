"""Metrics for Prometheus: answered requests, and the ledger's present state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.api.asking.call import Call
from services.api.operations import Operation, Reader, Reply, operation
from services.ledger.ledger import Ledger


class LedgerFigures(Collector):
    """The ledger's present state."""

    def __init__(
        self,
        ledger: Ledger,
        reader: Reader,
        published: Callable[[], int | None],
        nats_reachable: Callable[[], bool],
    ) -> None:
        self._ledger = ledger
        self._reader = reader
        self._published = published
        self._nats_reachable = nats_reachable

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        ledger = self._ledger
        books = ledger.books
        figures: dict[str, tuple[str, float]] = {
            "keyledger_owner": ("Whether this process owns the partition.", ledger.owner),
            "keyledger_log_reachable": ("Whether PostgreSQL answered when last asked.", ledger.reachable),
            "keyledger_waits_for_standby": (
                "Whether PostgreSQL holds all commits because its standby is missing.",
                ledger.waits_for_standby,
            ),
            "keyledger_nats_reachable": ("Whether NATS answered when last asked.", self._nats_reachable()),
            "keyledger_position": ("The last event's number in its partition.", books.head),
            "keyledger_projected_position": ("How far the projections are.", self._reader.position),
            "keyledger_waiting_commands": ("Commands that wait to be decided.", ledger.waiting),
            "keyledger_open_fences": ("Fences that do not hold yet.", ledger.fences.open_fences),
            "keyledger_edges": ("Edges that the ledger heard from lately.", len(ledger.fences.edges())),
            "keyledger_keys": ("Keys, including revoked and deleted ones.", len(books.keys)),
            "keyledger_organizations": ("Organizations.", len(books.organizations)),
        }
        if (published := self._published()) is not None:
            figures["keyledger_published_position"] = ("The last event that NATS holds.", published)
            waiting = max(0, books.head - published)
            figures["keyledger_unpublished_events"] = ("Events committed, but not yet on NATS.", waiting)
        for name, (about, value) in figures.items():
            yield GaugeMetricFamily(name, about, value=value)


class EdgeOverflows(Collector):
    """How often the edges of a root key sent more than the ledger processes."""

    def __init__(self, times: Callable[[], int]) -> None:
        self._times = times

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield CounterMetricFamily(
            "keyledger_edge_overflows",
            "Times that the edges of a root key sent more than the ledger processes.",
            value=self._times(),
        )


@operation(
    "GET",
    "/metrics",
    tag="Operating",
    summary="Show metrics for Prometheus",
    description=(
        "Open if the ledger listens on this machine only; otherwise it needs a root key with "
        "`metrics:read` (`KEYLEDGER_METRICS`)."
    ),
    media_types=("text/plain",),
    answer=str,
    codes=("unauthenticated", "permission_denied"),
)
async def get_metrics(call: Call[Any, Any]) -> Reply:
    """All metrics, as Prometheus text."""
    return Reply(generate_latest(call.api.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def with_a_key(route: Operation) -> Operation:
    """The metrics route for root keys of the platform with `metrics:read`; other routes unchanged."""
    return replace(route, permissions=("metrics:read",)) if route is get_metrics else route


ROUTES = [get_metrics]
