"""The real edge and ledger classes on many seeds, and the proof that the checker would notice."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import first_caught
from tests.simulation.mutants import CAUGHT_BY, MUTANTS
from tests.simulation.scenario import run_seed

pytestmark = pytest.mark.simulation


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_accepted_after_its_fence(seed: int) -> None:
    outcome = run_seed(seed)

    assert outcome.operations > 1_000
    assert outcome.worst_staleness_ms <= outcome.bound_ms


def test_a_seed_is_a_history() -> None:
    assert run_seed(7) == run_seed(7)


@pytest.mark.parametrize("name", MUTANTS)
def test_without_one_rule_the_checker_notices(name: str) -> None:
    known = CAUGHT_BY.get(name, 0)

    assert first_caught(name, [known, *range(300)]) is not None
