"""The middleware in front of an application."""

from __future__ import annotations

from typing import Any

import pytest
from litestar import Litestar, Request, get
from litestar.middleware import DefineMiddleware

from keyledger_edge import KeyledgerMiddleware, Scopes, Use, Verifier
from keyledger_edge.testing import FakeLedger
from tests.edge.asgi import call


async def hello(scope: Any, receive: Any, send: Any) -> None:
    verdict = scope.get("state", {}).get("keyledger")
    body = (verdict.key_id if verdict else "nobody").encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def bearer(secret: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}", **more}


async def test_a_good_key_reaches_the_application_with_its_verdict(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier())
    answered = await call(app, "/", headers=bearer(ledger.add_key(key_id="key_7")))

    assert (answered.status, answered.body) == (200, b"key_7")


async def test_a_bad_key_is_answered_before_the_application(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier())
    secret = ledger.add_key()
    ledger.revoke(secret)
    answered = await call(app, "/", headers=bearer(secret))

    assert answered.status == 401
    assert answered.json()["code"] == "revoked"
    assert "www-authenticate" in answered.headers
    assert secret.encode() not in answered.body


async def test_no_key_and_two_keys_are_refused(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier())
    one, other = ledger.add_key(), ledger.add_key()

    assert (await call(app, "/")).json()["code"] == "missing"
    two = await call(app, "/", headers=bearer(one, **{"X-API-Key": other}))
    assert (two.status, two.json()["code"]) == (400, "ambiguous_credentials")


async def test_an_exempt_path_needs_no_key(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier(), exempt=("/healthz", "/public/*"))

    assert (await call(app, "/healthz")).body == b"nobody"
    assert (await call(app, "/public/a")).body == b"nobody"
    assert (await call(app, "/healthz/x")).status == 401


async def test_the_application_says_what_the_use_is_not_the_client(ledger: FakeLedger) -> None:
    secret = ledger.add_key(scopes=Scopes(models=("small",)))
    app = KeyledgerMiddleware(hello, ledger.verifier(), use=lambda _scope: Use(model="large"))
    answered = await call(app, "/", headers=bearer(secret, **{"X-Keyledger-Model": "small"}))

    assert answered.json()["code"] == "model_denied"


async def test_a_cost_is_charged_once_per_request_id(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier(), cost_micros=lambda _scope: 250)
    headers = bearer(ledger.add_key(), **{"X-Keyledger-Request-Id": "r1", "X-Keyledger-Cost-Micros": "1"})
    for _ in range(2):
        assert (await call(app, "/", headers=headers)).status == 200

    assert ledger.charges == {"r1": 250}


async def test_a_ledger_out_of_reach_is_a_503(ledger: FakeLedger) -> None:
    app = KeyledgerMiddleware(hello, ledger.verifier())
    secret = ledger.add_key()
    ledger.reachable = False
    answered = await call(app, "/", headers=bearer(secret))

    assert (answered.status, answered.headers["retry-after"]) == (503, "1")


async def test_before_the_first_connection_every_key_is_a_503() -> None:
    verifier = Verifier.at("http://127.0.0.1:9", "kl_root_x")
    answered = await call(KeyledgerMiddleware(hello, verifier), "/", headers=bearer("whatever"))

    assert answered.status == 503


async def test_a_websocket_with_a_bad_key_is_never_accepted(ledger: FakeLedger) -> None:
    said: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    scope: dict[str, Any] = {
        "type": "websocket",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "client": None,
    }
    await KeyledgerMiddleware(hello, ledger.verifier())(scope, receive, send)

    assert [one["type"] for one in said] == ["websocket.close"]


async def test_it_guards_a_litestar_application(ledger: FakeLedger) -> None:
    @get("/whoami")
    async def whoami(request: Request[Any, Any, Any]) -> dict[str, str | None]:
        return {"organization": request.scope["state"]["keyledger"].organization_id}

    guard = DefineMiddleware(KeyledgerMiddleware, verifier=ledger.verifier())
    app = Litestar([whoami], middleware=[guard])
    secret = ledger.add_key(organization_id="org_7")

    assert (await call(app, "/whoami", headers=bearer(secret))).json() == {"organization": "org_7"}
    assert (await call(app, "/whoami")).status == 401
