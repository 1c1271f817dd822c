import pytest

from domain import commands as c
from domain.keyspaces import ROOT_KEYSPACE_ID
from services.api.operations import Operation
from services.api.serving.app import ROUTES
from tests.api.quick.world import call
from tests.api.world import DESCRIPTION, Management

GUARDED = [route for route in ROUTES if route.permissions]
OPEN = [route for route in ROUTES if route.tag == "Operating"]


def path_of(one: Operation) -> str:
    ids = {
        "key_id": "key",
        "organization_id": "org",
        "project_id": "prj",
        "plan_id": "plan",
        "keyspace_id": "ks",
    }
    path = one.path
    for name, kind in ids.items():
        path = path.replace(f"{{{name}}}", f"{kind}_01JD0000000000000000000000")
    return path.replace("{position}", "0-1").replace("{request_id}", "r-1")


@pytest.mark.parametrize("one", GUARDED, ids=lambda one: one.name)
async def test_each_permission_that_a_route_names_opens_it_alone(api: Management, one: Operation) -> None:
    """What the description says in `x-permissions` is what the door looks at."""
    if one.path == "/v1/events":
        return  # it may go on; its permission is asked for in test_events
    described = DESCRIPTION.document["paths"][one.path][one.method.lower()]

    assert tuple(described["x-permissions"]) == one.permissions
    for permission in one.permissions:
        answer = await api.ask(one.method, path_of(one), as_=await api.make_root(permission))
        assert answer.status < 400 or answer.code not in {"permission_denied", "unauthenticated"}


async def test_a_use_with_a_cost_needs_a_permission_that_may_spend(api: Management) -> None:
    made = await api.create()
    body = {
        "secret": made["secret"], "keyspace_id": made["key"]["keyspace_id"],
        "cost_micros": 0, "request_id": "r-1",
    }  # fmt: skip
    answers = [
        await api.post("/v1/verify", body, as_=await api.make_root(*permissions))
        for permissions in [("edges:connect",), ("edges:connect", "charges:write"), ("verify",)]
    ]

    assert [answer.status for answer in answers] == [403, 200, 200]
    assert answers[0].json["permission"] == "charges:write"
    for path in ("/v1/verify", "/v1/verify/batch"):
        about = DESCRIPTION.document["paths"][path]["post"]["description"]
        assert "with a cost needs `verify` or `charges:write`" in about


@pytest.mark.parametrize("one", OPEN, ids=lambda one: one.name)
async def test_what_is_open_needs_nobody(api: Management, one: Operation) -> None:
    assert (await call(api.app, one.method, one.path)).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "kl_root_x",
        "Bearer kl_root_" + "x" * 36,
        "Bearer ü",
        "Bearer a b",
    ],
)
async def test_what_is_no_root_key_is_nobody(api: Management, authorization: str) -> None:
    answer = await call(api.app, "GET", "/v1/keys", headers={"authorization": authorization})

    assert (answer.status, answer.code) == (401, "unauthenticated")
    assert b"x" * 36 not in answer.body


async def test_an_ordinary_key_is_no_root_key(api: Management) -> None:
    made = await api.create()

    assert (await api.get("/v1/keys", as_=made["secret"])).status == 401


async def test_a_root_key_works_until_it_is_stopped(api: Management) -> None:
    secret = await api.make_root("keys:read")
    key_id = list(api.ledger.books.keys)[-1]
    before = (await api.get("/v1/keys", as_=secret)).status
    await api.post(f"/v1/keys/{key_id}/disable", b"")
    disabled = await api.get("/v1/keys", as_=secret)
    await api.post(f"/v1/keys/{key_id}/enable", b"")
    enabled = await api.get("/v1/keys", as_=secret)
    await api.post(f"/v1/keys/{key_id}/revoke", b"")
    revoked = await api.get("/v1/keys", as_=secret)

    assert (before, enabled.status) == (200, 200)
    assert (disabled.status, disabled.json["detail"]) == (401, "This root key is disabled.")
    assert (revoked.status, revoked.json["detail"]) == (401, "This root key is revoked.")
    assert revoked.headers["www-authenticate"].endswith('error="invalid_token"')


