"""A gateway: a small reverse proxy that asks the ledger's forward-auth, and an upstream behind it.

What nginx, Traefik or Envoy do by configuration is one page of code here, as an illustration.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import ClientSession, web

from services.demo.story import ClientAnswer

_OURS: Final = "x-keyledger-"
_NOT_PASSED_ON: Final = frozenset({"host", "content-length", "connection", "transfer-encoding"})
_TOLD_UPSTREAM: Final = ("X-Keyledger-Key-Id", "X-Keyledger-Organization-Id", "X-Keyledger-Plan-Id")

Use = Callable[[web.Request], Mapping[str, str]]
"""What a gateway reports of a request's use: headers such as X-Keyledger-Model."""


class Gateway(NamedTuple):
    """The address that clients call, and the requests that reached the upstream."""

    url: str
    reached: list[dict[str, str]]


@asynccontextmanager
async def gateway_behind_forward_auth(
    session: ClientSession, ledger_url: str, proxy_key: str, keyspace_id: str, use: Use
) -> AsyncGenerator[Gateway]:
    """A proxy that passes a request on to its upstream if the ledger answers 200."""
    reached: list[dict[str, str]] = []

    async def upstream(request: web.Request) -> web.Response:
        reached.append(dict(request.headers))
        return web.json_response({"code": "valid", "served": request.path})

    async with _served(upstream) as upstream_url:

        async def proxy(request: web.Request) -> web.StreamResponse:
            # Headers with names of the ledger are dropped: a client must not set them.
            said = {
                name: value
                for name, value in request.headers.items()
                if name.lower() not in _NOT_PASSED_ON and not name.lower().startswith(_OURS)
            }
            asked = said | {
                "X-Keyledger-Proxy-Key": proxy_key,
                "X-Original-URI": request.path_qs,
                **use(request),
            }
            async with session.get(
                f"{ledger_url}/v1/forward-auth", params={"keyspace_id": keyspace_id}, headers=asked
            ) as verdict:
                if not verdict.ok:
                    answer = await verdict.read()
                    return web.Response(status=verdict.status, body=answer, headers=_kept(verdict.headers))
                identity = {n: verdict.headers[n] for n in _TOLD_UPSTREAM if n in verdict.headers}
            async with session.request(
                request.method, upstream_url + request.path, data=await request.read(), headers=identity
            ) as served:
                body = await served.read()
                return web.Response(status=served.status, body=body, content_type="application/json")

        async with _served(proxy) as url:
            yield Gateway(url, reached)


@asynccontextmanager
async def served_app(app: Any) -> AsyncGenerator[str]:
    """An ASGI application on its own port, served by uvicorn: for the gateway that embeds the edge."""
    import asyncio  # noqa: PLC0415 - only this gateway needs them

    from services.api.serving.server import address_of, listen, serve  # noqa: PLC0415 - the same

    listener, stop, started = listen("127.0.0.1", 0), asyncio.Event(), asyncio.Event()

    async def on_started() -> None:
        started.set()

    serving = asyncio.create_task(serve(app, [listener], stop, on_started=on_started))
    await started.wait()
    try:
        yield address_of(listener)
    finally:
        stop.set()
        await serving
        listener.close()


@asynccontextmanager
async def _served(handler: Callable[[web.Request], Any]) -> AsyncGenerator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    names = ("Content-Type", "WWW-Authenticate", "Retry-After", "RateLimit", "RateLimit-Policy")
    return {name: headers[name] for name in names if name in headers}


async def ask(session: ClientSession, method: str, url: str, **request: Any) -> ClientAnswer:
    """One request of a client, and its answer."""
    async with session.request(method, url, **request) as answer:
        raw = await answer.read()
        body = msgspec.json.decode(raw) if raw[:1] == b"{" else {}
        code = "valid" if answer.ok else str(body.get("code", "?"))
        return ClientAnswer(answer.status, code, dict(answer.headers), body)
