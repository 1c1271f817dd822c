"""What a key's holder sees and may do with its own secret, for free."""

from __future__ import annotations

from typing import Any

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from keyledger_language import RateLimit
from keyledger_language.events import Quota
from tests.api.quick.world import Owned, Reply, World, call


async def own(world: World, secret: str, method: str = "GET", path: str = "", body: object = b"") -> Reply:
    headers = {"Authorization": f"Bearer {secret}"}
    return await call(world.app, method, f"/v1/self{path}", headers=headers, body=body)


async def test_a_holder_sees_the_key_and_what_is_left(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    owned = await world.make_key(
        keyspace,
        acme,
        quotas=(Quota(unit="micros", window="day", limit=10),),
        rate_limits=(RateLimit(name="burst", limit=5, window_seconds=10),),
        metadata={"crm": "internal"},
    )

    reply = await own(world, owned.secret)

    answer = reply.json
    assert reply.status == 200
    assert (answer["key"]["id"], answer["key"]["status"]) == (owned.id, "active")
    assert (answer["quotas"][0]["remaining"], answer["rate_limits"][0]["remaining"]) == (10, 5)
    assert answer["wallet"] == {"currency": "USD", "available_micros": 1_000}
    assert answer["position"] == f"0-{world.ledger.books.head}"
    assert "internal" not in reply.body.decode()
    assert owned.secret not in reply.body.decode()


async def test_looking_is_free(world: World, keyspace: Keyspace, acme: Organization) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)
    head = world.ledger.books.head

    replies = [await own(world, owned.secret) for _ in range(3)]

    assert [reply.json["rate_limits"][0]["remaining"] for reply in replies] == [1, 1, 1]
    assert world.ledger.books.head == head
    assert world.ledger.last_used_at(owned.id) is None


@pytest.mark.parametrize(
    "preset,header",
    [
        ("default", "X-API-Key: {}"),
        ("leanmcp", "Authorization: Bearer {}"),
        ("mindproxy", "x-api-key: {}"),
        ("leapter", "X-API-Key: {}"),
        ("leadmagic", "x-leadmagic-key: {}"),
        ("allmcp", "X-API-Key: {}"),
    ],
)
async def test_the_secret_stands_where_its_keyspace_takes_it(
    world: World, acme: Organization, preset: str, header: str
) -> None:
    for other in ("default", "leapter", "mindproxy"):
        if other != preset:
            await world.make_keyspace(other)
    owned = await world.make_key(await world.make_keyspace(preset), acme)
    name, _, value = header.format(owned.secret).partition(": ")

    reply = await call(world.app, "GET", "/v1/self", headers={name: value})

    assert reply.json["key"]["id"] == owned.id


async def test_a_secret_in_the_url_counts_only_where_a_keyspace_asks_for_it(
    world: World, owned: Owned, acme: Organization
) -> None:
    in_url = await world.make_key(await world.make_keyspace("mindproxy"), acme)

    allowed = await call(world.app, "GET", f"/v1/self?key={in_url.secret}")
    refused = await call(world.app, "GET", f"/v1/self?key={owned.secret}")

    assert (allowed.status, refused.status, refused.code) == (200, 401, "malformed")


async def test_a_holder_may_say_which_keyspace_is_meant(
    world: World, owned: Owned, keyspace: Keyspace
) -> None:
    other = await world.make_keyspace("leanmcp")

    named = await own(world, owned.secret, path=f"?keyspace_id={keyspace.id}")
    wrong = await own(world, owned.secret, path=f"?keyspace_id={other.id}")

    assert (named.status, named.json["key_id"]) == (200, owned.id)
    assert (wrong.status, wrong.code) == (401, "malformed")


async def test_who_shows_nothing_good_is_401(world: World, owned: Owned, keyspace: Keyspace) -> None:
    missing = await call(world.app, "GET", "/v1/self")
    malformed = await own(world, "nonsense")
    unknown = await own(world, keyspace.shape.generate())
    root = await own(world, world.root)

    assert [(one.status, one.code) for one in (missing, malformed, unknown, root)] == [
        (401, "missing"),
        (401, "malformed"),
        (401, "not_found"),
        (401, "malformed"),
    ]
    assert missing.headers["www-authenticate"].startswith("Bearer")


async def test_two_different_secrets_are_refused(world: World, owned: Owned, keyspace: Keyspace) -> None:
    headers = [("Authorization", f"Bearer {owned.secret}"), ("X-API-Key", keyspace.shape.generate())]

    reply = await call(world.app, "GET", "/v1/self", headers=headers)

    assert (reply.status, reply.code) == (400, "ambiguous_credentials")


async def test_a_dead_key_says_so(world: World, owned: Owned, acme: Organization) -> None:
    await world.do(c.SuspendOrganization(organization_id=acme.id))
    suspended = await own(world, owned.secret)
    await world.do(c.RevokeKey(key_id=owned.id))
    revoked = await own(world, owned.secret)

    assert (suspended.status, suspended.code) == (403, "organization_suspended")
    assert (revoked.status, revoked.code) == (401, "revoked")


async def test_a_key_is_told_nothing_from_an_address_it_is_not_allowed_from(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    owned = await world.make_key(keyspace, acme, allowed_ips=("10.0.0.0/8",))

    assert (await own(world, owned.secret)).code == "ip_denied"
    world.serve(trusted_proxies=("192.0.2.0/24",))
    headers = {"Authorization": f"Bearer {owned.secret}", "X-Forwarded-For": "10.0.0.1"}
    assert (await call(world.app, "GET", "/v1/self", headers=headers)).status == 200


@pytest.mark.parametrize("length, status", [(0, 400), (1, 200), (500, 200), (501, 400)])
async def test_a_reason_has_the_bounds_that_it_has_everywhere(
    world: World, owned: Owned, length: int, status: int
) -> None:
    reply = await own(world, owned.secret, "POST", "/revoke", {"reason": "x" * length})
    of_root = await world.post(f"/v1/keys/{owned.id}/revoke", {"reason": "x" * length})

    assert (reply.status, of_root.status) == (status, status)
    if status != 200:
        assert [error["field"] for error in reply.json["errors"]] == ["reason"]


async def test_whoever_holds_a_secret_may_kill_it_and_it_is_fenced(world: World, owned: Owned) -> None:
    reply = await own(world, owned.secret, "POST", "/revoke", {"reason": "leaked"})
    again = await own(world, owned.secret, "POST", "/revoke")

    fence: dict[str, Any] = reply.json["fence"]
    assert (reply.status, reply.json["key"]["status"]) == (200, "revoked")
    assert (fence["held"], fence["edges"]) == (True, 0)
    assert (again.status, again.json["fence"]["held"]) == (200, True)
    assert (await own(world, owned.secret)).code == "revoked"


async def test_without_the_fence_it_is_202(world: World, owned: Owned) -> None:
    reply = await own(world, owned.secret, "POST", "/revoke?fence=false")

    assert (reply.status, "fence" in reply.json) == (202, True)


async def test_fence_is_true_or_false(world: World, owned: Owned) -> None:
    reply = await own(world, owned.secret, "POST", "/revoke?fence=maybe")

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "fence")
    assert (await own(world, owned.secret)).status == 200


async def test_a_suspended_or_disabled_key_can_still_be_killed(world: World, owned: Owned) -> None:
    await world.do(c.DisableKey(key_id=owned.id))

    assert (await own(world, owned.secret, "POST", "/revoke")).json["key"]["status"] == "revoked"
