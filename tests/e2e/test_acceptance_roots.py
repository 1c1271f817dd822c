"""Root keys over the wire, by the contract: who may ask, for what, and what they never see."""

import pytest

from tests.e2e.running import ROOT_KEYSPACE, UNIT, Caller, Json, Made, Running, done, refused

ORDINARY = [
    "keys:read",
    "keys:write",
    "verify",
    "charges:write",
    "usage:read",
    "organizations:read",
    "wallets:read",
    "plans:read",
    "audit:read",
    "events:read",
    "webhooks:write",
    "edges:connect",
]
PLATFORMS = [
    "keyspaces:write",
    "organizations:write",
    "wallets:write",
    "plans:write",
    "metrics:read",
    "root:write",
]
NOWHERE = "0" * 25 + "1"


@pytest.fixture(scope="module")
def acme(running: Running) -> str:
    return running.organization(UNIT)


@pytest.fixture(scope="module")
def bound(running: Running, acme: str) -> Caller:
    """A root key of one organization, with all that it may have."""
    return running.root_caller(*ORDINARY, organization_id=acme)


@pytest.fixture(scope="module")
def stranger(running: Running) -> Made:
    """A key of another organization."""
    return running.key(running.organization(UNIT))


# -- who it is


@pytest.mark.parametrize("shown", [None, "Bearer kl_root_nonsense", "Basic eDp5", "kl_root_x", "Bearer "])
def test_without_a_root_key_nobody_manages(running: Running, shown: str | None) -> None:
    headers = {} if shown is None else {"Authorization": shown}

    asked = {"secret": "x", "keyspace_id": running.main}
    for method, path, body in (("GET", "/v1/keys", None), ("POST", "/v1/verify", asked)):
        answer = running.as_root(None).ask(method, path, body, **headers)
        refused(answer, 401, "unauthenticated")
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_an_ordinary_key_manages_nothing(running: Running, acme: str) -> None:
    refused(running.as_root(running.key(acme).secret).ask("GET", "/v1/keys"), 401, "unauthenticated")


def test_a_root_key_is_a_key_of_the_built_in_keyspace(running: Running) -> None:
    made = running.root_made("keys:read")

    assert made.secret.startswith("kl_root_")
    assert made.key["keyspace_id"] == ROOT_KEYSPACE
    assert made.key["organization_id"] is None
    assert made.key["scopes"]["permissions"] == ["keys:read"]
    listed = running.read("/v1/keys", keyspace_id=ROOT_KEYSPACE, limit=500)["items"]
    assert made.id in [one["id"] for one in listed]
    assert ROOT_KEYSPACE in [one["id"] for one in running.read("/v1/keyspaces", limit=500)["items"]]


def test_a_root_keys_secret_is_never_valid_as_an_ordinary_one(running: Running) -> None:
    secret = running.root_made("keys:read").secret

    for keyspace_id in (ROOT_KEYSPACE, running.main):
        asked = {"secret": secret, "keyspace_id": keyspace_id}
        answer = running.root.ask("POST", "/v1/verify", asked)
        assert answer.status == 404 or answer.body["valid"] is False
    assert running.as_root(secret).ask("GET", "/v1/self").status == 401


def test_a_root_key_that_was_stopped_is_nobody(running: Running) -> None:
    for what in ("revoke", "disable", "rotate"):
        made = running.root_made("keys:read")
        caller = running.as_root(made.secret)
        assert caller.ask("GET", "/v1/keys").status == 200
        running.root.ask("POST", f"/v1/keys/{made.id}/{what}", {})
        refused(caller.ask("GET", "/v1/keys"), 401, "unauthenticated")


# -- what it may


NEEDED: list[tuple[str, str, str, Json | None]] = [
    ("keys:read", "GET", "/v1/keys", None),
    ("keys:read", "GET", f"/v1/keys/key_{NOWHERE}/history", None),
    ("keys:write", "POST", f"/v1/keys/key_{NOWHERE}/revoke", {}),
    ("verify", "POST", "/v1/verify", {"secret": "x"}),
    ("charges:write", "POST", "/v1/charges", {}),
    ("charges:write", "POST", f"/v1/reservations/rsv_{NOWHERE}/release", {}),
    ("usage:read", "GET", f"/v1/keys/key_{NOWHERE}/usage", None),
    ("usage:read", "GET", "/v1/requests/r", None),
    ("organizations:read", "GET", "/v1/organizations", None),
    ("wallets:read", "GET", f"/v1/organizations/org_{NOWHERE}/wallet", None),
    ("plans:read", "GET", "/v1/plans", None),
    ("audit:read", "GET", "/v1/audit", None),
    ("events:read", "GET", "/v1/events", None),
    ("keyspaces:write", "POST", "/v1/keyspaces", {"name": "x", "prefix": "x_"}),
    ("organizations:write", "POST", "/v1/organizations", {"name": "x"}),
    ("wallets:write", "POST", f"/v1/organizations/org_{NOWHERE}/wallet/credits", {}),
    ("plans:write", "POST", "/v1/plans", {}),
]


