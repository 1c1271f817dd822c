"""Forward-auth, as Traefik, Envoy and nginx speak it."""

from __future__ import annotations

import asyncio

import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from domain.organizations import Organization
from keyledger_edge import Sidecar
from keyledger_edge.testing import FakeLedger
from keyledger_language import RateLimit
from tests.api.quick.test_forwarding import served
from tests.api.quick.world import Owned, Reply, World, call


async def ask(
    world: World,
    keyspace: Keyspace,
    *headers: tuple[str, str],
    method: str = "GET",
    path: str = "",
    query: str = "",
    proxy_key: str | None = "",
    client: tuple[str, int] | None = ("192.0.2.7", 4_000),
) -> Reply:
    """What a proxy sends; the bootstrap root key is its own, unless another (or none) is given."""
    own = [] if proxy_key is None else [("X-Keyledger-Proxy-Key", proxy_key or world.root)]
    target = f"/v1/forward-auth{path}?keyspace_id={keyspace.id}{query}"
    return await call(world.app, method, target, headers=[*own, *headers], client=client)


def bearer(owned: Owned) -> tuple[str, str]:
    return "Authorization", f"Bearer {owned.secret}"


async def test_a_good_key_is_let_through_and_named_upstream(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    plan = await world.make_plan()
    owned = await world.make_key(keyspace, acme, plan_id=plan.id)

    reply = await ask(world, keyspace, bearer(owned))

    assert (reply.status, reply.body) == (200, b"")
    assert reply.headers["x-keyledger-key-id"] == owned.id
    assert reply.headers["x-keyledger-organization-id"] == acme.id
    assert reply.headers["x-keyledger-plan-id"] == plan.id
    assert reply.headers["x-keyledger-code"] == "valid"
    assert reply.headers["x-request-id"].startswith("req_")


async def test_a_key_without_a_plan_is_let_through_with_an_empty_one(
    world: World, keyspace: Keyspace, owned: Owned
) -> None:
    """Else a proxy would leave what the client itself sent under that name."""
    reply = await ask(world, keyspace, bearer(owned), ("X-Keyledger-Plan-Id", "plan_forged"))

    assert (reply.status, reply.headers["x-keyledger-plan-id"]) == (200, "")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_every_method_asks_the_same(
    world: World, keyspace: Keyspace, owned: Owned, method: str
) -> None:
    bound = await world.make_root("verify", bound_keyspace_id=keyspace.id)
    shown = ("X-API-Key", owned.secret)
    plain = await ask(world, keyspace, shown, method=method)
    behind = await ask(world, keyspace, shown, method=method, path="/v1/chat", proxy_key=bound)

    assert (plain.status, behind.status) == (200, 200)


async def test_the_proxy_must_show_a_root_key_with_verify(
    world: World, keyspace: Keyspace, owned: Owned
) -> None:
    reader = await world.make_root("keys:read")

    replies = [
        await ask(world, keyspace, bearer(owned), proxy_key=key) for key in (None, reader, owned.secret)
    ]

    assert {(reply.status, reply.code) for reply in replies} == {(401, "proxy_unauthenticated")}
    assert (await ask(world, keyspace, proxy_key=await world.make_root("verify"))).code == "missing"


DENIALS = [
    ([], 401, "missing"),
    ([("Authorization", "Bearer nonsense")], 401, "malformed"),
    ([("Authorization", "Basic YTpi")], 401, "missing"),
]


@pytest.mark.parametrize("headers,status,code", DENIALS)
async def test_a_request_without_a_good_secret_is_401(
    world: World, keyspace: Keyspace, headers: list[tuple[str, str]], status: int, code: str
) -> None:
    reply = await ask(world, keyspace, *headers)

    assert (reply.status, reply.code) == (status, code)
    assert reply.headers["www-authenticate"].startswith("Bearer")
    assert reply.json["request_id"] == reply.headers["x-request-id"]


async def test_a_revoked_key_is_stopped_at_once(world: World, keyspace: Keyspace, owned: Owned) -> None:
    before = await ask(world, keyspace, bearer(owned))
    await world.do(c.RevokeKey(key_id=owned.id))
    after = await ask(world, keyspace, bearer(owned))

    assert (before.status, after.status, after.code) == (200, 401, "revoked")


async def test_two_different_secrets_are_refused(world: World, keyspace: Keyspace, owned: Owned) -> None:
    other = keyspace.shape.generate()

    reply = await ask(world, keyspace, bearer(owned), ("X-API-Key", other))

    assert (reply.status, reply.code) == (400, "ambiguous_credentials")
    assert other not in reply.body.decode()


async def test_a_jwt_beside_a_key_is_no_candidate(world: World, keyspace: Keyspace, owned: Owned) -> None:
    reply = await ask(
        world, keyspace, ("Authorization", "Bearer eyJh.eyJz.c2ln"), ("X-API-Key", owned.secret)
    )

    assert reply.status == 200


async def test_the_use_stands_in_headers(world: World, keyspace: Keyspace, acme: Organization) -> None:
    scopes = c.NewScopes(models=("small",), permissions=("chat",))
    owned = await world.make_key(keyspace, acme, scopes=scopes)

    allowed = await ask(
        world, keyspace, bearer(owned), ("X-Keyledger-Model", "small"), ("X-Keyledger-Permission", "chat")
    )
    model = await ask(world, keyspace, bearer(owned), ("X-Keyledger-Model", "large"))
    permission = await ask(world, keyspace, bearer(owned), ("X-Keyledger-Permission", "chat, admin"))
    project = await ask(world, keyspace, bearer(owned), ("X-Keyledger-Project", "prj_x"))

    assert allowed.status == 200
    assert [(one.status, one.code) for one in (model, permission, project)] == [
        (403, "model_denied"),
        (403, "permission_denied"),
        (403, "project_denied"),
    ]


async def test_a_secret_in_the_url_counts_only_where_the_keyspace_says_so(
    world: World, keyspace: Keyspace, owned: Owned, acme: Organization
) -> None:
    mindproxy = await world.make_keyspace("mindproxy")
    in_url = await world.make_key(mindproxy, acme)

    allowed = await ask(world, mindproxy, ("X-Forwarded-Uri", f"/v1/chat?key={in_url.secret}"))
    nginx = await ask(world, mindproxy, ("X-Original-URI", f"/v1/chat?key={in_url.secret}"))
    not_asked_for = await ask(world, keyspace, ("X-Forwarded-Uri", f"/v1/chat?key={owned.secret}"))

    assert (allowed.status, nginx.status) == (200, 200)
    assert (not_asked_for.status, not_asked_for.code) == (401, "missing")


async def test_a_tenant_stands_where_the_keyspace_says(world: World, acme: Organization) -> None:
    allmcp = await world.make_keyspace("allmcp")
    owned = await world.make_key(allmcp, acme, kind="platform", scopes=c.NewScopes(tenants=("acme",)))

    def uri(query: str) -> tuple[str, str]:
        return "X-Forwarded-Uri", f"/mcp?{query}"

    own = await ask(world, allmcp, bearer(owned), uri("org_id=acme&user_id=ada"))
    foreign = await ask(world, allmcp, bearer(owned), uri("org_id=evil&user_id=ada"))

    assert (own.status, foreign.status, foreign.code) == (200, 403, "tenant_denied")


async def test_envoy_puts_the_original_path_behind_and_its_root_key_says_which_keyspace(
    world: World, keyspace: Keyspace, owned: Owned
) -> None:
    other = await world.make_keyspace(prefix="other_")
    bound = await world.make_root("verify", bound_keyspace_id=keyspace.id)

    reply = await call(
        world.app,
        "POST",
        f"/v1/forward-auth/v1/chat?keyspace_id={other.id}",
        headers=[("X-Keyledger-Proxy-Key", bound), bearer(owned)],
    )

    assert reply.status == 200


@pytest.mark.parametrize("path", ["/v1/forward-auth/v1/chat", "/v1/forward-auth/"])
async def test_behind_a_path_no_client_chooses_the_keyspace(
    world: World, keyspace: Keyspace, owned: Owned, path: str
) -> None:
    headers = [("X-Keyledger-Proxy-Key", world.root), bearer(owned)]

    chosen = await call(
        world.app,
        "GET",
        f"{path}?keyspace_id={keyspace.id}&proxy=nginx",
        headers=headers,
        at_once=world.at_once,
    )
    plain = await call(world.app, "GET", f"/v1/forward-auth?keyspace_id={keyspace.id}", headers=headers)

    assert (chosen.status, chosen.code, plain.status) == (400, "invalid_request", 200)
    assert chosen.json["errors"][0]["field"] == "X-Keyledger-Proxy-Key"


@pytest.mark.parametrize("path", ["/v1/forward-auth/v1/chat", "/v1/forward-auth/"])
async def test_behind_a_path_the_query_is_the_clients_and_no_header_is(
    world: World, acme: Organization, path: str
) -> None:
    mindproxy = await world.make_keyspace("mindproxy")
    bound = await world.make_root("verify", bound_keyspace_id=mindproxy.id)
    in_url = await world.make_key(mindproxy, acme)
    own = ("X-Keyledger-Proxy-Key", bound)
    named = ("X-Forwarded-Uri", f"/v1/chat?key={in_url.secret}")

    shown = await call(world.app, "GET", f"{path}?key={in_url.secret}", headers=[own])
    told = await call(world.app, "GET", path, headers=[own, named], at_once=world.at_once)

    assert (shown.status, told.status, told.code) == (200, 401, "missing")


TWO_READINGS = [
    ([("X-Original-URI", "/v1/chat?a=1#&key={}")], "X-Original-URI"),
    ([("X-Original-URI", "/v1/chat#?key={}")], "X-Original-URI"),
    ([("X-Original-URI", "/v1/chat?ke\ty={}")], "X-Original-URI"),
    ([("X-Forwarded-Uri", "/v1/chat?key={}\t")], "X-Original-URI"),
    ([("X-Forwarded-Uri", "/v1/chat?key={}\x00")], "X-Original-URI"),
    ([("X-Original-URI", "/v1/chat?key={}"), ("X-Original-URI", "/v1/chat")], "X-Original-URI"),
    ([("X-Original-URI", "/v1/chat?key={}"), ("X-Original-URI", "")], "X-Original-URI"),
    ([("X-Original-URI", ""), ("X-Forwarded-Uri", "/v1/chat?key={}")], "X-Original-URI"),
    ([("X-Forwarded-Uri", "/v1/chat?key={}"), ("X-Original-URI", "/v1")], "X-Original-URI"),
    ([("X-Keyledger-Model", "large"), ("X-Keyledger-Model", "small")], "X-Keyledger-Model"),
    ([("X-Keyledger-Model", ""), ("X-Keyledger-Model", "small")], "X-Keyledger-Model"),
    ([("X-Keyledger-Project", "a"), ("X-Keyledger-Project", "b")], "X-Keyledger-Project"),
    ([("X-Keyledger-Permission", "a"), ("X-Keyledger-Permission", "")], "X-Keyledger-Permission"),
    ([("X-Keyledger-Provider", "a\tb")], "X-Keyledger-Provider"),
    ([("X-Keyledger-Cost-Micros", "1"), ("X-Keyledger-Cost-Micros", "2")], "X-Keyledger-Cost-Micros"),
    ([("X-Keyledger-Request-Id", "1"), ("X-Keyledger-Request-Id", "2")], "X-Keyledger-Request-Id"),
    ([("X-Keyledger-Proxy-Key", "kl_root_other")], "X-Keyledger-Proxy-Key"),
]


@pytest.mark.parametrize("preset", ["mindproxy", "default"])
@pytest.mark.parametrize("headers,field", TWO_READINGS)
async def test_what_two_readers_might_read_differently_is_refused(
    world: World, acme: Organization, preset: str, headers: list[tuple[str, str]], field: str
) -> None:
    keyspace = await world.make_keyspace(preset, prefix="two_")
    owned = await world.make_key(keyspace, acme)
    shown = [(name, value.format(owned.secret)) for name, value in headers]

    reply = await ask(world, keyspace, bearer(owned), *shown)

    assert (reply.status, reply.json["code"]) == (400, "invalid_request"), reply
    assert [one["field"] for one in reply.json["errors"]] == [field]
    assert owned.secret not in reply.body.decode()


async def test_what_is_said_twice_alike_is_said_once(world: World, acme: Organization) -> None:
    mindproxy = await world.make_keyspace("mindproxy")
    owned = await world.make_key(mindproxy, acme)
    uri = f"/v1/chat?key={owned.secret}"
    twice = [("X-Original-URI", uri), ("X-Forwarded-Uri", uri), *[("X-Keyledger-Model", "small")] * 2]

    assert (await ask(world, mindproxy, *twice)).status == 200


async def test_an_unknown_keyspace_is_told(world: World, keyspace: Keyspace) -> None:
    headers = [("X-Keyledger-Proxy-Key", world.root)]

    unnamed = await call(world.app, "GET", "/v1/forward-auth", headers=headers)
    unknown = await call(world.app, "GET", "/v1/forward-auth?keyspace_id=ks_x", headers=headers)

    assert (unnamed.status, unnamed.code) == (400, "invalid_request")
    assert (unknown.status, unknown.code) == (404, "not_found")


async def test_forwarded_addresses_count_only_from_trusted_proxies(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    owned = await world.make_key(keyspace, acme, allowed_ips=("10.0.0.0/8",))
    forwarded = ("X-Forwarded-For", "10.1.2.3")

    untrusted = await ask(world, keyspace, bearer(owned), forwarded)
    direct = await ask(world, keyspace, bearer(owned), client=("10.9.9.9", 1))
    world.serve(trusted_proxies=("192.0.2.0/24",))
    trusted = await ask(world, keyspace, bearer(owned), forwarded)
    lying = await ask(world, keyspace, bearer(owned), ("X-Forwarded-For", "10.1.2.3, 203.0.113.9"))

    assert [one.status for one in (untrusted, direct, trusted, lying)] == [403, 200, 200, 403]
    assert untrusted.code == "ip_denied"


async def test_rate_limits_are_told_as_the_ietf_writes_them(
    world: World, keyspace: Keyspace, acme: Organization
) -> None:
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    owned = await world.make_key(keyspace, acme, rate_limits=limits)
    world.ledger.limiter._clock = lambda: 0.0  # both within one second

    first = await ask(world, keyspace, bearer(owned))
    second = await ask(world, keyspace, bearer(owned))

    assert first.headers["ratelimit-policy"] == '"burst";q=1;w=10'
    assert first.headers["ratelimit"] == '"burst";r=0;t=10'
    assert (second.status, second.code, second.headers["retry-after"]) == (429, "rate_limited", "10")


async def test_a_keyspace_maps_statuses_and_nginx_gets_403_with_the_real_one_beside(world: World) -> None:
    leanmcp, leadmagic = await world.make_keyspace("leanmcp"), await world.make_keyspace("leadmagic")
    poor = await world.make_organization()
    lean, lead = await world.make_key(leanmcp, poor), await world.make_key(leadmagic, poor)

    plain = await ask(world, leanmcp, bearer(lean))
    mapped = await ask(world, leadmagic, ("X-LeadMagic-Key", lead.secret))
    nginx = await ask(world, leanmcp, bearer(lean), query="&proxy=nginx")
    missing = await ask(world, leanmcp, query="&proxy=nginx")

    assert (plain.status, plain.code) == (402, "billing_shortfall")
    assert mapped.status == 403
    assert (nginx.status, nginx.headers["x-keyledger-status"]) == (403, "402")
    assert (missing.status, missing.headers["x-keyledger-status"]) == (401, "401")


async def test_a_use_with_a_cost_is_charged_once_per_request_id(
    world: World, keyspace: Keyspace, owned: Owned, acme: Organization
) -> None:
    cost = (("X-Keyledger-Cost-Micros", "600"), ("X-Keyledger-Request-Id", "r1"))

    first = await ask(world, keyspace, bearer(owned), *cost)
    again = await ask(world, keyspace, bearer(owned), *cost)
    short = await ask(world, keyspace, bearer(owned), cost[0], ("X-Keyledger-Request-Id", "r2"))
    other = await ask(
        world, keyspace, bearer(owned), ("X-Keyledger-Cost-Micros", "5"), cost[1], query="&proxy=nginx"
    )

    assert (first.status, first.headers["x-keyledger-key-id"]) == (200, owned.id)
    assert again.status == 200
    assert (short.status, short.code) == (402, "billing_shortfall")
    assert (other.status, other.headers["x-keyledger-status"], other.code) == (
        403,
        "409",
        "idempotency_conflict",
    )
    assert world.balance(acme) == 400


BAD_COSTS = [
    (("X-Keyledger-Cost-Micros", "5"),),
    (("X-Keyledger-Cost-Micros", "-5"), ("X-Keyledger-Request-Id", "r1")),
    (("X-Keyledger-Cost-Micros", "9" * 19), ("X-Keyledger-Request-Id", "r1")),
    (("X-Keyledger-Cost-Micros", "5"), ("X-Keyledger-Request-Id", "r" * 300)),
]


@pytest.mark.parametrize("headers", BAD_COSTS)
async def test_a_cost_that_cannot_be_read_is_refused_by_its_header(
    world: World, keyspace: Keyspace, owned: Owned, headers: tuple[tuple[str, str], ...]
) -> None:
    reply = await ask(world, keyspace, bearer(owned), *headers)

    assert reply.status == 400
    assert reply.json["code"] == "invalid_request"


async def test_a_foreign_secret_is_not_found_through_a_bound_root_key(
    world: World, keyspace: Keyspace, owned: Owned
) -> None:
    bound = await world.make_root("verify", organization_id=(await world.make_organization()).id)

    reply = await ask(world, keyspace, bearer(owned), proxy_key=bound)

    assert (reply.status, reply.code) == (401, "not_found")
    assert "x-keyledger-key-id" not in reply.headers


LONE = [
    ("Authorization", "Bearer {}", 200),
    ("authorization", "bearer  {}", 200),
    ("Authorization", "Bearer {} ", 200),
    ("Authorization", "Bearer{}", 401),
    ("Authorization", "{}", 401),
    ("Authorization", "Basic {}", 401),
    ("X-API-Key", " {} ", 200),
    ("X-API-Key", "Bearer {}", 401),
    ("X-API-Key", "", 401),
    ("X-Other", "{}", 401),
]


@pytest.mark.parametrize("name,shown,status", LONE)
async def test_a_header_alone_reads_as_it_does_beside_others(  # noqa: PLR0917  # a row and its fixtures
    world: World, keyspace: Keyspace, owned: Owned, name: str, shown: str, status: int
) -> None:
    """The short way for the commonest request must not differ from the long one."""
    header = (name, shown.format(owned.secret))

    alone = await ask(world, keyspace, header)
    beside = await ask(world, keyspace, header, ("X-Keyledger-Model", "m"))

    assert (alone.status, beside.status) == (status, status)


@pytest.mark.parametrize("target", ["/v1/forward-auth/chat?a=1#&key=", "/v1/forward-auth/chat#?key="])
async def test_a_path_that_holds_a_fragment_is_refused_on_the_wire(
    world: World, keyspace: Keyspace, owned: Owned, target: str
) -> None:
    """What stands behind the # is in no ASGI scope, and the upstream may read it."""
    bound = await world.make_root("verify", bound_keyspace_id=keyspace.id)
    sidecar = FakeLedger()
    for app, proxy_key, secret in (
        (world.app, bound, owned.secret),
        (Sidecar(sidecar.verifier()), "", sidecar.add_key()),
    ):
        async with served(app) as address:
            for asked, status in ((target, b"400"), ("/v1/forward-auth/chat?a=1", b"200")):
                answer = await raw(
                    address, asked, f"X-Keyledger-Proxy-Key: {proxy_key}\r\nX-API-Key: {secret}"
                )
                assert answer.startswith(b"HTTP/1.1 " + status), answer


async def raw(address: str, target: str, headers: str) -> bytes:
    """A request as no library of ours would write it."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return answer
