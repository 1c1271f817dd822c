"""One ledger in memory for each test."""

from collections.abc import AsyncIterator

import pytest

from tests.api.world import Management, managed


@pytest.fixture
async def api() -> AsyncIterator[Management]:
    async with managed() as world:
        yield world
