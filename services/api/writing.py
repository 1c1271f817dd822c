"""How a management write is carried out: once per Idempotency-Key, on the version read, with its fence."""

from __future__ import annotations

import re
from collections.abc import Callable
from hashlib import blake2b
from typing import Any, Final

import msgspec

from domain.claims import idempotency_claim
from domain.commands import Command
from domain.state import Books
from services.api.answering.fencing import fence_of
from services.api.answering.problems import invalid
from services.api.answering.views import View
from services.api.asking.call import Call
from services.api.asking.fields import Body, Reason
from services.api.operations import Query, Reply
from services.ledger.jobs import Done, Idempotency

Show = Callable[[Any, Books, int], View]
"""From (result, books, position) to the answer that a replay gets, too; so it has no secret."""

_MOST_KEY: Final = 255
_ETAG: Final = re.compile(r'(?:W/)?"(\d{1,18})"')


class Fencing(Query, frozen=True, kw_only=True):
    """Whether a change that takes something away waits for its fence."""

    fence: bool = True
    """Answer once no edge can accept what was taken away any more; false: 202 right after the commit."""


class Because(Body, frozen=True, kw_only=True):
    """A reason, for the audit."""

    reason: Reason | None = None
    """Why, for the audit."""


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A first answer, as it is stored for 24 hours."""

    status: int
    version: int | None
    body: msgspec.Raw


def expected_version(call: Call[Any, Any]) -> int | None:
    """`If-Match`: the version that the caller decided on."""
    if call.if_match is None:
        return None
    given = call.if_match.decode("latin-1").strip()
    if given == "*":
        return None
    found = _ETAG.fullmatch(given)
    if found is None:
        raise invalid("If-Match", 'one version in quotes, such as "3"')
    return int(found[1])


def idempotency_of(call: Call[Any, Any], part: str = "") -> Idempotency | None:
    """`Idempotency-Key`: the caller's own id of this request."""
    if call.idempotency_key is None:
        return None
    key = call.idempotency_key.decode("latin-1").strip()
    if not (0 < len(key) <= _MOST_KEY and key.isascii() and key.isprintable()):
        raise invalid("Idempotency-Key", f"1 to {_MOST_KEY} printable ASCII characters")
    return Idempotency(claim=idempotency_claim(call.caller.key_id, key + part), body_digest=_digest(call))


def _digest(call: Call[Any, Any]) -> bytes:
    """A digest of method, path and body, independent of the order of its fields."""
    body = msgspec.json.encode(msgspec.json.decode(call.data or b"{}"), order="sorted")
    asked = f"{call.method}\0{call.scope['path']}\0".encode() + body
    return blake2b(asked, digest_size=16).digest()


async def carry_out(
    call: Call[Any, Any],
    command: Command,
    show: Show,
    *,
    status: int = 200,
    first: dict[str, Any] | None = None,
) -> Reply:
    """Carry out a command and answer once it is durable, fenced if it takes away, and visible.

    `first` are fields of the first answer that a replay does not get: the secret.
    """

    def render(result: Any, books: Books, position: int) -> bytes:
        view = show(result, books, position)
        body = msgspec.Raw(msgspec.json.encode(view))
        return msgspec.json.encode(_Kept(status=status, version=version_of(view), body=body))

    done = await call.ledger.execute(command, call.asking, idempotency=idempotency_of(call), render=render)
    if done.replay is not None:
        return await _replayed(call, done)
    view = show(done.result, call.books, done.position)
    body = msgspec.to_builtins(view) | (first or {})
    reply = Reply(body, status, position=done.position, version=version_of(view))
    return await _settled(call, reply, done)


async def _replayed(call: Call[Any, Any], done: Done) -> Reply:
    assert done.replay is not None, "called only for a replay"
    kept = msgspec.json.decode(done.replay, type=_Kept)
    reply = Reply(
        msgspec.json.decode(kept.body),
        kept.status,
        position=done.position,
        version=kept.version,
        headers={"Idempotent-Replayed": "true"},
    )
    return await _settled(call, reply, done)


async def _settled(call: Call[Any, Any], reply: Reply, done: Done) -> Reply:
    """Wait for the fence of what may have been taken away, and for the projections."""
    if done.fence_position is None:
        await call.ledger.wait_for_projections(done.position)
        return reply
    wait: bool = getattr(call.query, "fence", True)
    fence = await fence_of(call.ledger, done, wait=wait)
    return Reply(
        reply.body | {"fence": msgspec.to_builtins(fence)},
        reply.status if fence.held and wait else 202,
        position=reply.position,
        version=reply.version,
        headers=reply.headers,
    )


def version_of(view: View) -> int | None:
    """The version of what a view shows, for its ETag."""
    shown = getattr(view, "key", view)
    version: int | None = getattr(shown, "version", None)
    return version
