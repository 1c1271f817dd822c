"""What was found of a key or a caller is kept, and never outlives what it rests on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization, Plan
from keyledger_language import AcceptedFormat, RateLimit, fingerprint
from keyledger_language.events import Quota
from keyledger_language.instants import SECOND
from tests.api.quick.world import Owned, World

Change = Callable[[Owned, Plan], c.Command]


def asking(owned: Owned, **fields: object) -> dict[str, object]:
    return {"secret": owned.secret, "keyspace_id": owned.key.keyspace_id} | fields


CHANGES: list[tuple[Change, str]] = [
    (lambda one, _: c.RevokeKey(key_id=one.id), "revoked"),
    (lambda one, _: c.DisableKey(key_id=one.id), "disabled"),
    (lambda one, _: c.DeleteKey(key_id=one.id), "revoked"),
    (lambda one, _: c.RotateKey(key_id=one.id, fingerprint=b"n" * 32, hint="..."), "rotated"),
    (
        lambda one, _: c.SuspendOrganization(organization_id=str(one.key.organization_id)),
        "organization_suspended",
    ),
    (lambda one, _: c.ChangeKey(key_id=one.id, allowed_ips=("10.0.0.0/8",)), "ip_denied"),
    (lambda one, _: c.EditScopes(key_id=one.id, scopes=c.NewScopes(models=("small",))), "model_denied"),
    (lambda _, plan: c.ChangePlan(plan_id=plan.id, models=("small",)), "model_denied"),
    (
        lambda one, _: c.ChangeKeyspace(keyspace_id=one.key.keyspace_id, required_dimensions=("project",)),
        "project_denied",
    ),
]


@pytest.mark.parametrize("change,code", CHANGES)
async def test_a_key_that_was_good_is_refused_from_the_change_on(
    world: World, keyspace: Keyspace, acme: Organization, change: Change, code: str
) -> None:
    plan = await world.make_plan()
    owned = await world.make_key(keyspace, acme, plan_id=plan.id)
    for _ in range(2):
        assert (await world.post("/v1/verify", asking(owned, model="large"))).code == "valid"

    await world.do(change(owned, plan))

    assert (await world.post("/v1/verify", asking(owned, model="large"))).code == code


async def test_what_comes_to_limit_a_good_key_is_looked_at(
    world: World, owned: Owned, keyspace: Keyspace, acme: Organization
) -> None:
    for _ in range(2):
        assert (await world.post("/v1/verify", asking(owned))).code == "valid"

    quota = Quota(unit="requests", window="day", limit=5)
    await world.do(c.ChangeOrganization(organization_id=acme.id, quotas=(quota,)))
    told = await world.post("/v1/verify", asking(owned))
    assert told.json["quotas"][0]["remaining"] == 5

    limit = RateLimit(name="burst", limit=1, window_seconds=10)
    await world.do(c.ChangeKey(key_id=owned.id, rate_limits=(limit,)))
    assert [(await world.post("/v1/verify", asking(owned))).code for _ in range(2)] == [
        "valid",
        "rate_limited",
    ]
    await world.do(c.ChangeKey(key_id=owned.id, rate_limits=()))

    await world.do(c.ChangeKey(key_id=owned.id, expires_at=world.clock.now() + SECOND))
    assert (await world.post("/v1/verify", asking(owned))).code == "valid"
    world.clock.advance(SECOND)
    assert (await world.post("/v1/verify", asking(owned))).code == "expired"


async def test_money_is_told_as_it_is_now(world: World, owned: Owned) -> None:
    ask = {"key_id": owned.id, "request_id": "r1", "amount_micros": 400}
    before = await world.post("/v1/verify", asking(owned))
    await world.post("/v1/charges", ask)
    after = await world.post("/v1/verify", asking(owned))

    assert [one.json["wallet_available_micros"] for one in (before, after)] == [1_000, 600]
    assert [one.json["position"] for one in (before, after)] == [
        f"0-{world.ledger.books.head - 1}",
        f"0-{world.ledger.books.head}",
    ]


async def test_a_key_good_for_one_is_unknown_to_another(
    world: World, owned: Owned, keyspace: Keyspace, acme: Organization
) -> None:
    imported = AcceptedFormat(prefix="kl_live_", min_length=36, max_length=36)
    elsewhere = await world.make_keyspace(prefix="other_", accepted_formats=(imported,))
    other = await world.make_organization()
    theirs = await world.make_root("verify", organization_id=other.id)
    for _ in range(2):
        assert (await world.post("/v1/verify", asking(owned))).code == "valid"

    assert (await world.post("/v1/verify", asking(owned, keyspace_id=elsewhere.id))).code == "not_found"
    assert (await world.post("/v1/verify", asking(owned), as_=theirs)).code == "not_found"


async def test_a_good_key_is_judged_for_each_use(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    owned = await world.make_key(keyspace, acme, scopes=c.NewScopes(models=("small",)))

    told = [
        (await world.post("/v1/verify", asking(owned, **use))).code
        for use in ({}, {"model": "small"}, {"model": "large"}, {}, {"model": "large"})
    ]

    assert told == ["valid", "valid", "model_denied", "valid", "model_denied"]


async def test_every_use_of_a_good_key_is_seen(world: World, owned: Owned) -> None:
    for _ in range(3):
        await world.post("/v1/verify", asking(owned))
        world.clock.advance(SECOND)

    taken = world.ledger._sightings.take(world.clock.now())

    assert taken is not None
    assert taken.seen == ((owned.id, world.clock.now() - SECOND, 3),)


async def test_nothing_is_told_from_memory_once_ownership_is_in_doubt(world: World, owned: Owned) -> None:
    for _ in range(2):
        assert (await world.post("/v1/verify", asking(owned))).code == "valid"

    world.ledger.fences.lost()

    assert (await world.post("/v1/verify", asking(owned))).status == 503


async def test_a_root_key_works_until_it_is_changed(world: World, owned: Owned) -> None:
    root = await world.make_root("verify")
    key_id = world.ledger.books.secrets[fingerprint(root)].key_id

    async def asked() -> tuple[int, str]:
        reply = await world.post("/v1/verify", asking(owned), as_=root)
        return reply.status, reply.code

    assert [await asked() for _ in range(2)] == [(200, "valid")] * 2
    await world.do(c.EditScopes(key_id=key_id, scopes=c.NewScopes(permissions=("keys:read",))))
    assert await asked() == (403, "permission_denied")
    await world.do(c.EditScopes(key_id=key_id, scopes=c.NewScopes(permissions=("verify",))))
    assert [await asked() for _ in range(2)] == [(200, "valid")] * 2
    await world.do(c.ChangeKey(key_id=key_id, allowed_ips=("10.0.0.0/8",)))
    assert await asked() == (403, "ip_denied")
    await world.do(c.ChangeKey(key_id=key_id, allowed_ips=(), expires_at=world.clock.now() + SECOND))
    assert [await asked() for _ in range(2)] == [(200, "valid")] * 2
    world.clock.advance(SECOND)
    assert await asked() == (401, "unauthenticated")
    await world.do(c.ChangeKey(key_id=key_id, expires_at=None))
    assert [await asked() for _ in range(2)] == [(200, "valid")] * 2
    await world.do(c.RevokeKey(key_id=key_id))
    assert await asked() == (401, "unauthenticated")
