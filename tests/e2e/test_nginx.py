"""Debian's nginx in front, with the snippets that ship: every denial keeps its own status."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from domain import commands as c
from domain.keyspaces import Keyspace
from keyledger_edge import RateLimit
from services.api.serving.server import listen, serve
from tests.api.quick.world import Owned, World, running_world

pytestmark = pytest.mark.nginx

SNIPPETS = Path(__file__).parents[2] / "infra" / "deploy" / "nginx"
NGINX = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])) or "nginx"

CONFIG = """
{user}
daemon off;
worker_processes 1;
pid "{folder}/nginx.pid";
error_log "{folder}/error.log";
events {{ }}
http {{
    access_log off;
    client_body_temp_path "{folder}/body";
    proxy_temp_path "{folder}/proxy";
    fastcgi_temp_path "{folder}/fastcgi";
    uwsgi_temp_path "{folder}/uwsgi";
    scgi_temp_path "{folder}/scgi";
    upstream keyledger {{ server 127.0.0.1:{ledger}; keepalive 8; }}
    upstream gateway {{ server 127.0.0.1:{gateway}; keepalive 8; }}
    include "{snippets}/keyledger-http.conf";
    server {{
        listen 127.0.0.1:{port};
        set $keyledger_proxy_key "{root}";
        set $keyledger_keyspace "{keyspace}";
        include "{snippets}/keyledger-server.conf";
        location /open {{ proxy_pass http://gateway; }}
        location / {{
            include "{snippets}/keyledger-protect.conf";
            proxy_pass http://gateway;
        }}
        location /paid {{
            set $keyledger_cost 600;
            set $keyledger_use_id $http_x_call;
            include "{snippets}/keyledger-protect.conf";
            proxy_pass http://gateway;
        }}
        location /chat {{
            set $keyledger_permission chat;
            include "{snippets}/keyledger-protect.conf";
            proxy_pass http://gateway;
        }}
    }}
}}
"""


class Front(NamedTuple):
    """nginx before a gateway, with the ledger at its side."""

    world: World
    keyspace: Keyspace
    url: str
    session: aiohttp.ClientSession
    stop_ledger: asyncio.Event

    async def get(
        self, path: str, owned: Owned | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if owned is not None:
            named["Authorization"] = f"Bearer {owned.secret}"
        async with self.session.get(self.url + path, headers=named) as reply:
            told = {name.lower(): value for name, value in reply.headers.items()}
            return reply.status, told, await reply.text()

    async def code(self, path: str, owned: Owned | None = None, **headers: str) -> tuple[int, str]:
        status, told, body = await self.get(path, owned, **headers)
        assert told["content-type"] == "application/problem+json", body
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["detail"]
        return status, problem["code"]


async def gateway(scope: dict[str, object], receive: object, send: object) -> None:
    """The upstream: says which headers of ours it was given."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]  # type: ignore[assignment]  # ASGI's
    said = b"\n".join(b"%s: %s" % pair for pair in sorted(headers) if pair[0].startswith(b"x-keyledger"))
    await send({"type": "http.response.start", "status": 200, "headers": []})  # type: ignore[operator]  # ASGI's
    await send({"type": "http.response.body", "body": said})  # type: ignore[operator]  # ASGI's


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with running_world() as world, contextlib.AsyncExitStack() as stack:
        keyspace = await world.make_keyspace("leanmcp", denial_status={"tenant_denied": 404})
        listeners = listen("127.0.0.1", 0), listen("127.0.0.1", 0)
        port = free_port()
        stop, stop_ledger = asyncio.Event(), asyncio.Event()
        tasks = [
            asyncio.create_task(serve(world.app, [listeners[0]], stop_ledger)),
            asyncio.create_task(serve(gateway, [listeners[1]], stop)),
        ]
        folder = tmp_path / "with a space"
        shutil.copytree(SNIPPETS, folder / "snippets")
        config = folder / "nginx.conf"
        config.write_text(
            CONFIG.format(
                user="user root;" if os.geteuid() == 0 else "",
                folder=folder,
                ledger=listeners[0].getsockname()[1],
                gateway=listeners[1].getsockname()[1],
                port=port,
                root=await world.make_root("verify", bound_keyspace_id=keyspace.id),
                keyspace=keyspace.id,
                snippets=folder / "snippets",
            )
        )
        nginx = await asyncio.create_subprocess_exec(
            NGINX, "-c", str(config), "-p", str(folder), stderr=subprocess.PIPE
        )
        session = await stack.enter_async_context(aiohttp.ClientSession())
        try:
            await until_listening(port, nginx)
            yield Front(world, keyspace, f"http://127.0.0.1:{port}", session, stop_ledger)
        finally:
            nginx.terminate()
            await nginx.communicate()
            stop.set()
            stop_ledger.set()
            await asyncio.gather(*tasks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until_listening(port: int, nginx: asyncio.subprocess.Process) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if nginx.returncode is not None:
            assert nginx.stderr is not None
            pytest.fail((await nginx.stderr.read()).decode())
        await asyncio.sleep(0.01)
    pytest.fail("nginx did not listen")


async def test_a_good_key_reaches_the_upstream_with_its_identity(front: Front) -> None:
    acme = await front.world.make_organization(credit=1_000)
    owned = await front.world.make_key(front.keyspace, acme)

    forged = {"X_Keyledger_Key_Id": "key_forged", "X_Keyledger_Plan_Id": "plan_forged"}
    status, _, body = await front.get("/v1/models", owned, **forged)

    assert status == 200
    assert body.splitlines() == [
        "x-keyledger-code: valid",
        f"x-keyledger-key-id: {owned.id}",
        f"x-keyledger-organization-id: {acme.id}",
    ]


async def test_denials_keep_their_status_and_say_why(front: Front) -> None:
    world = front.world
    acme, poor = await world.make_organization(credit=1_000), await world.make_organization()
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    good = await world.make_key(front.keyspace, acme)
    revoked = await world.make_key(front.keyspace, acme)
    await world.do(c.RevokeKey(key_id=revoked.id))
    broke = await world.make_key(front.keyspace, poor)
    fast = await world.make_key(front.keyspace, acme, rate_limits=limits)
    reader = await world.make_key(front.keyspace, acme, scopes=c.NewScopes(permissions=("read",)))
    company = await world.make_key(front.keyspace, acme, kind="client")
    await front.get("/", fast)

    assert await front.code("/") == (401, "missing")
    assert await front.code("/", Authorization="Bearer nonsense") == (401, "malformed")
    assert await front.code("/", revoked) == (401, "revoked")
    assert await front.code("/chat", reader) == (403, "permission_denied")
    assert await front.code("/", broke) == (402, "billing_shortfall")
    assert await front.code("/", fast) == (429, "rate_limited")
    assert await front.code("/", company) == (404, "tenant_denied")
    assert (await front.get("/chat", good))[0] == 200


async def test_a_denial_carries_the_headers_that_clients_act_on(front: Front) -> None:
    acme = await front.world.make_organization(credit=1_000)
    limits = (RateLimit(name="burst", limit=1, window_seconds=10),)
    fast = await front.world.make_key(front.keyspace, acme, rate_limits=limits)

    _, first, _ = await front.get("/", fast)
    _, second, _ = await front.get("/", fast)
    _, missing, _ = await front.get("/")

    assert (first["ratelimit"], first["ratelimit-policy"]) == ('"burst";r=0;t=10', '"burst";q=1;w=10')
    assert (second["retry-after"], second["x-keyledger-code"]) == ("10", "rate_limited")
    assert missing["www-authenticate"].startswith("Bearer")


async def test_a_price_is_charged_in_the_same_decision_once_per_request_id(front: Front) -> None:
    acme = await front.world.make_organization(credit=1_000)
    owned = await front.world.make_key(front.keyspace, acme)

    statuses = [(await front.get("/paid", owned, X_Call=call))[0] for call in ("c1", "c1", "c2")]

    assert statuses == [200, 200, 402]
    assert front.world.balance(acme) == 400


async def test_a_client_cannot_say_what_its_use_is_or_costs(front: Front) -> None:
    acme = await front.world.make_organization(credit=1_000)
    scopes = c.NewScopes(permissions=("read",))
    owned = await front.world.make_key(front.keyspace, acme, scopes=scopes)

    denied = await front.code("/chat", owned, X_Keyledger_Permission="read")
    status, _, _ = await front.get("/", owned, X_Keyledger_Cost_Micros="900", X_Keyledger_Request_Id="r")

    assert denied == (403, "permission_denied")
    assert status == 200
    assert front.world.balance(acme) == 1_000


async def test_nothing_goes_through_while_the_ledger_does_not_answer(front: Front) -> None:
    acme = await front.world.make_organization(credit=1_000)
    owned = await front.world.make_key(front.keyspace, acme)
    front.stop_ledger.set()
    await asyncio.sleep(0.5)

    assert await front.code("/", owned) == (503, "ledger_unreachable")
    assert (await front.get("/open"))[0] == 200


async def test_the_ledgers_own_location_is_not_reachable_from_outside(front: Front) -> None:
    status, _, _ = await front.get("/_keyledger")

    assert status == 404
