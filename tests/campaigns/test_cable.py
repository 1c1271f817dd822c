"""Two ledgers on a real PostgreSQL whose cable breaks at random, before or after the server has answered."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import get_args

import psycopg
import pytest

from domain import commands as c
from domain.keys import Key
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from infra.clock import SystemClock
from infra.owners import Owner
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper
from infra.postgres.state_rows import PostgresStateRows
from keyledger_edge import fingerprint
from keyledger_language.events import LedgerEvent
from services.ledger import command_queue
from services.ledger.errors import CannotAnswerError
from services.ledger.lease_terms import LeaseTerms
from services.ledger.ledger import Ledger
from services.ledger.ports import Ports, Terms
from tests.campaigns.checker import check, record
from tests.contract.cable import Cable
from tests.ledger.test_random_faults import Client
from tests.ledger.world import deep_state

_CLIENTS = 16


class Process:
    """One ledger, with a cable of its own to PostgreSQL."""

    def __init__(self, database: str) -> None:
        self.database = database
        self.cable = Cable(database)
        self.asking = c.Asking(actor="system")
        self._start_anew()

    def _start_anew(self) -> None:
        self.log = PostgresLog(self.cable.conninfo, readers=2, wakeups=False)
        self.rows = PostgresStateRows(self.cable.conninfo)
        mapper = EventMapper(get_args(LedgerEvent))
        name = os.urandom(4).hex()

        async def succeeds_nobody() -> bool:
            last: Owner | None = await self.log.owner()
            return last is None or last.address == "" or last.incarnation == self.ledger.tenure

        self.ledger = Ledger(
            Ports(
                log=self.log,
                rows=self.rows,
                mapper=mapper,
                clock=SystemClock(),
                fence_clock=SystemClock(),
                learn_data_keys=mapper.data_keys.learn,
                announce=lambda tenure: self.log.announce(f"http://{name}", tenure),
                publish_change=lambda _: None,
                projected=_projected,
                withdraw=lambda: self.log.announce("", self.ledger.tenure),
                succeeds_nobody=succeeds_nobody,
                end_silent_owner=lambda: self.log.end_silent_owner(2.0),
            ),
            Terms(lease=LeaseTerms(lease_ms=400, ping_ms=100)),
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.ledger.run(self.stop))

    async def execute(self, command: c.Command) -> object:
        return await self.ledger.execute(command, self.asking)

    async def stopped(self) -> None:
        self.stop.set()
        await self.task
        await self.rows.close()
        await self.log.close()

    async def killed(self) -> None:
        """Gone without a word, and back as another."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.cable.pull()
        await asyncio.gather(self.rows.close(), self.log.close(), return_exceptions=True)
        self.cable.plug()
        self._start_anew()


async def _projected(position: int, seconds: float) -> bool:
    return True


async def ask(processes: list[Process], command: c.Command) -> object:
    """Until one of them answers."""
    async with asyncio.timeout(30):
        while True:
            for process in processes:
                try:
                    return (await process.execute(command)).result  # type: ignore[attr-defined]  # Done
                except CannotAnswerError:
                    await asyncio.sleep(0.02)


async def make_keys(processes: list[Process], wallets: list[int]) -> list[Key]:
    keyspace = await ask(processes, c.DefineKeyspace(name="gateway", preset="default"))
    assert isinstance(keyspace, Keyspace)
    keys: list[Key] = []
    for micros in wallets:
        organization = await ask(processes, c.OpenOrganization(name="Acme"))
        assert isinstance(organization, Organization)
        deposit = c.DepositCredits(organization_id=organization.id, amount_micros=micros, reference="first")
        await ask(processes, deposit)
        create = c.CreateKey(
            keyspace_id=keyspace.id,
            organization_id=organization.id,
            name=organization.id,
            fingerprint=fingerprint(keyspace.shape.generate()),
            hint="kl_live_...",
        )
        key = await ask(processes, create)
        assert isinstance(key, Key)
        keys.append(key)
    return keys


async def strike(what: str, process: Process, chance: random.Random) -> None:
    if what in {"lose_question", "lose_answer"}:
        process.cable.fault = what  # type: ignore[assignment]  # one of its faults
    elif what == "pull":
        process.cable.pull()
        await asyncio.sleep(chance.random() * 0.8)
        process.cable.plug()
    elif what == "terminate":
        with psycopg.connect(process.database, autocommit=True) as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE '%writer'"
            )
    elif what == "kill":
        await process.killed()
    elif what == "save" and process.ledger.owner:
        await asyncio.gather(process.ledger._saved.save(), return_exceptions=True)
    elif what == "forget":
        process.ledger._memory.recent.clear()


async def break_and_check(database: str, strikes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_queue, "_WORTH_HALVING", 4)
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    processes = [Process(database) for _ in range(2)]
    keys = await make_keys(processes, [300, 10**9])
    client = Client(processes, keys, random.Random(seed + 1))  # type: ignore[arg-type]  # they execute commands
    asking = [asyncio.create_task(client.run(n)) for n in range(_CLIENTS)]
    struck: Counter[str] = Counter()
    ways = ["lose_question", "lose_answer", "pull", "terminate", "kill", "save", "forget"]
    for _ in range(strikes):
        await asyncio.sleep(chance.random() * 0.6)
        what = chance.choice(ways)
        struck[what] += 1
        await strike(what, chance.choice(processes), chance)
    await asyncio.sleep(2)
    client.stop = True
    await asyncio.wait_for(asyncio.gather(*asking), 60)
    for process in processes:
        await process.stopped()

    log = PostgresLog(database, wakeups=False)
    mapper = EventMapper(get_args(LedgerEvent))
    mapper.data_keys.learn(await log.data_keys())
    events = [(one.position, mapper.decode(one)) for one in await log.read(0, 10**6)]
    await log.close()
    recorded = [one for n, event in events if (one := record(n, event)) is not None]
    findings = check(client.operations, recorded, len(events))
    print(findings, dict(struck))
    assert [n for n, _ in events] == list(range(1, len(events) + 1))
    assert findings.lines == []
    assert findings.acknowledged > 20 * strikes
    await rows_tell_the_log(database)


async def rows_tell_the_log(database: str) -> None:
    """What a start would load is what a replay of the whole log makes."""
    loaded, replayed = Process(database), Process(database)
    for process in (loaded, replayed):
        process.task.cancel()
        await asyncio.gather(process.task, return_exceptions=True)
        process.ledger._saved.forget()
    await loaded.ledger._ownership.follow()
    await replayed.ledger._saved.follower.catch_up()
    assert deep_state(loaded.ledger) == deep_state(replayed.ledger)
    for process in (loaded, replayed):
        await process.rows.close()
        await process.log.close()
        process.cable.close()


@pytest.mark.campaign
@pytest.mark.timeout(900)
async def test_a_cable_that_breaks_without_end(ledger_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await break_and_check(ledger_database, int(os.environ.get("KEYLEDGER_KILLS", "150")), monkeypatch)


@pytest.mark.slow
async def test_a_cable_that_breaks_now_and_then(
    ledger_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await break_and_check(ledger_database, 12, monkeypatch)
