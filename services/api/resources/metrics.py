"""Figures for Prometheus: requests as they are answered, the ledger as it stands when it is asked."""

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
    """The ledger as it stands."""

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
            "keyledger_owner": ("Does this process own the partition?", ledger.owner),
            "keyledger_log_reachable": ("Did PostgreSQL answer when last asked?", ledger.reachable),
            "keyledger_waits_for_standby": (
                "Does PostgreSQL let no commit pass because its standby is away?",
                ledger.waits_for_standby,
            ),
            "keyledger_nats_reachable": ("Did NATS answer when last asked?", self._nats_reachable()),
            "keyledger_position": ("The last event's number in its partition.", books.head),
            "keyledger_projected_position": ("How far the projections are.", self._reader.position),
            "keyledger_waiting_commands": ("Commands that wait to be decided.", ledger.waiting),
            "keyledger_open_fences": ("Fences that do not hold yet.", ledger.fences.open_fences),
            "keyledger_edges": ("Edges heard of lately.", len(ledger.fences.edges())),
            "keyledger_keys": ("Keys, dead ones included.", len(books.keys)),
            "keyledger_organizations": ("Organizations.", len(books.organizations)),
        }
        if (published := self._published()) is not None:
            figures["keyledger_published_position"] = ("The last event that NATS holds.", published)
            waiting = max(0, books.head - published)
            figures["keyledger_unpublished_events"] = ("Committed, and not yet on NATS.", waiting)
        for name, (about, value) in figures.items():
            yield GaugeMetricFamily(name, about, value=value)


class EdgeOverflows(Collector):
    """Edges that said more than is heard of them."""

    def __init__(self, times: Callable[[], int]) -> None:
        self._times = times

    def collect(self) -> Iterator[Metric]:
        """For Prometheus."""
        yield CounterMetricFamily(
            "keyledger_edge_overflows",
            "Times that the edges of a root key said more than is heard of them.",
            value=self._times(),
        )


@operation(
    "GET",
    "/metrics",
    tag="Operating",
    summary="Figures for Prometheus",
    description=(
        "Open where only this machine listens; elsewhere it needs a root key with `metrics:read` "
        "(`KEYLEDGER_METRICS`)."
    ),
    media_types=("text/plain",),
    answer=str,
    codes=("unauthenticated", "permission_denied"),
)
async def get_metrics(call: Call[Any, Any]) -> Reply:
    """Everything that is counted, as Prometheus text."""
    return Reply(generate_latest(call.api.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def with_a_key(route: Operation) -> Operation:
    """The route for root keys of the platform that may read metrics, where it is not open."""
    return replace(route, permissions=("metrics:read",)) if route is get_metrics else route


ROUTES = [get_metrics]
