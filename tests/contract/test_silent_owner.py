"""An owner that is frozen holds the partition with a living connection: whoever stands by ends it."""

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime

import psycopg
import pytest

from domain.ports import Group, NewEvent, NotOwnerError, OutcomeUnknownError
from infra.postgres import log
from infra.postgres.log import PostgresLog
from keyledger_language.history import HistoryPoint

_SILENT_SECONDS = 3.0
"""Longer than a machine stands still."""


@pytest.fixture
async def sessions(ledger_database: str) -> AsyncIterator[tuple[PostgresLog, PostgresLog]]:
    owner, other = (PostgresLog(ledger_database, readers=1, wakeups=False) for _ in range(2))
    assert await owner.acquire()
    yield owner, other
    await owner.close()
    await other.close()


async def test_a_silent_owner_loses_the_partition(sessions: tuple[PostgresLog, PostgresLog]) -> None:
    owner, other = sessions
    assert not await other.acquire()
    await asyncio.sleep(0.3)

    await other.end_silent_owner(0.2)

    await taken(other)
    assert not await owner.confirm()


async def test_an_owner_that_confirms_keeps_the_partition(
    sessions: tuple[PostgresLog, PostgresLog], ledger_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_HEARD_SECONDS", 0.05)
    owner, other = sessions
    began = time.monotonic()
    while time.monotonic() - began < 1.2 * _SILENT_SECONDS:
        silent_since = spoke_last(owner, ledger_database)
        await asyncio.sleep(0.1)
        assert await owner.confirm()

        # Nothing else of this test is said on that session; however long anybody stands still.
        async with asyncio.timeout(30):
            while spoke_last(owner, ledger_database) == silent_since:
                await asyncio.sleep(0.01)
        await other.end_silent_owner(_SILENT_SECONDS)

    assert not await other.acquire()
    assert await owner.confirm()


async def test_an_owner_that_was_ended_cannot_append(sessions: tuple[PostgresLog, PostgresLog]) -> None:
    owner, other = sessions
    await asyncio.sleep(0.2)
    await other.end_silent_owner(0.1)
    await taken(other)

    with pytest.raises((NotOwnerError, OutcomeUnknownError)):
        await owner.append(
            Group(b"g" * 16, HistoryPoint(0, 0, 1), [NewEvent("key_1", 1, "sample.renamed", b"x")])
        )

    assert await other.head() == 0


def spoke_last(owner: PostgresLog, database: str) -> datetime:
    assert owner._writer is not None
    asked = "SELECT state_change FROM pg_stat_activity WHERE pid = %s", (owner._writer.info.backend_pid,)
    with psycopg.connect(database) as connection:
        found: tuple[datetime] | None = connection.execute(*asked).fetchone()
    assert found is not None, "the owner's session was ended"
    return found[0]


async def taken(log: PostgresLog) -> None:
    async with asyncio.timeout(5):
        while not await log.acquire():
            await asyncio.sleep(0.01)
