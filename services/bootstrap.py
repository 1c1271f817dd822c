"""The only place that knows every adapter: assembles a ledger process and a worker process."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, get_args

import structlog

from domain.cloud_events import source_of
from infra.clock import SystemClock
from infra.nats.edge_bus import EdgeBus
from infra.nats.edge_logins import EdgeLogins
from infra.nats.relay import RelayStatus, run_relay
from infra.nats.streams import StreamLimits
from infra.nats.watch import PublishedWatch
from infra.postgres.data_keys import DataKeys
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from infra.postgres.master_key import check_master_key
from infra.postgres.migrate import check_migrated, migrate
from infra.postgres.projected import Projected
from infra.postgres.projection_queries import PostgresEventReader, PostgresQueries
from infra.postgres.projector import Projector, run_projector
from infra.postgres.sessions import Sessions
from infra.postgres.state_rows import PostgresStateRows
from infra.postgres.wakeups import WakeupListener
from keyledger_language.events import Event, LedgerEvent
from keyledger_language.instants import DAY
from projections.every import every_projection
from services.api.answering.stream_count import Streams
from services.api.resources.edge_membership import NO_EDGE_ADDRESS, EdgeAccess, edge_address, edge_routes
from services.api.resources.metrics import EdgeOverflows
from services.api.serving.app import build_app
from services.api.serving.connection_bounds import Connections, bounds_of
from services.api.serving.forwarding import Forwarder, OwnerAt
from services.api.serving.server import serve
from services.ledger.lease_table import EdgeBounds
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ledger import Ledger
from services.ledger.ports import Ports, Terms
from services.redaction import kept_out_of_logs
from services.settings import Settings

log = structlog.get_logger()

_PRUNED_AT_ONCE = 10_000
_PRUNE_PAUSE_SECONDS = 0.5

_READERS = 4
"""Sessions for lists, audit and other reads of projections."""


def tune_interpreter() -> None:
    """Collect garbage rarely, and switch threads often.

    With a million keys in memory a full collection is a pause that callers notice; the ledger's objects
    are freed by reference counts, and cycles are few and small. The writer's thread works for a
    fraction of a millisecond between two waits for PostgreSQL: with the default of 5 ms it waited
    longer for the interpreter than for the disk, and there were a third fewer charges per second.
    """
    sys.setswitchinterval(0.000_5)
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)


def event_mapper(settings: Settings) -> EventMapper[Event]:
    """A mapper that encodes and decodes every type of event."""
    return EventMapper(get_args(LedgerEvent), data_keys=DataKeys(settings.master_key))


class ProjectionReader:
    """Reads lists, audit, history, usage and requests."""

    def __init__(
        self, sessions: Sessions, mapper: EventMapper[Event], clock: SystemClock, projected: Projected
    ) -> None:
        self.queries = PostgresQueries(sessions)
        self.events = PostgresEventReader(sessions, mapper, clock)
        self._projected = projected

    @property
    def position(self) -> int:
        """The position of the projections, as far as this process knows."""
        return self._projected.position


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """The parts of a ledger process, assembled, not yet running."""

    settings: Settings
    ledger: Ledger
    log: PostgresLog
    edge_bus: EdgeBus
    projected: Projected
    mapper: EventMapper[Event]
    reader: ProjectionReader
    published: PublishedWatch
    source: str
    """The source of its events, the same over HTTP and over NATS."""

    async def owner_at(self) -> OwnerAt | None:
        """The address of the partition's owner, if it is known."""
        owner = await self.log.owner()
        return None if owner is None or not owner.address else OwnerAt(owner.address, owner.incarnation)


