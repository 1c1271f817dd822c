"""Everything at once: two ledgers, a primary and its standby, two workers, three edges, and 100 faults."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from tests.campaigns.checker import Operation
from tests.campaigns.failovers.checker import judge, unlisted
from tests.campaigns.failovers.faults import Faults
from tests.campaigns.failovers.fleet import Fleet, fleet
from tests.campaigns.failovers.load import AtEdges, Day, Lookers
from tests.campaigns.load import Client, number_of
from tests.contract.stream_worlds import read_all

_CLIENTS = 24
_CALLERS = 12
_BETWEEN = 40
"""So many operations are acknowledged between two faults, by ledgers and by edges each."""
_PROGRESS_SECONDS = 60.0
_FEW = (
    "kill_ledger", "fail_over_after_a_break_off", "kill_edge", "split_brain", "lossy_fail_over",
    "restore_a_copy",
)  # fmt: skip
_LISTED = 1_000
"""So many lost events `new-epoch` lists at most."""


class Campaign:
    """The fleet, its clients, what strikes it, and what is compared in the end."""

    def __init__(self, running: Fleet, client: Client, seed: int) -> None:
        self.running = running
        self.client = client
        self.day = Day(client, random.Random(seed + 1))
        self.faults = Faults(running, self.day, random.Random(seed + 2))
        self.silences: list[float] = []
        self._seed = seed

    async def run(self, faults: int | Sequence[str]) -> None:
        """So many faults, or these, each after the last was survived."""
        began = time.monotonic()
        await self.day.prepare()
        self.running.start_edges(self.day.keyspace_id)
        self.at_edges = AtEdges(self.day, self.running, random.Random(self._seed + 3))
        self.lookers = Lookers(self.day, self.running, random.Random(self._seed + 4))
        working = [
            asyncio.create_task(self.day.run(_CLIENTS)),
            asyncio.create_task(self.at_edges.run(_CALLERS)),
            asyncio.create_task(self.lookers.run()),
        ]
        try:
            await self._survived(working)
            print(f"under way after {time.monotonic() - began:.0f} s", flush=True)
            for number, name in enumerate([None] * faults if isinstance(faults, int) else faults):
                await (self.faults.strike() if name is None else self.faults.named(name))
                self.silences.append(await self._survived(working))
                if number % 10 == 9:
                    print(f"{number + 1} faults, {self.day.acknowledged:,} done", flush=True)
            self.day.stopping = self.at_edges.stopping = self.lookers.stopping = True
            await asyncio.wait_for(asyncio.gather(*working), 120)
        finally:
            for task in working:
                task.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _survived(self, working: list[asyncio.Task[None]]) -> float:
        """Wait until so much more was told by both kinds; how long it took."""
        began, day, edges = time.monotonic(), self.day.acknowledged, self.at_edges.told
        while self.day.acknowledged < day + _BETWEEN or self.at_edges.told < edges + _BETWEEN:
            for task in working:
                if task.done():
                    task.result()
            assert time.monotonic() < began + _PROGRESS_SECONDS, (
                f"nothing goes on any more: {self.day.acknowledged - day} done and"
                f" {self.at_edges.told - edges} told since, {self.running.last_words()}"
            )
            await asyncio.sleep(0.01)
        return time.monotonic() - began

    async def compare(self) -> None:
        """Answers, log, wallets, projections and stream must tell the same."""
        recorded, head = await self.running.recorded()
        operations = [*self.day.operations, *self.at_edges.operations, *self.lookers.operations]
        judgement = judge(operations, recorded, head, self.faults.losses)
        print(judgement)
        print(f"edges told {dict(self.at_edges.codes)}, ledgers {dict(self.lookers.codes)}")
        assert judgement.clean, str(judgement)
        assert self.lookers.odd == []
        self._compare_what_was_told(operations)
        await self._compare_wallets()
        await self._compare_stream()
        projected = await self.running.projected((await self.running.recorded())[1])
        assert projected.clean, projected.tables
        reconciled = await self.running.command("reconcile")
        assert reconciled.returncode == 0, reconciled.stdout + reconciled.stderr
        checked = await self.running.command("rebuild", "--check")
        assert checked.returncode == 0, checked.stdout + checked.stderr

    async def _compare_wallets(self) -> None:
        recorded, _ = await self.running.recorded()
        last = {one.organization_id: one for one in recorded if one.kind not in {"create", "revoke"}}
        for organization_id, one in last.items():
            wallet = await self.client.must("GET", f"/v1/organizations/{organization_id}/wallet")
            told = wallet["balance_micros"], wallet["reserved_micros"]
            assert told == (one.balance, one.reserved), f"{organization_id} at {one.position}"

    def _compare_what_was_told(self, operations: list[Operation]) -> None:
        """`new-epoch` lists what lies beyond the restored head, as far as NATS had heard of it."""
        for told in self.faults.told:
            printed, head = told.printed, told.loss.head
            assert (number_of(printed["head"]) or 0) >= head, told
            published = printed["published"]
            if published is None or told.heard is None:
                continue
            assert told.heard.epoch == published["epoch"] == printed["epoch_before"], told
            end = number_of(published["position"]) or 0
            listed = [number_of(one["position"]) or 0 for one in published["lost"]]
            assert end >= told.heard.number, told
            # Where it had heard of nothing that is lost, the relay went on with the new history.
            assert published["lost_count"] == (end - head if listed else 0), told
            assert listed == list(range(head + 1, end + 1))[: len(listed)], told
            assert len(listed) == min(published["lost_count"], _LISTED), told
            if len(listed) == published["lost_count"]:
                heard = end if listed else told.heard.number
                assert unlisted(operations, told.loss, heard, set(listed)) == [], told

    async def _compare_stream(self) -> None:
        """Each position once and in order within its epoch, and the last epoch up to the head."""
        _, head = await self.running.recorded()
        epoch = self.faults.told[-1].printed["epoch"] if self.faults.told else 1
        deadline = time.monotonic() + _PROGRESS_SECONDS
        while (place := await self.running.heard()) is None or place[1::2] < (epoch, head):
            assert time.monotonic() < deadline, f"NATS has {place}: {self.running.last_words()}"
            await asyncio.sleep(0.1)
        stored = await read_all(self.running.servers.nats.url)
        places = [tuple(map(int, one.message_id.split(".")[:3])) for one in stored if one.body]
        assert (places[0][2], places[-1][0]) == (1, epoch)
        for (one, _, number), (later, _, following) in pairwise(places):
            told = f"{later}.{following} follows {one}.{number}"
            assert later >= one, told
            assert following == (number + 1 if later == one else 1), told
        print(f"NATS has each of {len(places):,} positions up to epoch {epoch} once and in order")


async def run(template: Path, faults: int | Sequence[str], *, pace: float = 1.0) -> None:
    seed = int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nKEYLEDGER_TEST_SEED={seed}", flush=True)
    started = time.monotonic()
    async with fleet(template) as running, Client(running, random.Random(seed)) as client:
        campaign = Campaign(running, client, seed)
        campaign.faults.pace = pace
        campaign.faults.choose(os.environ.get("KEYLEDGER_FAULTS", ""))
        with _told_in_the_end(campaign):
            await campaign.run(faults)
            await campaign.compare()
        silences = sorted(campaign.silences)
        print(
            f"{len(silences)} faults in {time.monotonic() - started:.0f} s; then {_BETWEEN} answers took"
            f" {silences[len(silences) // 2]:.1f} s, at most {silences[-1]:.1f} s"
        )


@contextmanager
def _told_in_the_end(campaign: Campaign) -> Generator[None]:
    """What struck, whatever came of it; after a failure also when, and what the programs wrote."""
    try:
        yield
    except BaseException:
        print("\n".join(campaign.faults.diary))
        if (kept := os.environ.get("KEYLEDGER_CAMPAIGN_LOGS")) is not None:
            Path(kept).mkdir(parents=True, exist_ok=True)
            for output in campaign.running.folder.glob("**/*.log"):
                shutil.copy(output, kept)
        raise
    finally:
        print(f"struck {dict(campaign.faults.struck)}", flush=True)
        for told in campaign.faults.told:
            published = told.printed["published"] or {}
            print(
                f"new-epoch ({told.how}): head {told.loss.head}, printed {told.printed['head']},"
                f" NATS up to {published.get('position')}, {published.get('lost_count')} lost listed,"
                f" edges beyond: {len(told.printed['edges_beyond'] or ())}"
            )


@pytest.mark.campaign
@pytest.mark.timeout(3_600)
async def test_100_faults_of_everything(replica_template: Path) -> None:
    faults = int(os.environ.get("KEYLEDGER_KILLS", "100"))
    await run(replica_template, faults)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_few_faults_of_everything(replica_template: Path) -> None:
    await run(replica_template, _FEW, pace=0.3)
