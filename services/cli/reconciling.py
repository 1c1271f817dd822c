"""Fetches what a reconciliation compares: the log, the saved state, the usage counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from domain.ports import LogUnavailableError
from domain.state import State
from infra.postgres.data_keys import DataKeys
from infra.postgres.log import PostgresLog
from infra.postgres.projection_queries import PostgresQueries
from infra.postgres.sessions import Sessions
from infra.postgres.state_rows import PostgresStateRows
from keyledger_language.events import Event
from services.bootstrap import event_mapper
from services.ledger import reconcile as sums
from services.ledger.narrowings import Narrowings
from services.ledger.saving import StateKeeper
from services.settings import Settings

_TRIES: Final = 5


async def reconcile(
    settings: Settings, database_url: str, tell: Callable[[int], None]
) -> sums.Reconciliation:
    """Sum up the whole log, and compare every balance and counter with the sums.

    `tell` is called with the position up to which the log is summed up.
    """
    log = PostgresLog(database_url, wakeups=False)
    rows = PostgresStateRows(database_url)
    sessions = Sessions(database_url, "keyledger reconcile", most=1)
    mapper = event_mapper(settings)

    async def read(after: int, limit: int) -> Sequence[tuple[int, Event]]:
        tell(after)
        return [(one.position, mapper.decode(one)) for one in await log.read(after, limit)]

    try:
        saved = await _saved_state(rows, log, mapper.data_keys)
        usage = await _usage(sessions)
        return await sums.reconcile(read, head=await log.head(), usage=usage, saved=saved)
    finally:
        await sessions.close()
        await rows.close()
        await log.close()


async def _usage(sessions: Sessions) -> sums.UsageSums | None:
    try:
        return await sums.usage_sums(PostgresQueries(sessions))
    except LogUnavailableError:
        return None  # nothing is projected yet; if PostgreSQL were down, reading the log would fail


async def _saved_state(rows: PostgresStateRows, log: PostgresLog, data_keys: DataKeys) -> State | None:
    """What the owner would load at a start; None if there is nothing, or if it changes all the time."""

    async def learn_data_keys() -> None:
        data_keys.learn(await log.data_keys())

    for _ in range(_TRIES):
        state = State()
        keeper = StateKeeper(_ReadOnly(rows), state, Narrowings(), data_keys)  # type: ignore[arg-type]  # a reader of rows is all it needs
        await keeper.load(learn_data_keys)
        # The owner may have saved meanwhile, and rows of two moments are not a state.
        if await rows.through() == keeper.checkpoint:
            return state if state.head else None
    return None


class _ReadOnly:
    """Saved rows for a reader that must not clear them."""

    def __init__(self, rows: PostgresStateRows) -> None:
        self.through = rows.through
        self.load = rows.load
        self.find = rows.find

    async def clear(self) -> None:
        """Do nothing."""
