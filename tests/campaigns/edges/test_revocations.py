"""Keys die while everything is cut, stopped and killed: no accept after the fence, and a bound."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from keyledger_edge import boottime_ns
from tests.campaigns.edges.book import Book, Figure
from tests.campaigns.edges.checker import Death, Findings, check
from tests.campaigns.edges.victims import Registrar, Victim, take_away
from tests.campaigns.edges.world import Chaos, EdgeProgram, World, world
from tests.campaigns.load import Client

LEASE_MS = 1_000
DRIFT = 0.01
BOUND_NS = int(LEASE_MS * 1_000_000 / (1 - DRIFT))
_BEFORE, _BEHIND = 120, 120
"""So many slots on either side of the next victim are verified."""
_HANDS = 16
_TELL_SECONDS = 15.0


class Campaign:
    """Victims die one after the other while the edges go round those that are next and those that were."""

    def __init__(self, here: World, client: Client, chance: random.Random, victims: list[Victim]) -> None:
        self._here = here
        self._client = client
        self._chance = chance
        self.victims = victims
        self._next = 0
        self._told = time.monotonic()
        self._slots = victims[-1].range.stop
        self.utc_offsets: list[int] = [_utc_offset()]
        self.done = 0
        """Verifications so far."""

    async def run(self, verifications: int) -> None:
        """Take all victims away, spread over so many verifications."""
        hands = [asyncio.create_task(self._take_one_after_the_other(verifications)) for _ in range(_HANDS)]
        try:
            while not all(hand.done() for hand in hands):
                await self._look(verifications)
            # What is dead goes on being verified for longer than any lease.
            while self.done < verifications:
                await self._look(verifications)
            await asyncio.sleep(2.0)
        finally:
            for hand in hands:
                hand.cancel()
            for done in await asyncio.gather(*hands, return_exceptions=True):
                if isinstance(done, Exception):
                    raise done
        self.utc_offsets.append(_utc_offset())

    async def _look(self, verifications: int) -> None:
        await asyncio.sleep(0.05)
        self._move_window()
        self.done = figures(self._here)[Figure.VERIFICATIONS]
        if time.monotonic() > self._told + _TELL_SECONDS:
            self._told = time.monotonic()
            print(f"{self.done:,} of {verifications:,} verifications, {self._next:,} victims", flush=True)

    def _move_window(self) -> None:
        middle = self.victims[min(self._next, len(self.victims) - 1)].first_slot
        self._here.control.window = (max(0, middle - _BEHIND), min(self._slots, middle + _BEFORE))

    async def _take_one_after_the_other(self, verifications: int) -> None:
        while self._next < len(self.victims):
            # As far through the victims as through the verifications.
            if self._next > len(self.victims) * self.done / verifications:
                await asyncio.sleep(0.02 * self._chance.random())
                continue
            victim = self.victims[self._next]
            self._next += 1
            await take_away(self._client, victim, wait=self._chance.random() < 0.7)

    async def deaths(self) -> list[Death]:
        """Every death with its receipt."""
        receipts, decided = await self._here.receipts()
        offset = max(self.utc_offsets)
        found: dict[int, tuple[int, int, bool]] = {}
        for receipt in receipts:
            for position in receipt.fenced:
                assert position not in found, f"two receipts for {position}"
                resumed = receipt.committed_at == decided[position]
                found[position] = receipt.committed_at, receipt.fenced_at, resumed
        deaths = []
        for victim in self.victims:
            assert victim.position is not None, victim.problems
            assert victim.position in found, f"{victim.kind} at {victim.position} has no receipt"
            committed, fenced, resumed = found[victim.position]
            deaths.append(
                Death(
                    kind=victim.kind,
                    slots=victim.range,
                    answered=victim.answered,
                    committed=committed * 1_000 + offset,
                    fenced=fenced * 1_000 + offset,
                    resumed=resumed,
                )
            )
        return deaths


def _utc_offset() -> int:
    """What to add to the time of day to get CLOCK_BOOTTIME; the best of a few looks."""
    return max(boottime_ns() - time.time_ns() for _ in range(100))


def figures(here: World) -> Counter[Figure]:
    """All lives of all edges together."""
    total: Counter[Figure] = Counter()
    slowest = 0
    for path in here.books:
        if path.stat().st_size:
            book = Book.read(path)
            for figure in Figure:
                total[figure] += book.figures[figure]
            slowest = max(slowest, book.figures[Figure.SLOWEST_NS])
            book.close()
    total[Figure.SLOWEST_NS] = slowest
    return total


async def revoke_everything(
    *,
    edges: int,
    victims: int,
    verifications: int,
    chaos: bool = True,
    calm_seconds: float = 0.6,
    mutant: str = "",
    seed: int | None = None,
) -> Findings:
    """One campaign; what the checker found."""
    seed = seed or int(os.environ.get("KEYLEDGER_TEST_SEED", random.randrange(1 << 32)))
    print(f"\nKEYLEDGER_TEST_SEED={seed}")
    chance = random.Random(seed)
    settings = {"KEYLEDGER_LEASE_MS": str(LEASE_MS), "KEYLEDGER_DRIFT": str(DRIFT)}
    async with world(edges, settings=settings) as here, Client(here.cluster, random.Random(seed)) as client:
        registrar = Registrar(client, chance)
        await registrar.prepare()
        made = await registrar.victims(victims)
        campaign = Campaign(here, client, chance, made)
        campaign._move_window()
        here.start_edges(
            edges, [slot for victim in made for slot in victim.slots], registrar.keyspace_id, mutant
        )
        await _until_ready(here)
        unrest = Chaos(here, chance)
        striking = asyncio.create_task(unrest.run(calm_seconds)) if chaos else None
        began = time.monotonic()
        try:
            await campaign.run(verifications)
        finally:
            if striking is not None:
                striking.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await striking
        seconds = time.monotonic() - began
        # Nobody was told anything or started again: what was cut off comes back by itself.
        print(f"all edges have a lease {await _until_ready(here):.1f} s after the last fault")
        statuses = here.stop_edges()
        assert statuses == [0] * edges, [
            (here.folder / f"edge-{n}.log").read_text()[-2_000:] for n in range(edges)
        ]
        findings = judge(here, await campaign.deaths(), campaign.utc_offsets)
        _tell(here, campaign, findings, unrest, seconds)
        assert [line for victim in made for line in victim.problems] == []
        return findings


async def _until_ready(here: World) -> float:
    """Wait until every edge has a lease; how long that took."""
    began = time.monotonic()
    while not all(map(_is_ready, here.edges)):
        without = [edge.number for edge in here.edges if not _is_ready(edge)]
        assert time.monotonic() < began + 60, f"no lease for {without}"
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def _is_ready(edge: EdgeProgram) -> bool:
    path = edge.books[-1]
    if not path.exists() or not path.stat().st_size:
        return False
    book = Book.read(path)
    try:
        return bool(book.figures[Figure.READY])
    finally:
        book.close()


def judge(here: World, deaths: Sequence[Death], utc_offsets: Sequence[int]) -> Findings:
    """All books against all deaths."""
    books = [Book.read(path) for path in here.books if path.stat().st_size]
    # Receipts are in whole microseconds, and the time of day is steered.
    clock_error = 5_000 + max(utc_offsets) - min(utc_offsets)
    assert clock_error < 20_000_000, "the time of day was set meanwhile"
    findings = check(
        deaths,
        [(book.path.name, book.arrivals) for book in books],
        bound_ns=BOUND_NS,
        clock_error_ns=clock_error,
    )
    for book in books:
        book.close()
    return findings


def _tell(here: World, campaign: Campaign, findings: Findings, unrest: Chaos, seconds: float) -> None:
    total = figures(here)
    waited = sorted(victim.waited_ms for victim in campaign.victims)
    print(
        f"{total[Figure.VERIFICATIONS]:,} verifications ({total[Figure.FROM_MEMORY]:,} from memory, "
        f"{total[Figure.ACCEPTS]:,} accepted, {total[Figure.UNREACHABLE]:,} ledger_unreachable) by "
        f"{len(here.edges)} edges in {len(here.books)} lives, {seconds:.0f} s"
    )
    print(f"slowest answer that had to be asked for {total[Figure.SLOWEST_NS] / 1e9:.1f} s")
    print(f"{len(waited):,} fences {dict(Counter(victim.kind for victim in campaign.victims))}")
    print(
        f"fence p50 {waited[len(waited) // 2]:.1f} ms, p99 {waited[len(waited) * 99 // 100]:.1f} ms, "
        f"worst {waited[-1]:.1f} ms (longest stop of a ledger {unrest.longest_ledger_stop:.1f} s)"
    )
    print(f"{sum(unrest.struck.values())} faults {dict(unrest.struck)}")
    print(f"{findings} (bound {BOUND_NS / 1e6:.1f} ms)")
    for line in findings.lines:
        print(line)


@pytest.mark.campaign
@pytest.mark.timeout(1_800)
async def test_ten_edges_and_ten_million_verifications() -> None:
    verifications = int(os.environ.get("KEYLEDGER_VERIFICATIONS", "10000000"))
    found = await revoke_everything(edges=10, victims=3_000, verifications=verifications, calm_seconds=1.2)

    assert (found.after_the_fence, found.too_late, found.lines) == (0, 0, [])


@pytest.mark.slow
async def test_a_few_edges_in_bad_weather() -> None:
    found = await revoke_everything(edges=4, victims=150, verifications=300_000)

    assert (found.after_the_fence, found.too_late, found.lines) == (0, 0, [])


@pytest.mark.campaign
@pytest.mark.parametrize("mutant", ["acknowledge without applying", "a lease that never ends"])
async def test_a_broken_edge_is_noticed(mutant: str) -> None:
    found = await revoke_everything(edges=3, victims=100, verifications=200_000, mutant=mutant)

    assert found.after_the_fence > 0