async def test_a_rotated_root_key_needs_its_new_secret(api: Management) -> None:
    secret = await api.make_root("keys:read")
    key_id = list(api.ledger.books.keys)[-1]
    rotated = (await api.post(f"/v1/keys/{key_id}/rotate", b"")).json["secret"]

    assert (await api.get("/v1/keys", as_=secret)).status == 401
    assert (await api.get("/v1/keys", as_=rotated)).status == 200


async def test_an_expired_root_key_is_nobody(api: Management) -> None:
    expires_at = api.clock.now() + 60_000_000
    secret = await api.make_root("keys:read", expires_at=expires_at)
    api.clock.set(expires_at - 1)
    before = (await api.get("/healthz", as_=secret)).status
    api.clock.set(expires_at)

    assert before == 200
    assert (await api.get("/v1/keys", as_=secret)).status == 401


async def test_a_root_key_bound_to_addresses_works_from_them_only(api: Management) -> None:
    here = await api.make_root("keys:read", allowed_ips=("192.0.2.0/24",))
    elsewhere = await api.make_root("keys:read", allowed_ips=("198.51.100.0/24",))
    refused = await api.get("/v1/keys", as_=elsewhere)

    assert (await api.get("/v1/keys", as_=here)).status == 200
    assert (refused.status, refused.code) == (403, "ip_denied")


async def test_forwarded_addresses_count_from_trusted_proxies_only(api: Management) -> None:
    secret = await api.make_root("keys:read", allowed_ips=("198.51.100.7",))
    spoofed = await api.ask("GET", "/v1/keys", as_=secret, x_forwarded_for="198.51.100.7")
    api.serve(trusted_proxies=("192.0.2.0/24",))
    forwarded = await api.ask("GET", "/v1/keys", as_=secret, x_forwarded_for="10.1.1.1, 198.51.100.7")

    assert spoofed.code == "ip_denied"
    assert forwarded.status == 200


async def test_a_suspended_organizations_root_key_is_refused(api: Management) -> None:
    organization = await api.make_organization()
    secret = await api.make_root("keys:read", organization_id=organization.id)
    before = (await api.get("/v1/keys", as_=secret)).status
    suspended = await api.post(f"/v1/organizations/{organization.id}/suspend", {"reason": "overdue"})
    during = await api.get("/v1/keys", as_=secret)
    resumed = await api.post(f"/v1/organizations/{organization.id}/resume", b"")
    after = (await api.get("/v1/keys", as_=secret)).status

    assert (before, after) == (200, 200)
    assert (suspended.json["status"], resumed.json["status"]) == ("suspended", "active")
    assert suspended.json["fence"]["held"] is True
    assert (during.status, during.code) == (403, "organization_suspended")


async def test_a_bound_root_key_sees_everybody_elses_things_as_missing(api: Management) -> None:
    keyspace, own, other = (
        await api.make_keyspace(),
        await api.make_organization(),
        await api.make_organization(),
    )
    mine, theirs = await api.make_key(keyspace, own), await api.make_key(keyspace, other)
    project = await api.make_project(other)
    secret = await api.make_root(
        "keys:read", "keys:write", "organizations:read", "wallets:read", "usage:read",
        organization_id=own.id,
    )  # fmt: skip
    foreign = [
        ("GET", f"/v1/keys/{theirs.id}"),
        ("PATCH", f"/v1/keys/{theirs.id}"),
        ("PATCH", f"/v1/keys/{theirs.id}/scopes"),
        ("POST", f"/v1/keys/{theirs.id}/rotate"),
        ("POST", f"/v1/keys/{theirs.id}/disable"),
        ("POST", f"/v1/keys/{theirs.id}/enable"),
        ("POST", f"/v1/keys/{theirs.id}/revoke"),
        ("DELETE", f"/v1/keys/{theirs.id}"),
        ("GET", f"/v1/keys/{theirs.id}/history"),
        ("GET", f"/v1/keys/{theirs.id}/usage"),
        ("GET", f"/v1/keys/{theirs.id}/requests"),
        ("GET", f"/v1/organizations/{other.id}"),
        ("GET", f"/v1/organizations/{other.id}/projects"),
        ("GET", f"/v1/organizations/{other.id}/projects/{project.id}"),
        ("GET", f"/v1/organizations/{other.id}/wallet"),
        ("GET", f"/v1/organizations/{other.id}/wallet/statement"),
        ("GET", f"/v1/organizations/{other.id}/usage"),
    ]
    for method, path in foreign:
        answer = await api.ask(method, path, as_=secret)
        assert (answer.status, answer.code) == (404, "not_found"), path

    made = await api.post(
        "/v1/keys", {"keyspace_id": keyspace.id, "organization_id": other.id, "name": "x"}, as_=secret
    )
    assert made.json["errors"][0]["field"] == "organization_id"
    assert (await api.get(f"/v1/keys/{mine.id}", as_=secret)).status == 200
    assert (await api.get(f"/v1/organizations/{own.id}", as_=secret)).status == 200
    assert (await api.get(f"/v1/keys?organization_id={other.id}", as_=secret)).json["items"] == []


