"""How far the projections are, for requests that wait to read what they wrote."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final, Self

import psycopg
from psycopg import AsyncConnection

from infra.position_watch import PositionWatch
from infra.postgres.notices import hear_for, listen
from infra.postgres.projection_schema import LIVE, projected_channel
from infra.postgres.tracking import TRACKING_TABLE, sql_tracked
from keyledger_reading.connections import ledger_conninfo

_POLL_SECONDS: Final = 0.05
_RECONNECT_SECONDS: Final = 0.1


class Projected:
    """Follows the projector's checkpoint. Wakes within milliseconds, and after a poll at worst.

    Use as `async with Projected(conninfo) as projected: await projected.wait_for(position, 2.0)`.
    """

    def __init__(self, conninfo: str, partition: int = 0) -> None:
        self._conninfo = conninfo
        self._partition = partition
        self._watch = PositionWatch(lambda: self.position)
        self._listening: asyncio.Task[None] | None = None
        self._exists = False
        self.position = 0
        """The checkpoint as it was received last."""

    async def __aenter__(self) -> Self:
        self._listening = asyncio.create_task(self._listen(), name="projected")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop listening; callers that still wait do so until their timeout."""
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._listening

    async def wait_for(self, position: int, timeout: float = 2.0) -> bool:
        """Whether the projections show this position; waits for it until the timeout."""
        return await self._watch.wait_for(position, timeout)

    def _hear(self, position: int) -> None:
        # It may go back, too: a crash of the server loses the projector's last commits.
        self.position = position
        self._watch.moved()

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(psycopg.Error, OSError):
                await self._listen_on_a_connection()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _listen_on_a_connection(self) -> None:
        conninfo = ledger_conninfo(self._conninfo, f"keyledger p{self._partition} projected")
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await listen(connection, projected_channel(self._partition), self._hear)
            while True:
                self._hear(await self._poll(connection))
                await hear_for(connection, self._hear, _POLL_SECONDS)

    async def _poll(self, connection: AsyncConnection[Any]) -> int:
        # Checked first: a missing table would be an error in PostgreSQL's log at every poll.
        if not self._exists:
            exists = f"SELECT to_regclass('{LIVE}.{TRACKING_TABLE}') IS NOT NULL"
            self._exists = bool(await self._value(connection, exists))
        if not self._exists:
            return 0  # the projector has not created it yet
        try:
            position = await self._value(connection, f"SELECT {sql_tracked(LIVE, self._partition)}")
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            self._exists = False
            return 0
        return int(position or 0)

    @staticmethod
    async def _value(connection: AsyncConnection[Any], select: str) -> Any:  # whatever is selected
        row = await (await connection.execute(select.encode())).fetchone()
        return row[0] if row else None
