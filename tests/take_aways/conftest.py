"""What thousands of requests in memory need."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

import services.api.resources.key_revocations
from projections.pages import Page


@pytest.fixture(autouse=True)
def filters_find_keys_of_their_organization(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists come out of PostgreSQL; here they are read from the ledger's state."""

    async def found(queries: Any, *, organization_id: str, **_: Any) -> Page:
        keys = queries.ledger.books.keys.values()
        return Page([key.id for key in keys if key.organization_id == organization_id], None)

    monkeypatch.setattr(services.api.resources.key_revocations, "list_keys", found)


@pytest.fixture(autouse=True)
def requests_are_not_logged() -> Iterator[None]:
    """A third of the time otherwise."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    yield
    structlog.configure(**before)