@pytest.mark.parametrize("permission,method,path,body", NEEDED, ids=[f"{n[1]} {n[2]}" for n in NEEDED])
def test_every_route_needs_its_permission(
    running: Running, permission: str, method: str, path: str, body: Json | None
) -> None:
    without = running.root_caller("webhooks:write")
    told = refused(without.ask(method, path, body), 403, "permission_denied")
    assert permission in told["detail"]

    assert running.root_caller(permission).ask(method, path, body).status not in {401, 403}


def test_explicit_permissions_only(running: Running) -> None:
    asked = {"keyspace_id": ROOT_KEYSPACE, "name": "x"}
    unclear: list[Json] = [{}, *({"permissions": some} for some in ("*", ["everything"], []))]

    for scopes in unclear:
        answer = running.root.ask("POST", "/v1/keys", asked | {"scopes": scopes})
        assert (answer.status, answer.code) in {(400, "invalid_request"), (422, "empty_scope")}, scopes


def test_acting_on_root_keys_needs_root_write(running: Running) -> None:
    made, clerk = running.root_made("keys:read"), running.root_caller("keys:read", "keys:write")

    asked = {"keyspace_id": ROOT_KEYSPACE, "name": "x", "scopes": {"permissions": ["keys:read"]}}
    refused(clerk.ask("POST", "/v1/keys", asked), 403, "permission_denied")
    for what in ("rotate", "disable", "revoke"):
        refused(clerk.ask("POST", f"/v1/keys/{made.id}/{what}", {}), 403, "permission_denied")
    refused(clerk.ask("PATCH", f"/v1/keys/{made.id}", {"name": "x"}), 403, "permission_denied")
    refused(clerk.ask("DELETE", f"/v1/keys/{made.id}"), 403, "permission_denied")


def test_nobody_gives_or_takes_over_more_than_they_hold(running: Running) -> None:
    giver = running.root_caller("keys:write", "root:write", "keys:read")
    asked: Json = {"keyspace_id": ROOT_KEYSPACE, "name": "x"}
    more = asked | {"scopes": {"permissions": ["keys:read", "wallets:write"]}}
    refused(giver.ask("POST", "/v1/keys", more), 403, "permission_denied")
    equal = done(giver.ask("POST", "/v1/keys", asked | {"scopes": {"permissions": ["keys:read"]}}), 201)

    path = f"/v1/keys/{equal['key']['id']}/scopes"
    refused(giver.ask("PATCH", path, {"permissions": ["audit:read"]}), 403, "permission_denied")
    mighty = running.root_made("keys:read", "wallets:write")
    refused(giver.ask("POST", f"/v1/keys/{mighty.id}/rotate", {}), 403, "permission_denied")


# -- bound to an organization


def test_a_bound_root_key_sees_its_own_organization(running: Running, acme: str, bound: Caller) -> None:
    made = running.key(acme)

    assert bound.get(f"/v1/keys/{made.id}")["id"] == made.id
    assert bound.get(f"/v1/organizations/{acme}")["id"] == acme
    assert [one["id"] for one in bound.get("/v1/organizations")["items"]] == [acme]
    assert bound.get(f"/v1/organizations/{acme}/wallet")["available_micros"] == UNIT
    assert bound.post("/v1/verify", {"secret": made.secret, "keyspace_id": running.main})["valid"]
    mine = bound.post("/v1/keys", {"keyspace_id": running.main, "organization_id": acme, "name": "x"}, 201)
    assert mine["key"]["organization_id"] == acme


