"""A ledger in memory, its default keyspace, an organization with money, and a key."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from domain.keyspaces import Keyspace
from domain.organizations import Organization
from tests.api.quick.world import Owned, World, running_world


@pytest.fixture(params=["as usual", "at once"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Asked in both ways that the HTTP server has: the answers are the same."""
    async with running_world() as world:
        world.at_once = request.param == "at once"
        yield world


@pytest.fixture
async def keyspace(world: World) -> Keyspace:
    return await world.make_keyspace()


@pytest.fixture
async def acme(world: World) -> Organization:
    return await world.make_organization(credit=1_000)


@pytest.fixture
async def owned(world: World, keyspace: Keyspace, acme: Organization) -> Owned:
    return await world.make_key(keyspace, acme)
