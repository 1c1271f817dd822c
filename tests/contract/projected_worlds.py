"""A log in PostgreSQL that histories are written to, and projections that follow it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import get_args

import psycopg

from domain.claims import request_claim
from domain.ports import Group, NewClaim
from domain.projecting import EventReader, Projection, Queries
from infra.embedded import EmbeddedPostgres
from infra.memory.clock import FixedClock
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from infra.postgres.migrate import migrate
from infra.postgres.projection_pipeline import BATCH, MOST
from infra.postgres.projection_queries import PostgresEventReader, PostgresQueries
from infra.postgres.projector import Projector
from infra.postgres.sessions import Sessions
from keyledger_language.events import Event, LedgerEvent, stream_of
from projections.every import every_projection
from tests.histories import NOON, History
from tests.servers import fresh_database


def mapper() -> EventMapper[Event]:
    return EventMapper(get_args(LedgerEvent))


class Written:
    """A log that events are appended to, as the ledger would."""

    def __init__(self, database: str, log: PostgresLog) -> None:
        self.database = database
        self.log = log
        self.mapper = mapper()
        self.head = 0
        self._versions: Counter[str] = Counter()

    async def write(self, events: Sequence[Event]) -> None:
        """Append in groups, with claims for request ids."""
        for start in range(0, len(events), 1_000):
            await self._write_group(events[start : start + 1_000])

    async def catch_up(self) -> None:
        """Learn what another session has written."""
        self.mapper.data_keys.learn(await self.log.data_keys())
        for recorded in await self.log.read(0, 1_000_000):
            self._versions[recorded.stream] = recorded.version
            self.head = recorded.position

    async def _write_group(self, events: Sequence[Event]) -> None:
        new, claims = [], []
        for index, event in enumerate(events):
            stream = stream_of(event)
            self._versions[stream] += 1
            new.append(self.mapper.new_event(stream, self._versions[stream], event))
            request_id = getattr(event, "request_id", None)
            if request_id is not None:
                claims.append(NewClaim(request_claim(str(event.organization_id), request_id), index))
        group = Group(os.urandom(16), await self.log.end(), new, claims, self.mapper.take_new_data_keys())
        self.head = await self.log.append(group)


class Reading:
    """What the API has to ask with."""

    def __init__(self, sessions: Sessions) -> None:
        clock = FixedClock(NOON)
        self.queries: Queries = PostgresQueries(sessions)
        self.events: EventReader = PostgresEventReader(sessions, mapper(), clock)


@asynccontextmanager
async def written_log(database: str) -> AsyncGenerator[Written]:
    migrate(database)
    log = PostgresLog(database)
    assert await log.acquire()
    try:
        yield Written(database, log)
    finally:
        await log.close()


@asynccontextmanager
async def reading(database: str) -> AsyncGenerator[Reading]:
    sessions = Sessions(database, "test reader", most=2)
    try:
        yield Reading(sessions)
    finally:
        await sessions.close()


@contextmanager
def projecting(
    database: str, *, batch: int | None = None, projections: Sequence[Projection] | None = None
) -> Generator[Projector]:
    """A projector that follows the log, on a thread of its own; `batch`: never more events at once."""
    projector = Projector(
        database, projections or every_projection(), mapper(), batch=batch or BATCH, most=batch or MOST
    )
    thread = threading.Thread(target=projector.run)
    thread.start()
    try:
        yield projector
    finally:
        projector.stop()
        thread.join()


async def reached(projector: Projector, position: int) -> None:
    async with asyncio.timeout(30):
        while projector.position < position:
            await asyncio.sleep(0.002)


def table_rows(database: str, table: str, schema: str = "projections") -> list[tuple[object, ...]]:
    with psycopg.connect(database) as connection:
        select = f"SELECT t::text FROM {schema}.{table} t"
        return sorted(connection.execute(select.encode()).fetchall())


@contextmanager
def projected_history(server: EmbeddedPostgres, history: History) -> Generator[str]:
    """A database with all of a history in its log and in its projections, to be read only."""

    async def write_and_project(database: str) -> None:
        async with written_log(database) as log:
            await log.write(history.events)
            with projecting(database) as projector:
                await reached(projector, log.head)

    with fresh_database(server) as database:
        asyncio.run(write_and_project(database))
        yield database