def test_everybody_elses_things_are_not_there(running: Running, bound: Caller, stranger: Made) -> None:
    theirs = stranger.key["organization_id"]
    request_id = running.name("use")
    use = {"key_id": stranger.id, "request_id": request_id, "amount_micros": 1}
    charge = running.root.post("/v1/charges", use, 201)["charge"]
    hold = running.root.post("/v1/reservations", use | {"request_id": running.name("hold")}, 201)
    project_id = running.project(theirs)
    nothing: list[tuple[str, str, Json | None]] = [
        ("GET", f"/v1/keys/{stranger.id}", None),
        ("GET", f"/v1/keys/{stranger.id}/history", None),
        ("GET", f"/v1/keys/{stranger.id}/usage", None),
        ("PATCH", f"/v1/keys/{stranger.id}", {"name": "mine"}),
        ("PATCH", f"/v1/keys/{stranger.id}/scopes", {"models": ["a"]}),
        ("POST", f"/v1/keys/{stranger.id}/rotate", {}),
        ("POST", f"/v1/keys/{stranger.id}/disable", {}),
        ("POST", f"/v1/keys/{stranger.id}/enable", {}),
        ("POST", f"/v1/keys/{stranger.id}/revoke", {}),
        ("DELETE", f"/v1/keys/{stranger.id}", None),
        ("POST", "/v1/keys", {"keyspace_id": running.main, "organization_id": theirs, "name": "x"}),
        ("GET", f"/v1/organizations/{theirs}", None),
        ("GET", f"/v1/organizations/{theirs}/usage", None),
        ("GET", f"/v1/organizations/{theirs}/projects", None),
        ("GET", f"/v1/organizations/{theirs}/projects/{project_id}", None),
        ("GET", f"/v1/organizations/{theirs}/wallet", None),
        ("GET", f"/v1/organizations/{theirs}/wallet/statement", None),
        ("POST", "/v1/charges", use),
        ("POST", f"/v1/charges/{charge['id']}/refund", {"request_id": "r"}),
        ("POST", "/v1/reservations", use | {"expires_in_seconds": 9}),
        ("GET", f"/v1/reservations/{hold['reservation']['id']}", None),
        (
            "POST",
            f"/v1/reservations/{hold['reservation']['id']}/capture",
            {"request_id": "r", "amount_micros": 1},
        ),
        ("POST", f"/v1/reservations/{hold['reservation']['id']}/release", {}),
        ("GET", f"/v1/requests/{request_id}", None),
        ("POST", "/v1/explain", {"key_id": stranger.id}),
    ]

    for method, path, body in nothing:
        told = refused(bound.ask(method, path, body), 404, "not_found")
        assert "permission" not in told, path
    among_many = bound.post("/v1/keys/revoke", {"key_ids": [stranger.id]})["results"]
    assert among_many == [{"key_id": stranger.id, "revoked": False, "code": "not_found"}]
    assert running.verify(stranger.secret)["valid"]


def test_everybody_elses_lines_are_in_no_list(running: Running, bound: Caller, stranger: Made) -> None:
    theirs = stranger.key["organization_id"]
    lists = ["/v1/keys?limit=500", "/v1/audit?limit=500", "/v1/events?limit=500", "/v1/organizations"]

    for path in lists:
        assert theirs.encode() not in done_raw(bound, path)
        asked = f"{path}{'&' if '?' in path else '?'}organization_id={theirs}"
        if path != "/v1/organizations":
            assert bound.ask("GET", asked).body["items"] == []


def done_raw(caller: Caller, path: str) -> bytes:
    answer = caller.ask("GET", path)
    assert answer.status == 200
    return answer.raw


def test_everybody_elses_secrets_are_not_found(running: Running, bound: Caller, stranger: Made) -> None:
    asked = {"secret": stranger.secret, "keyspace_id": running.main}
    verdict = bound.post("/v1/verify", asked)
    assert (verdict["code"], "key_id" in verdict) == ("not_found", False)

    charge = asked | {"request_id": "r", "amount_micros": 1}
    refused(bound.ask("POST", "/v1/charges", charge), 403, "not_found")
    assert bound.post("/v1/explain", asked)["code"] == "not_found"
    proxied = running.as_root(None).ask(
        "GET",
        f"/v1/forward-auth?keyspace_id={running.main}",
        None,
        X_Keyledger_Proxy_Key=str(bound.secret),
        Authorization=f"Bearer {stranger.secret}",
    )
    assert (proxied.status, proxied.code) == (401, "not_found")


def test_the_platforms_powers_are_the_platforms(running: Running, acme: str, bound: Caller) -> None:
    made = running.key(acme, quotas=[{"unit": "micros", "window": "day", "limit": 5}])
    plan_id = running.plan()
    path, asked = f"/v1/keys/{made.id}", {"keyspace_id": running.main, "organization_id": acme, "name": "x"}
    refused(bound.ask("PATCH", path, {"plan_id": plan_id}), 403, "platform_only")
    refused(bound.ask("POST", "/v1/keys", asked | {"plan_id": plan_id}), 403, "platform_only")
    credit = {"amount_micros": UNIT, "reference": "gift"}
    wallet = f"/v1/organizations/{acme}/wallet"
    for answer in (
        bound.ask("POST", f"{wallet}/credits", credit),
        bound.ask("PATCH", wallet, {"credit_limit_micros": None}),
        bound.ask("PATCH", f"/v1/organizations/{acme}", {"quotas": []}),
        bound.ask("POST", f"/v1/organizations/{acme}/suspend", {}),
        bound.ask("POST", "/v1/organizations", {"name": "x"}),
        bound.ask("POST", "/v1/keyspaces", {"name": "x", "prefix": "x_"}),
        bound.ask("POST", "/v1/plans", {"name": "x", "models": "*", "price_multiplier": "0"}),
    ):
        assert answer.code in {"permission_denied", "platform_only"}
        assert answer.status == 403


