"""The sidecar, as seen by proxies and programs on the same machine."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from keyledger_edge import KeyspaceView, RateLimit, SecretFormat, SecretShape, Sidecar, Verifier
from keyledger_edge.testing import FakeLedger
from keyledger_language.messages import VerifyRequest
from keyledger_language.verdicts import VerifyAnswer
from tests.edge.asgi import AtOnce, call


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture(params=["as usual", "at once"])
def sidecar(ledger: FakeLedger, request: pytest.FixtureRequest) -> Any:
    """Called in both ways that its server has: the answers are the same."""
    sidecar = Sidecar(ledger.verifier())
    return AtOnce(sidecar) if request.param == "at once" else sidecar


def key(secret: str, **more: str) -> dict[str, str]:
    return {"X-API-Key": secret, **more}


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/forward-auth", "/v1/forward-auth/v1/chat?model=x"])
async def test_any_method_is_answered_for_any_path(
    ledger: FakeLedger, sidecar: Sidecar, method: str, path: str
) -> None:
    answered = await call(sidecar, path, method=method, headers=key(ledger.add_key(key_id="key_7")))

    assert answered.status == 200
    assert answered.headers["x-keyledger-key-id"] == "key_7"


async def test_a_refusal_for_nginx_is_one_that_nginx_understands(
    ledger: FakeLedger, sidecar: Sidecar
) -> None:
    secret = ledger.add_key(rate_limits=(RateLimit(name="minute", limit=1, window_seconds=60),))
    await call(sidecar, "/v1/forward-auth?proxy=nginx", headers=key(secret))
    answered = await call(sidecar, "/v1/forward-auth?proxy=nginx", headers=key(secret))

    assert answered.status == 403
    assert answered.headers["x-keyledger-status"] == "429"
    assert int(answered.headers["retry-after"]) > 0


async def test_a_proxy_names_the_use_and_its_cost(ledger: FakeLedger, sidecar: Sidecar) -> None:
    use = {"X-Keyledger-Cost-Micros": "12", "X-Keyledger-Request-Id": "r1"}
    await call(sidecar, "/v1/forward-auth", headers=key(ledger.add_key(), **use))

    assert ledger.charges == {"r1": 12}


async def test_what_cannot_be_read_is_a_bad_request(ledger: FakeLedger, sidecar: Sidecar) -> None:
    answered = await call(
        sidecar, "/v1/forward-auth", headers=key(ledger.add_key(), **{"X-Keyledger-Cost-Micros": "-1"})
    )

    assert answered.status == 400


async def test_envoys_client_cannot_choose_the_keyspace(ledger: FakeLedger) -> None:
    other = KeyspaceView(keyspace_id="ks_other", shape=SecretShape(prefix="o_", format=SecretFormat()))
    verifier = ledger.verifier()
    verifier._keyspaces = {ledger.keyspace.keyspace_id: ledger.keyspace, "ks_other": other}
    sidecar = Sidecar(verifier, keyspace_id="ks_test")
    secret = ledger.add_key()

    chosen = await call(sidecar, "/v1/forward-auth/chat?keyspace_id=ks_other", headers=key(secret))
    at_root = await call(sidecar, "/v1/forward-auth/?keyspace_id=ks_other", headers=key(secret))
    named = await call(sidecar, "/v1/forward-auth?keyspace_id=ks_other", headers=key(secret))

    assert (chosen.status, at_root.status, named.status) == (200, 200, 401)
    assert (await call(sidecar, "/v1/forward-auth?keyspace_id=ks_none")).status == 404


async def test_verify_answers_like_the_ledger(ledger: FakeLedger, sidecar: Sidecar) -> None:
    secret = ledger.add_key(name="mine")
    answered = await call(sidecar, "/v1/verify", method="POST", body={"secret": secret})

    assert answered.json() == {
        "valid": True,
        "code": "valid",
        "key_id": "key_1",
        "organization_id": "org_test",
        "name": "mine",
        "kind": "solo",
        "scopes": {"permissions": "*", "projects": "*", "models": "*", "tenants": "*"},
        "position": "0-0",
    }


async def test_an_answer_is_as_new_as_the_key(ledger: FakeLedger, sidecar: Sidecar) -> None:
    secret = ledger.add_key(name="first")

    async def said() -> tuple[str, str]:
        answer = (await call(sidecar, "/v1/verify", method="POST", body={"secret": secret})).json()
        return answer["code"], answer["name"]

    assert [await said() for _ in range(2)] == [("valid", "first")] * 2
    ledger.change(secret, name="second")
    assert [await said() for _ in range(2)] == [("valid", "second")] * 2
    ledger.revoke(secret)
    assert [await said() for _ in range(2)] == [("revoked", "second")] * 2
    assert sidecar.answers == {"valid": 4, "revoked": 2}


async def test_what_only_the_ledger_knows_is_asked_of_it(ledger: FakeLedger, sidecar: Sidecar) -> None:
    secret = ledger.add_key(require_balance=True)

    verified = await call(sidecar, "/v1/verify", method="POST", body={"secret": secret})
    let_in = await call(sidecar, "/v1/forward-auth", headers=key(secret))
    ledger.reachable = False
    lost = await call(sidecar, "/v1/verify", method="POST", body={"secret": secret})
    shut_out = await call(sidecar, "/v1/forward-auth", headers=key(secret))

    assert (verified.json()["code"], let_in.status) == ("valid", 200)
    assert (lost.json()["code"], shut_out.status) == ("ledger_unreachable", 503)
    assert sidecar.answers == {"valid": 2, "ledger_unreachable": 2}


async def test_every_answer_names_its_length(ledger: FakeLedger, sidecar: Sidecar) -> None:
    secret = ledger.add_key()
    for asked in (
        call(sidecar, "/v1/verify", method="POST", body={"secret": secret}),
        call(sidecar, "/v1/verify", method="POST", body={"secret": "sk-nothing"}),
        call(sidecar, "/v1/verify", method="POST", body={"secret": secret, "keyspace_id": "ks_none"}),
        call(sidecar, "/v1/forward-auth", headers=key(secret)),
        call(sidecar, "/v1/forward-auth"),
        call(sidecar, "/healthz"),
    ):
        answered = await asked
        assert answered.headers["content-length"] == str(len(answered.body))


async def test_a_batch_is_answered_in_order(ledger: FakeLedger, sidecar: Sidecar) -> None:
    items = [{"secret": ledger.add_key()}, {"secret": "x"}, {"secret": ""}]
    answered = await call(sidecar, "/v1/verify/batch", method="POST", body={"items": items})

    assert [one["code"] for one in answered.json()["results"]] == ["valid", "malformed", "missing"]


@pytest.mark.parametrize("body", [{}, {"secret": 1}, {"secret": "x", "unknown": 1}, "x", None])
async def test_a_body_that_is_none_is_a_bad_request(sidecar: Sidecar, body: object) -> None:
    assert (await call(sidecar, "/v1/verify", method="POST", body=body)).status == 400


@pytest.mark.parametrize("path", ["/v1/verify", "/v1/verify/batch"])
async def test_a_body_that_is_nested_too_deep_is_a_bad_request(sidecar: Sidecar, path: str) -> None:
    deep = b'{"secret":"x","metadata":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"
    body = deep if path == "/v1/verify" else b'{"items":[' + deep + b"]}"
    answered = await call(sidecar, path, method="POST", body=msgspec.Raw(body))

    assert (answered.status, answered.json()["code"]) == (400, "malformed_body")


async def test_money_without_a_request_id_does_not_move(ledger: FakeLedger, sidecar: Sidecar) -> None:
    secret = ledger.add_key()
    for body in ({"cost_micros": 5}, {"reserve_micros": 5}, {"cost_micros": 0}):
        answered = await call(sidecar, "/v1/verify", method="POST", body={"secret": secret, **body})
        assert (answered.status, answered.json()["errors"][0]["field"]) == (400, "request_id")
    asked = await call(sidecar, "/v1/forward-auth", headers=key(secret, **{"X-Keyledger-Cost-Micros": "5"}))

    assert (asked.status, asked.json()["errors"][0]["field"]) == (400, "X-Keyledger-Request-Id")
    assert ledger.charges == {}


async def test_what_one_of_a_batch_is_refused_for_hides_no_charge(
    ledger: FakeLedger, sidecar: Sidecar
) -> None:
    secret = ledger.add_key()
    items = [
        {"secret": secret, "cost_micros": 5, "request_id": "r1"},
        {"secret": secret, "keyspace_id": "ks_none"},
        {"secret": secret, "cost_micros": 5},
        {"secret": secret, "cost_micros": 7, "request_id": "r2"},
    ]
    answered = await call(sidecar, "/v1/verify/batch", method="POST", body={"items": items})

    assert answered.status == 200
    assert [one["code"] for one in answered.json()["results"]] == [
        "valid", "not_found", "invalid_request", "valid",
    ]  # fmt: skip
    assert ledger.charges == {"r1": 5, "r2": 7}


async def test_the_metadata_of_a_charge_reaches_the_ledger(
    ledger: FakeLedger, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    asked = ledger.verify

    async def verify(request: VerifyRequest) -> VerifyAnswer:
        seen.append(request.metadata)
        return await asked(request)

    monkeypatch.setattr(ledger, "verify", verify)
    body = {"secret": ledger.add_key(), "cost_micros": 5, "request_id": "r1", "metadata": {"job": 7}}
    await call(sidecar, "/v1/verify", method="POST", body=body)

    assert seen == [{"job": 7}]


async def test_what_is_not_there_is_said(sidecar: Sidecar) -> None:
    assert (await call(sidecar, "/v1/keys")).status == 404
    assert (await call(sidecar, "/v1/verify")).status == 405


async def test_it_says_how_it_is(ledger: FakeLedger, sidecar: Sidecar) -> None:
    await call(sidecar, "/v1/forward-auth", headers=key(ledger.add_key()))

    assert (await call(sidecar, "/healthz")).status == 200
    assert (await call(sidecar, "/readyz")).status == 200
    assert b'keyledger_edge_verdicts_total{code="valid"} 1' in (await call(sidecar, "/metrics")).body


async def test_without_a_ledger_it_is_alive_not_ready_and_refuses() -> None:
    sidecar = Sidecar(Verifier.at("http://127.0.0.1:9", "kl_root_x"))

    assert (await call(sidecar, "/healthz")).status == 200
    assert (await call(sidecar, "/readyz")).status == 503
    assert (await call(sidecar, "/v1/forward-auth", headers=key("x"))).status == 503
    verified = await call(sidecar, "/v1/verify", method="POST", body={"secret": "x"})
    assert verified.json()["code"] == "ledger_unreachable"


@pytest.mark.parametrize("uri", ["/chat#?key=x", "/chat?a=\tb"])
async def test_an_original_uri_that_two_readers_might_read_differently_is_refused(
    ledger: FakeLedger, sidecar: Sidecar, uri: str
) -> None:
    shown = key(ledger.add_key(), **{"X-Original-URI": uri})

    assert (await call(sidecar, "/v1/forward-auth", headers=shown)).status == 400