@asynccontextmanager
async def assemble(settings: Settings, database_url: str, nats_url: str) -> AsyncGenerator[Assembled]:
    """Connect to PostgreSQL and assemble the parts; NATS may be reached later."""
    await asyncio.to_thread(check_migrated, database_url)
    await asyncio.to_thread(check_master_key, database_url, settings.master_key)
    clock = SystemClock()
    mapper = event_mapper(settings)
    postgres_log = PostgresLog(database_url, clock=clock)
    identity = await postgres_log.identity()
    rows = PostgresStateRows(database_url)
    sessions = Sessions(database_url, "keyledger reads", most=_READERS)
    edge_bus = EdgeBus(nats_url, ping_ms=settings.ping_ms)
    async with Projected(database_url) as projected:
        ports = Ports(
            log=postgres_log,
            rows=rows,
            mapper=mapper,
            clock=clock,
            fence_clock=clock,
            learn_data_keys=mapper.data_keys.learn,
            announce=lambda tenure: postgres_log.announce(settings.advertised, tenure),
            publish_change=edge_bus.publish_change,
            listen_to_edges=edge_bus.look,
            projected=projected.wait_for,
            withdraw=lambda: postgres_log.announce("", ledger.tenure),
            succeeds_nobody=lambda: _succeeds_nobody(postgres_log, ledger.tenure),
            end_silent_owner=lambda: postgres_log.end_silent_owner(max(5.0, 3 * settings.lease_ms / 1_000)),
            prune=lambda: _prune(postgres_log, clock),
        )
        ledger = Ledger(ports, _terms(settings))
        edge_bus.speakers = ledger.speakers
        edge_bus.handle = ledger.hear
        if settings.edge_nats_issuer is not None:
            edge_bus.logins = EdgeLogins(
                settings.edge_nats_issuer,
                account=settings.edge_nats_account,
                secret=lambda: ledger.shared_key if ledger.caught_up else None,
                may_connect=ledger.may_connect,
                decides=lambda: ledger.confirmed,
            )
        reader = ProjectionReader(sessions, mapper, clock, projected)
        try:
            yield Assembled(
                settings=settings,
                ledger=ledger,
                log=postgres_log,
                edge_bus=edge_bus,
                projected=projected,
                mapper=mapper,
                reader=reader,
                published=PublishedWatch(
                    nats_url,
                    postgres_log.partition,
                    log_id=identity.log_id,
                    epoch=lambda: ledger.epoch,
                ),
                source=source_of(identity.log_id),
            )
        finally:
            await sessions.close()
            await rows.close()
            await postgres_log.close()


async def _succeeds_nobody(postgres_log: PostgresLog, tenure: str) -> bool:
    """Whether the last owner withdrew, or was this process: then no other process answers from memory."""
    last = await postgres_log.owner()
    return last is None or last.address == "" or last.incarnation == tenure


async def _prune(postgres_log: PostgresLog, clock: SystemClock) -> None:
    day_ago = clock.now() - DAY
    pruned = _PRUNED_AT_ONCE
    while pruned >= _PRUNED_AT_ONCE:
        pruned = await postgres_log.prune(groups_before=day_ago, claims_before=day_ago, most=_PRUNED_AT_ONCE)
        await asyncio.sleep(_PRUNE_PAUSE_SECONDS)


def _terms(settings: Settings) -> Terms:
    lease = LeaseTerms(
        lease_ms=settings.lease_ms,
        ping_ms=settings.ping_ms,
        drift=settings.drift,
        max_serve_stale_ms=settings.max_serve_stale_ms,
    )
    return Terms(
        lease=lease,
        edges=EdgeBounds(per_root_key=settings.max_edges_per_root_key, total=settings.max_edges),
        max_waiting=settings.queue_limit,
        idempotency_seconds=settings.idempotency_hours * 3_600,
    )


async def bootstrap_root_key(ledger: Ledger, settings: Settings, timeout: float = 30.0) -> str | None:
    """Create the first root key once this process owns the partition; its secret if it was created here.

    None if there is one already, if it was given, or if another process owns the partition.
    """
    async with asyncio.timeout(timeout):
        while not ledger.owner and not ledger.stands_by:  # noqa: ASYNC110  # once, at a start
            await asyncio.sleep(0.01)
    return await ledger.bootstrap(settings.root_key) if ledger.owner else None