@pytest.mark.parametrize("permission", PLATFORMS)
def test_a_bound_root_key_cannot_hold_the_platforms_permissions(
    running: Running, acme: str, permission: str
) -> None:
    asked = {
        "keyspace_id": ROOT_KEYSPACE,
        "organization_id": acme,
        "name": "x",
        "scopes": {"permissions": [permission]},
    }
    answer = running.root.ask("POST", "/v1/keys", asked)

    assert answer.status in {400, 403}, answer.raw


def test_a_suspended_organizations_keys_all_stop(running: Running) -> None:
    organization_id = running.organization(UNIT)
    made = running.key(organization_id)
    bound = running.root_caller("keys:read", organization_id=organization_id)
    suspended = running.root.post(f"/v1/organizations/{organization_id}/suspend", {"reason": "unpaid"})
    assert (suspended["status"], suspended["fence"]["held"]) == ("suspended", True)

    assert running.verify(made.secret)["code"] == "organization_suspended"
    use = {"key_id": made.id, "request_id": running.name("use"), "amount_micros": 1}
    refused(running.root.ask("POST", "/v1/charges", use), 403, "organization_suspended")
    refused(bound.ask("GET", "/v1/keys"), 403, "organization_suspended")
    resumed = running.root.post(f"/v1/organizations/{organization_id}/resume")
    assert resumed["status"] == "active"
    assert running.verify(made.secret)["valid"]
    assert bound.ask("GET", "/v1/keys").status == 200


# -- bound to a keyspace


def test_a_root_key_may_be_bound_to_a_keyspace(running: Running, acme: str) -> None:
    keyspace_id = running.keyspace(prefix=running.prefix())
    inside, outside = running.key(acme, keyspace_id), running.key(acme)
    caller = running.root_caller(*ORDINARY, bound_keyspace_id=keyspace_id)

    assert caller.post("/v1/verify", {"secret": inside.secret})["valid"]
    charge = {"secret": inside.secret, "request_id": running.name("use"), "amount_micros": 1}
    assert caller.post("/v1/charges", charge, 201)["charge"]["key_id"] == inside.id
    assert caller.get(f"/v1/keys/{inside.id}")["id"] == inside.id
    refused(caller.ask("GET", f"/v1/keys/{outside.id}"), 404, "not_found")
    refused(caller.ask("POST", f"/v1/keys/{outside.id}/revoke", {}), 404, "not_found")
    use = {"key_id": outside.id, "request_id": running.name("use"), "amount_micros": 1}
    refused(caller.ask("POST", "/v1/charges", use), 404, "not_found")
    asked = {"secret": outside.secret, "keyspace_id": running.main}
    refused(caller.ask("POST", "/v1/verify", asked), 404, "not_found", "keyspace_id")
    new = {"keyspace_id": running.main, "organization_id": acme, "name": "x"}
    refused(caller.ask("POST", "/v1/keys", new), 404, "not_found", "keyspace_id")
    assert outside.id.encode() not in done_raw(caller, f"/v1/keys?organization_id={acme}&limit=500")


# -- the proxy's own key


def test_a_proxy_shows_a_root_key_with_verify(running: Running, acme: str) -> None:
    made, nobody = running.key(acme), running.as_root(None)
    path = f"/v1/forward-auth?keyspace_id={running.main}"
    shown = {"Authorization": f"Bearer {made.secret}"}
    lame = running.root_made("keys:read").secret
    able = running.root_made("verify").secret
    bound = running.root_made("verify", bound_keyspace_id=running.main).secret
    behind = "/v1/forward-auth/some/path"

    refused(nobody.ask("GET", path, None, **shown), 401, "proxy_unauthenticated")
    for wrong in ("nonsense", lame, made.secret):
        answer = nobody.ask("GET", path, None, X_Keyledger_Proxy_Key=wrong, **shown)
        refused(answer, 401, "proxy_unauthenticated")
    for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"):
        for where, own in ((path, able), (path, bound), (f"{behind}?keyspace_id=ks_other", bound)):
            answer = nobody.ask(method, where, None, X_Keyledger_Proxy_Key=own, **shown)
            assert (answer.status, answer.headers["X-Keyledger-Key-Id"]) == (200, made.id)
    chosen = nobody.ask(
        "GET", f"{behind}?keyspace_id={running.main}", None, X_Keyledger_Proxy_Key=able, **shown
    )
    refused(chosen, 400, "invalid_request", "X-Keyledger-Proxy-Key")
