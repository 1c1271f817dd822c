"""Query parameters of the quick routes: what is not known is refused by its name, and never ignored."""

from __future__ import annotations

import pytest

from domain.organizations import Organization
from services.api.answering.answers import Answer
from tests.api.quick.test_forwarding import Beside
from tests.api.quick.test_forwarding import pair as pair
from tests.api.quick.world import Owned, World, call

ROUTES = [
    ("POST", "/v1/verify"),
    ("POST", "/v1/verify/batch"),
    ("POST", "/v1/charges"),
    ("POST", "/v1/charges/batch"),
    ("POST", "/v1/charges/chg_01J9AD700036G7JSKT864P1TPS/refund"),
    ("POST", "/v1/reservations"),
    ("GET", "/v1/reservations/rsv_01J9AD700036G7JSKT864P1TPS"),
    ("POST", "/v1/reservations/rsv_01J9AD700036G7JSKT864P1TPS/capture"),
    ("POST", "/v1/reservations/rsv_01J9AD700036G7JSKT864P1TPS/release"),
    ("GET", "/v1/self"),
    ("POST", "/v1/self/revoke"),
    ("POST", "/v1/explain"),
]


@pytest.mark.parametrize("method,path", ROUTES)
@pytest.mark.parametrize("query", ["as_of=0-1", "as_of", "keyspace_id=&as_of="])
async def test_a_parameter_that_is_not_known_is_refused_by_its_name(
    world: World, owned: Owned, method: str, path: str, query: str
) -> None:
    head = world.ledger.books.head
    body = {"key_id": owned.id, "request_id": "r", "amount_micros": 1}
    reply = await world.ask(method, f"{path}?{query}", body)

    assert (reply.status, reply.code) == (400, "invalid_request")
    known = "keyspace_id" if "keyspace_id" in query and "/self" not in path else "as_of"
    assert reply.json["errors"][0]["field"] == known
    assert world.ledger.books.head == head


@pytest.mark.parametrize("query", ["%ff=1", "x=%ff", "&".join("x=1" for _ in range(101))])
async def test_a_query_that_cannot_be_read_is_a_bad_request(world: World, query: str) -> None:
    reply = await world.post(f"/v1/verify?{query}", {})

    assert (reply.status, reply.code) == (400, "invalid_request")


async def test_a_secret_in_a_query_where_none_belongs_is_not_repeated(world: World, owned: Owned) -> None:
    for query in (f"{owned.secret}=1", f"key={owned.secret}", f"{'-' * 80}{owned.secret}=1"):
        reply = await world.post(f"/v1/verify?{query}", {})

        assert reply.status == 400
        assert owned.secret.removeprefix("kl_live_")[:5] not in str(reply)


async def test_forward_auth_takes_whatever_a_proxy_appends(world: World, owned: Owned) -> None:
    bound = await world.make_root("verify", bound_keyspace_id=owned.key.keyspace_id)
    headers = {"X-Keyledger-Proxy-Key": bound, "Authorization": f"Bearer {owned.secret}"}
    for target in (
        f"/v1/forward-auth?keyspace_id={owned.key.keyspace_id}&model=x",
        f"/v1/forward-auth/chat?keyspace_id={owned.key.keyspace_id}&model=x",
    ):
        assert (await call(world.app, "GET", target, headers=headers)).status == 200


async def test_a_holder_names_a_place_only_where_a_keyspace_takes_secrets(
    world: World, owned: Owned, acme: Organization
) -> None:
    in_url = await world.make_key(await world.make_keyspace("mindproxy"), acme)

    revoked = await call(world.app, "POST", f"/v1/self/revoke?fence=false&key={in_url.secret}")
    refused = await call(world.app, "POST", f"/v1/self/revoke?fence=false&api_key={owned.secret}")

    assert revoked.status == 202
    assert (refused.status, refused.json["errors"][0]["field"]) == (400, "api_key")


async def test_a_query_is_refused_at_once_too(world: World) -> None:
    scope = {
        "type": "http", "method": "POST", "path": "/v1/verify", "raw_path": b"/v1/verify",
        "query_string": b"as_of=0-1", "client": ("192.0.2.7", 1),
        "headers": [(b"authorization", f"Bearer {world.root}".encode())],
    }  # fmt: skip

    told = world.app.at_once(scope, b"{}")

    assert isinstance(told, Answer)
    assert (told.status, b"as_of" in told.body) == (400, True)


async def test_another_process_refuses_it_too(pair: tuple[World, Beside], owned: Owned) -> None:
    _, other = pair
    reply = await other.post("/v1/charges?as_of=0-1", {})

    assert (reply.status, reply.json["errors"][0]["field"]) == (400, "as_of")
