"""One history, in a PostgreSQL with its projections: for all tests that only ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from infra.embedded import EmbeddedPostgres
from tests.contract.projected_worlds import Reading, projected_history, reading
from tests.histories import History

SEED = 31


@pytest.fixture(scope="session")
def history() -> History:
    """To be read only."""
    history = History(SEED)
    history.grow(1_500)
    return history


@pytest.fixture(scope="session")
def projected(history: History, postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The database that has it, to be read only."""
    with projected_history(postgres_server, history) as database:
        yield database


@pytest.fixture
async def asked(projected: str) -> AsyncIterator[Reading]:
    """What the API has to ask it with."""
    async with reading(projected) as asked:
        yield asked
