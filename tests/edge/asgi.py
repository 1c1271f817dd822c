"""A small ASGI caller: one request in, one answer out, nothing in between."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import msgspec


class Answered(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class AtOnce:
    """An application, called as the sidecar's own server calls it: by `at_once` if it `hears` the request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        told = None
        if scope["type"] == "http" and self.app.hears(scope["method"].encode(), scope["path"].encode()):
            told = self.app.at_once(scope, (await receive())["body"])
            told = await told if isinstance(told, asyncio.Future) else told
        if told is None:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": told.status, "headers": told.headers})
        await send({"type": "http.response.body", "body": told.body})


async def call(
    app: Any,
    path: str,
    *,
    method: str = "GET",
    headers: dict[str, str] | None = None,
    body: Any = None,
    client: tuple[str, int] | None = ("127.0.0.1", 4711),
) -> Answered:
    route, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": route,
        "raw_path": route.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "client": client,
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": msgspec.json.encode(body) if body is not None else b""}

    async def send(message: dict[str, Any]) -> None:
        said.append(message)

    await app(scope, receive, send)
    start = next(one for one in said if one["type"] == "http.response.start")
    content = b"".join(one.get("body", b"") for one in said if one["type"] == "http.response.body")
    found = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return Answered(start["status"], found, content)
