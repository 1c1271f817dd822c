"""Fixtures: a world of ledgers that must end clean, and one ledger that owns its partition."""

from collections.abc import AsyncIterator, Iterator

import pytest
import structlog

from tests.ledger.world import Process, World, world_of_ledgers


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Log lines are not printed: tracebacks with all locals take longer than the tests."""
    with structlog.testing.capture_logs():
        yield


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with world_of_ledgers() as made:
        yield made


@pytest.fixture
async def ledger(world: World) -> Process:
    return await world.process().started()
