"""Leaked secrets: whoever finds one reports it, and its key is dead."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import msgspec

from domain.commands import ReportLeak, UnsetType
from domain.decisions.access import find_key
from domain.errors import NotFoundError
from domain.keys import Key
from domain.state import Books
from keyledger_language import fingerprint
from services.api.answering.keys import KeyView
from services.api.answering.problems import invalid
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import CREDENTIAL, Body, Id
from services.api.operations import Reply, operation
from services.api.resources.key_imports import digest_of
from services.api.resources.keys import show_key
from services.api.writing import Fencing, carry_out
from services.ledger.fence_results import FenceResult

UNSET = msgspec.UNSET


class Leak(Body, frozen=True, kw_only=True):
    """A secret that was found where it should not be."""

    secret: Annotated[str, msgspec.Meta(min_length=1, max_length=512, extra={CREDENTIAL: True})] | None = None
    """The secret that was found; or its SHA-256."""
    sha256: Annotated[str, msgspec.Meta(min_length=43, max_length=64)] | None = None
    """Of the secret, as hex or base64, where the secret itself is not at hand."""
    keyspace_id: Id | None = None
    """Only if it is of this keyspace; null: of any."""
    source: Annotated[
        str, msgspec.Meta(min_length=1, max_length=100, examples=["pastebin"], extra={CREDENTIAL: True})
    ]
    """Who found it. A secret in it is taken out."""
    where: Annotated[str, msgspec.Meta(min_length=1, max_length=500, extra={CREDENTIAL: True})] | None = None
    """Where it was found, such as an address. A secret in it is taken out."""


class LeakView(View, frozen=True, kw_only=True):
    """What was done about it."""

    found: bool
    """Is it a secret of a key that the caller may know of?"""
    key: KeyView | None
    """The key that was revoked; null where nothing was found."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """Where something was taken away: can no edge accept it any more?"""


@operation(
    "POST",
    "/v1/leaks",
    tag="Leaks",
    summary="Report a leaked secret",
    description="Its key is revoked with all generations, and fenced. `found` is false for a stranger.",
    permissions=("keys:write",),
    query=Fencing,
    body=Leak,
    answer=LeakView,
    codes=("idempotency_conflict",),
    idempotent=True,
    example={"secret": "acme_live_...", "source": "pastebin", "where": "https://pastebin.example/x"},
)
async def report_leak(call: Call[Fencing, Leak]) -> Reply:
    """Revoke the key whose secret was found."""
    body = call.body
    where = None if body.where is None else call.api.redactor.redact(body.where)
    digest = _digest_of(body)
    if not _is_known(call, digest):
        view = LeakView(found=False, key=None, position=call.place(call.ledger.head))
        return Reply(view)

    def show(key: Key, books: Books, position: int) -> View:
        return LeakView(found=True, key=show_key(call, key, books), position=call.place(position))

    source = call.api.redactor.redact(body.source)
    reply = await carry_out(call, ReportLeak(fingerprint=digest, source=source, where=where), show)
    # Whoever found a secret has seen no version of its key, so none is told for an If-Match.
    return replace(reply, version=None)


def _digest_of(body: Leak) -> bytes:
    if (body.secret is None) == (body.sha256 is None):
        raise invalid("secret", "secret or sha256, one of them")
    return fingerprint(body.secret) if body.secret is not None else digest_of(body.sha256 or "")


def _is_known(call: Call[Any, Leak], digest: bytes) -> bool:
    secret = call.books.secrets.find(digest)
    if secret is None:
        return False
    try:
        key = find_key(call.desk, secret.key_id, deleted=True)
    except NotFoundError:
        return False
    return call.body.keyspace_id in {None, key.keyspace_id}


ROUTES = [report_leak]
