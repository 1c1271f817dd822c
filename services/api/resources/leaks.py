"""Leaked secrets: a report of one revokes its key."""

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
    """The secret that was found; or send its SHA-256."""
    sha256: Annotated[str, msgspec.Meta(min_length=43, max_length=64)] | None = None
    """The SHA-256 of the secret, as hex or base64, if the secret itself is not at hand."""
    keyspace_id: Id | None = None
    """Revoke it only if it is of this keyspace; null: of any."""
    source: Annotated[
        str, msgspec.Meta(min_length=1, max_length=100, examples=["pastebin"], extra={CREDENTIAL: True})
    ]
    """Who found it. A secret in this text is removed."""
    where: Annotated[str, msgspec.Meta(min_length=1, max_length=500, extra={CREDENTIAL: True})] | None = None
    """Where it was found, such as an address. A secret in this text is removed."""


class LeakView(View, frozen=True, kw_only=True):
    """The outcome of a report."""

    found: bool
    """Whether it is a secret of a key that the caller may see."""
    key: KeyView | None
    """The key that was revoked; null if none was found."""
    position: Position
    fence: FenceResult | UnsetType = UNSET
    """The fence, if something was taken away: whether no edge can accept it any more."""


@operation(
    "POST",
    "/v1/leaks",
    tag="Leaks",
    summary="Report a leaked secret",
    description="Its key is revoked with all generations, and fenced; an unknown one gets `found: false`.",
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
    # The reporter has seen no version of the key, so the answer has none for an If-Match.
    return replace(reply, version=None)


def _digest_of(body: Leak) -> bytes:
    if (body.secret is None) == (body.sha256 is None):
        raise invalid("secret", "exactly one of secret and sha256 is required")
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
