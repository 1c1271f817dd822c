"""A verdict without a cost is written by hand, for speed: it is what its struct says, field by field."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from typing import Any, Final

import msgspec
import pytest

from domain.keyspaces import Keyspace
from keyledger_language import RateLimit
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from services.api.answering.verdicts import VerdictView
from tests.api.quick.world import World, running_world

SEED: Final = int(os.environ.get("KEYLEDGER_TEST_SEED") or random.SystemRandom().randrange(2**32))
KEYS: Final = 60
OF_A_COST: Final = {"charge", "replayed", "position", "refusal"}
"""A use with a cost is one request, too, and so another limit may be the first that says no."""


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running_world() as world:
        world.at_once = True
        yield world


def quotas_of(draw: random.Random) -> tuple[Quota, ...]:
    kinds = [
        (unit, window) for unit in ("micros", "requests") for window in ("day", "week", "month", "total")
    ]
    return tuple(
        Quota(unit=unit, window=window, limit=draw.choice((0, 1, 5_000, 2**62)))  # type: ignore[arg-type]
        for unit, window in draw.sample(kinds, draw.randrange(4))
    )


async def made(world: World, keyspace: Keyspace, draw: random.Random) -> tuple[str, dict[str, str]]:
    """A key of any kind; its secret, and a use of it."""
    organization = await world.make_organization(credit=draw.choice((0, 1, 10**9)), quotas=quotas_of(draw))
    project = await world.make_project(organization, quotas=quotas_of(draw))
    plan = await world.make_plan(price_multiplier=draw.choice(("1", "1.25")))
    fields: dict[str, Any] = {
        "owner_id": draw.choice((None, "u-é")),
        "environment": draw.choice((None, "live")),
        "plan_id": draw.choice((None, plan.id)),
        "quotas": quotas_of(draw),
        "metadata": draw.choice(({}, {"team": {"name": '"é\\', "n": [1, None]}})),
        "expires_at": draw.choice((None, world.clock.now() + draw.choice((1, 3_600)) * SECOND)),
        "rate_limits": draw.choice(((), (RateLimit(name="burst", limit=3, window_seconds=60),))),
    }
    owned = await world.make_key(keyspace, organization, **fields)
    return owned.secret, draw.choice(({}, {"project_id": project.id}, {"model": "gpt-5"}))


async def test_a_verdict_without_a_cost_says_what_one_with_a_cost_of_nothing_does_and_what_its_struct_has(
    world: World,
) -> None:
    print(f"seed {SEED}: KEYLEDGER_TEST_SEED={SEED} repeats it")
    draw = random.Random(SEED)
    codes: set[str] = set()
    keyspaces = [
        await world.make_keyspace(prefix="free_"),
        await world.make_keyspace(prefix="paid_", require_balance=True),
    ]
    for number in range(KEYS):
        secret, use = await made(world, draw.choice(keyspaces), draw)
        body = {"secret": secret, "keyspace_id": next(k.id for k in keyspaces if secret.startswith(k.prefix))}
        for _ in range(draw.randrange(1, 5)):
            world.clock.advance(draw.choice((0, 1, 2 * SECOND)))
            free = await world.post("/v1/verify", {**body, **use})
            paid = await world.post(
                "/v1/verify", {**body, **use, "cost_micros": 0, "request_id": f"r-{number}"}
            )
            codes.add(free.json["code"])

            for reply in (free, paid):
                view = msgspec.json.decode(reply.body, type=VerdictView)
                assert msgspec.json.decode(msgspec.json.encode(view)) == reply.json
            if free.json["code"] != paid.json["code"] or "rate_limits" in free.json:
                continue  # what was asked second met a limit that the first one used up
            if free.json["valid"] and "quotas" in free.json:
                continue  # a use with a cost is one request, and its quotas say so
            # A use that is refused before its money is looked at tells nothing of it.
            both = (free.json.keys() & paid.json.keys()) - OF_A_COST
            assert {"valid", "code", "key_id", "scopes"} <= both
            assert {name: paid.json[name] for name in both} == {name: free.json[name] for name in both}

    assert {"valid", "expired"} <= codes
