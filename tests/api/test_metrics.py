"""Who may read the metrics, and what they tell of root keys that do not work."""

from __future__ import annotations

import re

import pytest

from domain import commands as c
from domain.errors import InvalidError
from services.settings import load_settings
from tests.api.quick.world import call
from tests.api.world import Management

SETTINGS = """
    KEYLEDGER_HOST   KEYLEDGER_METRICS   needs a key
    127.0.0.1        auto                no
    127.0.0.2        auto                no
    ::1              auto                no
    localhost        auto                no
    0.0.0.0          auto                yes
    ::               auto                yes
    10.1.2.3         auto                yes
    ledger.internal  auto                yes
    0.0.0.0          open                no
    127.0.0.1        key                 yes
"""


@pytest.mark.parametrize("row", SETTINGS.strip().splitlines()[1:])
def test_metrics_are_open_on_loopback_and_elsewhere_for_root_keys(row: str) -> None:
    host, metrics, needed = row.split()
    settings = load_settings({"KEYLEDGER_HOST": host, "KEYLEDGER_METRICS": metrics})

    assert settings.metrics_need_a_key == (needed == "yes")


async def test_open_metrics_ask_for_nothing(api: Management) -> None:
    reply = await call(api.app, "GET", "/metrics")

    assert (reply.status, reply.headers["content-type"].split(";")[0]) == (200, "text/plain")


async def test_metrics_that_are_not_open_need_a_root_key_that_may_read_them(api: Management) -> None:
    api.serve(metrics_need_a_key=True)
    reader, other = await api.make_root("metrics:read"), await api.make_root("keys:read", "audit:read")

    nobody = await call(api.app, "GET", "/metrics")
    refused = await api.ask("GET", "/metrics", as_=other)
    read = await api.ask("GET", "/metrics", as_=reader)

    assert (nobody.status, nobody.code) == (401, "unauthenticated")
    assert (refused.status, refused.code) == (403, "permission_denied")
    assert (read.status, b"keyledger_keys" in read.body) == (200, True)
    assert (await api.ask("GET", "/healthz", as_=None)).status == 200
    assert (await api.ask("GET", "/v1/keys", as_=reader)).status == 403


async def test_metrics_are_the_platforms(api: Management) -> None:
    acme = await api.make_organization()

    with pytest.raises(InvalidError, match="metrics:read"):
        await api.make_root("metrics:read", organization_id=acme.id)


async def test_every_request_that_is_refused_for_its_root_key_is_counted_by_what_is_wrong(
    api: Management,
) -> None:
    keyspace = await api.make_keyspace()
    revoked = await api.make_root("keys:read")
    dead = list(api.ledger.books.keys.values())[-1]
    fenced_in = await api.make_root("keys:read", allowed_ips=("10.0.0.0/8",))
    await api.do(c.RevokeKey(key_id=dead.id))
    twice = [("Authorization", "Bearer a"), ("Authorization", "Bearer b")]

    await call(api.app, "GET", "/v1/keys")
    for shown in ("kl_root_guessed", "kl_root_guessed", revoked, fenced_in):
        await call(api.app, "GET", "/v1/keys", headers={"Authorization": f"Bearer {shown}"})
    await call(api.app, "GET", "/v1/keys", headers=twice)
    await call(
        api.app, "GET", f"/v1/forward-auth?keyspace_id={keyspace.id}",
        headers={"X-Keyledger-Proxy-Key": "kl_root_guessed"},
    )  # fmt: skip

    counted = (await api.get("/metrics")).body.decode()
    told = re.findall(r'^keyledger_root_keys_refused_total\{reason="(\w+)"\} (\S+)$', counted, re.MULTILINE)

    assert dict(told) == {
        "missing": "1.0", "not_found": "3.0", "revoked": "1.0", "ip_denied": "1.0", "ambiguous": "1.0",
    }  # fmt: skip
    assert "kl_root_guessed" not in counted