async def test_a_bound_root_key_lists_with_its_own_organization(api: Management) -> None:
    keyspace, own, other = await api.make_keyspace(), *[await api.make_organization() for _ in range(2)]
    mine, _ = [await api.make_key(keyspace, one) for one in (own, other)]
    secret = await api.make_root("keys:read", "organizations:read", "audit:read", organization_id=own.id)
    keys = (await api.get("/v1/keys?sort=-created_at", as_=secret)).json["items"]
    organizations = (await api.get("/v1/organizations", as_=secret)).json["items"]
    audit = (await api.get("/v1/audit", as_=secret)).json["items"]

    assert mine.id in [one["id"] for one in keys]
    assert {one["organization_id"] for one in keys} == {own.id}
    assert [one["id"] for one in organizations] == [own.id]
    assert {one["organization_id"] for one in audit} == {own.id}


async def test_what_is_the_platforms_is_refused_to_a_bound_root_key(api: Management) -> None:
    own = await api.make_organization()
    plan = await api.make_plan()
    key = (await api.create(organization_id=own.id))["key"]
    secret = await api.make_root("keys:write", "edges:connect", organization_id=own.id)
    refused = await api.patch(f"/v1/keys/{key['id']}", {"plan_id": plan.id}, as_=secret)
    edges = await api.get("/v1/edges", as_=secret)

    assert (refused.status, refused.code) == (403, "platform_only")
    assert (edges.status, edges.code) == (403, "platform_only")


async def test_a_root_key_bound_to_a_keyspace_sees_that_one(api: Management) -> None:
    own, other = await api.make_keyspace(), await api.make_keyspace("leapter")
    organization = await api.make_organization()
    mine, theirs = await api.make_key(own, organization), await api.make_key(other, organization)
    secret = await api.make_root("keys:read", bound_keyspace_id=own.id)

    assert (await api.get(f"/v1/keys/{mine.id}", as_=secret)).status == 200
    assert (await api.get(f"/v1/keys/{theirs.id}", as_=secret)).status == 404
    assert (await api.get(f"/v1/keyspaces/{other.id}", as_=secret)).status == 404
    listed = await api.get("/v1/keyspaces", as_=secret)
    assert [one["id"] for one in listed.json["items"]] == [own.id, ROOT_KEYSPACE_ID]
    assert (await api.get(f"/v1/keys?keyspace_id={other.id}", as_=secret)).json["items"] == []


async def test_a_root_key_grants_no_more_than_it_holds(api: Management) -> None:
    secret = await api.make_root("keys:write", "root:write", "keys:read")
    body = {"keyspace_id": ROOT_KEYSPACE_ID, "name": "x"}
    less = await api.post("/v1/keys", {**body, "scopes": {"permissions": ["keys:read"]}}, as_=secret)
    more = await api.post("/v1/keys", {**body, "scopes": {"permissions": ["plans:write"]}}, as_=secret)

    assert less.status == 201
    assert (more.status, more.code) == (403, "permission_denied")


async def test_who_asked_is_in_the_audit_and_never_their_secret(api: Management) -> None:
    made = await api.create()
    await api.do(c.Tick())
    stored = b"".join(one.data for one in api.storage.events)

    assert made["secret"].encode() not in stored
    assert api.root.encode() not in stored
