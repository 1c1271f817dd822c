"""The API description and its pages for people; nothing is loaded from other servers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec

from services.api.asking.call import Call
from services.api.description.openapi import describe
from services.api.description.pages import page_of
from services.api.operations import Operation, Reply, operation

_FOR_A_MINUTE: Final = {"Cache-Control": "public, max-age=60"}
_PAGE: Final = {
    **_FOR_A_MINUTE,
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
}


class Description:
    """The API description of an application's routes; made once, at the first request for it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations

    @cached_property
    def document(self) -> dict[str, Any]:
        """OpenAPI 3.1."""
        return describe(self.operations, _version())

    @cached_property
    def json(self) -> bytes:
        """The document as JSON."""
        return msgspec.json.encode(self.document)

    @cached_property
    def page(self) -> bytes:
        """The document as one page for people."""
        return page_of(self.document, self.operations).encode()


def _version() -> str:
    try:
        return version("keyledger")
    except PackageNotFoundError:
        return "0"


@operation(
    "GET",
    "/schema/openapi.json",
    tag="Operating",
    summary="This API description as OpenAPI",
    answer=dict[str, Any],
)
async def get_schema(call: Call[Any, Any]) -> Reply:
    """OpenAPI 3.1 as JSON."""
    description = call.api.description
    # Made on the event loop, it once blocked everything for 0.8 s, nearly as long as a lease lasts.
    document = await asyncio.to_thread(lambda: description.json)
    return Reply(document, headers=_FOR_A_MINUTE)


@operation(
    "GET",
    "/docs",
    tag="Operating",
    summary="This API description as a page for people",
    media_types=("text/html",),
    answer=str,
)
async def get_docs(call: Call[Any, Any]) -> Reply:
    """One page, with nothing loaded from elsewhere."""
    description = call.api.description
    page = await asyncio.to_thread(lambda: description.page)  # for the same reason
    return Reply(page, headers=_PAGE)


_START_PAGE: Final = b"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>Keyledger</title></head><body>
<h1>Keyledger</h1><p>A ledger for API keys. This is its HTTP API.</p><ul>
<li><a href="/docs">/docs</a>: the API description, for people</li>
<li><a href="/schema/openapi.json">/schema/openapi.json</a>: the same as OpenAPI 3.1</li>
<li><a href="/readyz">/readyz</a>: whether it can serve, and if not, what it waits for</li>
</ul></body></html>
"""


@operation(
    "GET",
    "/",
    tag="Operating",
    summary="Start page with links",
    media_types=("text/html",),
    answer=str,
)
async def get_start(_: Call[Any, Any]) -> Reply:
    """A few links, for people who open the address in a browser."""
    return Reply(_START_PAGE, headers=_PAGE)


ROUTES = [get_start, get_schema, get_docs]