async def run_server(
    settings: Settings,
    database_url: str,
    nats_url: str,
    stop: asyncio.Event,
    *,
    listeners: list[socket.socket],
    on_ready: Callable[[Assembled], Awaitable[None]] | None = None,
) -> None:
    """Serve the API on these sockets until `stop` is set; `on_ready` is called once it answers."""
    async with assemble(settings, database_url, nats_url) as parts, contextlib.AsyncExitStack() as last:
        ledger = parts.ledger
        forwarder = Forwarder(
            parts,
            ledger,
            own_address=settings.advertised,
            key=lambda: ledger.shared_key and hmac.digest(ledger.shared_key, b"forwarding", "sha256"),
        )
        last.push_async_callback(forwarder.close)
        access = _edge_access(parts, nats_url)
        app = build_app(
            ledger,
            parts.reader,
            forwarder=forwarder,
            source=parts.source,
            published=lambda: parts.published.position,
            nats_reachable=lambda: parts.edge_bus.connected and parts.published.reachable,
            trusted_proxies=settings.trusted_proxies,
            max_body_bytes=settings.max_body_bytes,
            log_granted=settings.log_granted,
            metrics_need_a_key=settings.metrics_need_a_key,
            streams=Streams(settings.max_streams, settings.max_streams_per_key),
            more_routes=edge_routes(access),
        )
        last.enter_context(kept_out_of_logs(app.api.redactor.redact))
        connections = Connections(bounds_of(settings))
        app.api.registry.register(connections)
        app.api.registry.register(EdgeOverflows(lambda: parts.edge_bus.overflows))

        async def started() -> None:
            tune_interpreter()
            if on_ready is not None:
                await _unless_stopped(on_ready(parts), stop)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ledger.run(stop), name="ledger")
            tasks.create_task(parts.edge_bus.run(stop), name="edges")
            tasks.create_task(parts.published.run(stop), name="published")
            serving = serve(app, listeners, stop, on_started=started, connections=connections)
            tasks.create_task(serving, name="server")


def _edge_access(parts: Assembled, nats_url: str) -> EdgeAccess:
    settings, ledger, logins = parts.settings, parts.ledger, parts.edge_bus.logins
    address = edge_address(nats_url, settings.edge_nats_url, users_of_their_own=logins is not None)
    if address is None:
        log.warning("edges.refused", problem=NO_EDGE_ADDRESS)
    password_of = logins.password_of if logins is not None else None
    return EdgeAccess(nats_url=address, lease=ledger.terms.lease, password_of=password_of)


async def _unless_stopped(what: Awaitable[None], stop: asyncio.Event) -> None:
    doing, stopping = asyncio.ensure_future(what), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            await doing
    finally:
        stopping.cancel()
        doing.cancel()


async def run_worker(
    settings: Settings,
    database_url: str,
    nats_url: str,
    stop: asyncio.Event,
    *,
    on_status: Callable[[RelayStatus, Projector], Any] | None = None,
) -> None:
    """Project the log and relay it to NATS, until `stop` is set."""
    await asyncio.to_thread(check_migrated, database_url)
    await asyncio.to_thread(check_master_key, database_url, settings.master_key)
    mapper = event_mapper(settings)
    reading = PostgresLog(database_url, wakeups=False)
    identity = await reading.identity()
    projector = Projector(database_url, every_projection(), event_mapper(settings))
    status = RelayStatus()
    if on_status is not None:
        on_status(status, projector)
    async with WakeupListener(database_url) as wakeups:
        relaying = run_relay(
            reading,
            mapper.decode,
            nats_url,
            log_id=identity.log_id,
            partition=reading.partition,
            wakeups=wakeups,
            stop=stop,
            status=status,
            limits=StreamLimits(
                max_bytes=settings.nats_max_bytes,
                max_age_seconds=settings.nats_max_age_hours * 3_600.0,
                replicas=settings.nats_replicas,
            ),
            republish_after=settings.nats_republish_after,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_projector(projector, stop))
            tasks.create_task(relaying)
    with contextlib.suppress(Exception):
        await reading.close()


__all__ = [
    "Assembled",
    "assemble",
    "bootstrap_root_key",
    "check_migrated",
    "event_mapper",
    "migrate",
    "run_server",
    "run_worker",
    "tune_interpreter",
]
