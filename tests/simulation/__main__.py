"""`python -m tests.simulation --seeds N`: many seeds, and every mutant."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from tests.simulation.checker import ViolationError
from tests.simulation.mutants import MUTANTS
from tests.simulation.scenario import Outcome, run_seed


@dataclass(slots=True)
class Totals:
    seeds: int = 0
    operations: int = 0
    faults: int = 0
    accepts: int = 0
    stale_accepts: int = 0
    fences: int = 0
    changes: int = 0
    attacks: int = 0
    worst_staleness_share: float = 0.0
    """Of the bound: 1.0 is the latest moment allowed."""
    worst_staleness_ms: float = 0.0
    worst_fence_ms: float = 0.0

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.operations += outcome.operations
        self.faults += outcome.faults
        self.accepts += outcome.accepts
        self.stale_accepts += outcome.stale_accepts
        self.fences += outcome.fences
        self.changes += outcome.changes
        self.attacks += outcome.attacks
        self.worst_staleness_ms = max(self.worst_staleness_ms, outcome.worst_staleness_ms)
        self.worst_staleness_share = max(
            self.worst_staleness_share, outcome.worst_staleness_ms / outcome.bound_ms
        )
        self.worst_fence_ms = max(self.worst_fence_ms, outcome.worst_fence_ms)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument(
        "--first", type=int, default=0, help="the first seed; one seed replays with --seeds 1"
    )
    parser.add_argument("--operations", type=int, default=5_000, help="about so many uses in each seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--mutants", type=int, default=0, metavar="SEEDS", help="also try each mutant on so many"
    )
    arguments = parser.parse_args()
    survivors = hunt_mutants(arguments.mutants) if arguments.mutants else []
    failed = campaign(arguments.first, arguments.seeds, arguments.operations, arguments.processes)
    return 1 if failed or survivors else 0


def campaign(first: int, seeds: int, operations: int, processes: int) -> list[int]:
    """Run the real classes on many seeds; the seeds that failed."""
    totals, failed, began = Totals(), list[int](), time.monotonic()
    for seed, outcome in _outcomes(range(first, first + seeds), operations, processes):
        if isinstance(outcome, Outcome):
            totals.add(outcome)
        else:
            failed.append(seed)
            print(f"seed {seed} FAILED: {outcome}")
        if totals.seeds % 500 == 0 and totals.seeds:
            _print(totals, time.monotonic() - began)
    _print(totals, time.monotonic() - began)
    print(f"{len(failed)} seeds failed{': ' + str(failed[:20]) if failed else ''}")
    return failed


def _outcomes(seeds: Iterable[int], operations: int, processes: int) -> Iterable[tuple[int, Outcome | str]]:
    if processes == 1:
        yield from (_try_seed(seed, operations) for seed in seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        seeds = list(seeds)
        yield from pool.map(_try_seed, seeds, [operations] * len(seeds), chunksize=8)


def _try_seed(seed: int, operations: int) -> tuple[int, Outcome | str]:
    try:
        return seed, run_seed(seed, operations=operations)
    except Exception as failure:
        return seed, f"{type(failure).__name__}: {failure}"


def _print(totals: Totals, seconds: float) -> None:
    print(
        f"{totals.seeds} seeds, {totals.operations:,} operations ({totals.operations / seconds:,.0f}/s), "
        f"{totals.faults:,} faults, {totals.attacks:,} attacks, "
        f"{totals.changes:,} changes, {totals.fences:,} fences (worst "
        f"{totals.worst_fence_ms:.0f} ms), {totals.accepts:,} accepts, {totals.stale_accepts:,} of them "
        f"after the commit and before the fence, the latest {totals.worst_staleness_ms:.0f} ms after it "
        f"({totals.worst_staleness_share:.3f} of the bound)",
        flush=True,
    )


def hunt_mutants(seeds: int) -> list[str]:
    """Try each mutant until it is caught; the names of those that were not."""
    survivors = []
    for name in MUTANTS:
        seed = first_caught(name, range(seeds))
        print(
            f"mutant {name!r}: " + (f"caught by seed {seed}" if seed is not None else "SURVIVED"), flush=True
        )
        if seed is None:
            survivors.append(name)
    return survivors


def first_caught(name: str, seeds: Iterable[int]) -> int | None:
    """The first of the seeds on which the checker notices the mutant."""
    for seed in seeds:
        try:
            run_seed(seed, MUTANTS[name])
        except ViolationError:
            return seed
        except AssertionError:
            continue  # It broke in another way; the checker must see it, too.
    return None


if __name__ == "__main__":
    sys.exit(main())
