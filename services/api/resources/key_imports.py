"""Keys that exist elsewhere are imported by the SHA-256 of their secrets."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any, Final

import msgspec

from domain.commands import UNSET, CreateKey, UnsetType
from domain.errors import LedgerError
from domain.keys import Key
from domain.keyspaces import why_unfit
from domain.state import Books
from services.api.answering.keys import KeyView
from services.api.answering.problems import FieldError, ProblemError, invalid
from services.api.answering.views import Position, View
from services.api.asking.call import Call
from services.api.asking.fields import Body
from services.api.asking.reading import reader_of
from services.api.operations import Reply, operation
from services.api.resources.key_creation import KEY_EXAMPLE, NewKey, creation, keyspace_of
from services.api.resources.keys import MOST_AT_ONCE, show_key
from services.api.writing import carry_out, idempotency_of
from services.ledger.errors import CannotAnswerError

_IMPORT_BYTES: Final = 16 * 1_048_576
_HEX_LENGTH: Final = 64
_DIGEST_BYTES: Final = 32


class ImportedKey(NewKey, frozen=True, kw_only=True):
    """A key that exists elsewhere, by the SHA-256 of its secret."""

    sha256: Annotated[
        str,
        msgspec.Meta(
            min_length=43, max_length=64, description="The SHA-256 of the secret's UTF-8, as hex or base64."
        ),
    ]
    hint: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] | None = None
    """What people see of the secret: its beginning and end, such as `old_...x7Qd`.

    It must match the keyspace, and is required if the keyspace has no `accepted_formats`.
    """


class ManyImportedKeys(Body, frozen=True, kw_only=True):
    """Keys to be imported, each with a result of its own."""

    items: Annotated[tuple[ImportedKey, ...], msgspec.Meta(min_length=1, max_length=MOST_AT_ONCE)]
    """The keys, each as if it were sent alone."""


class _Items(Body, frozen=True, kw_only=True):
    """The same, each item still as it was sent: a bad one fails alone."""

    items: Annotated[tuple[msgspec.Raw, ...], msgspec.Meta(min_length=1, max_length=MOST_AT_ONCE)]


class OneOrMany(msgspec.Struct, frozen=True, kw_only=True):
    """Tells which of the two was sent; the body is then read as that."""

    items: msgspec.Raw | UnsetType = UNSET


class ImportResult(View, frozen=True, kw_only=True):
    """The outcome of one key."""

    status: int
    """The status as if it had been sent alone: 201, or a problem's."""
    code: Annotated[
        str,
        msgspec.Meta(
            extra_json_schema={"anyOf": [{"const": "imported"}, {"$ref": "#/components/schemas/ProblemCode"}]}
        ),
    ]
    """`imported`, or the code of a problem."""
    key: KeyView | None = None
    """The key; null if it was refused."""
    detail: str | None = None
    """Why it was refused, for people; null if it was not."""
    errors: tuple[FieldError, ...] = ()
    """What is wrong with which field."""


class ImportedView(View, frozen=True, kw_only=True):
    """A key that was imported."""

    key: KeyView
    """The key."""
    position: Position


class ImportView(View, frozen=True, kw_only=True):
    """The outcome of each key, in the order in which they were sent."""

    results: list[ImportResult]
    """One for each item, in the order in which they were sent."""
    imported: int
    """How many were imported."""
    failed: int
    """How many were refused."""
    position: Position


@operation(
    "POST",
    "/v1/keys/import",
    tag="Keys",
    summary="Import one key or many by SHA-256",
    description=(
        "For keys that exist elsewhere: their secrets keep working and are never sent. One key is sent as "
        "the fields of a key with its `sha256`, and gets 201; many are sent as `items`, each with its own "
        "result. A key whose hint cannot belong to a secret that the keyspace accepts is refused: it would "
        "never work."
    ),
    permissions=("keys:write",),
    body=OneOrMany,
    bodies=(ImportedKey, ManyImportedKeys),
    status=201,
    shown_at="/v1/keys/{key_id}",
    answer=ImportedView,
    other_answers=((200, ImportView),),
    codes=("not_found", "keyspace_archived", "already_exists", "idempotency_conflict"),
    idempotent=True,
    max_body_bytes=_IMPORT_BYTES,
    example={
        **{name: KEY_EXAMPLE[name] for name in ("keyspace_id", "organization_id", "name")},
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "hint": "acme_live_...x7Qd",
    },
)
async def import_keys(call: Call[Any, OneOrMany]) -> Reply:
    """Import keys that exist elsewhere."""
    holds_secret = call.api.redactor.holds_secret
    if call.body.items is not UNSET:
        many: _Items = reader_of(_Items)(call.data, holds_secret)
        return await _import_many(call, many.items)

    def show(key: Key, books: Books, position: int) -> View:
        return ImportedView(key=show_key(call, key, books), position=call.place(position))

    return await carry_out(
        call, _adoption(call, reader_of(ImportedKey)(call.data, holds_secret)), show, status=201
    )


async def _import_many(call: Call[Any, Any], items: tuple[msgspec.Raw, ...]) -> Reply:
    outcomes = await asyncio.gather(*(_import(call, item, index) for index, item in enumerate(items)))
    results = [result for result, _ in outcomes]
    if all(result.code == "idempotency_conflict" for result in results):
        raise ProblemError("idempotency_conflict", results[0].detail or "")
    position = call.ledger.head
    await call.ledger.wait_for_projections(position)
    imported = sum(result.key is not None for result in results)
    view = ImportView(
        results=results,
        imported=imported,
        failed=len(results) - imported,
        position=call.place(position),
    )
    replayed = any(known for _, known in outcomes)
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    return Reply(view, 200, position=position, headers=headers)


async def _import(call: Call[Any, Any], item: msgspec.Raw, index: int) -> tuple[ImportResult, bool]:
    """The outcome of one item, and whether it is a replay."""

    def render(key: Key, books: Books, _: int) -> bytes:
        return msgspec.json.encode(ImportResult(status=201, code="imported", key=show_key(call, key, books)))

    try:
        command = _adoption(call, reader_of(ImportedKey)(bytes(item), call.api.redactor.holds_secret))
        done = await call.ledger.execute(
            command, call.asking, idempotency=idempotency_of(call, f"/{index}"), render=render
        )
    except (LedgerError, ProblemError, CannotAnswerError) as error:
        problem = call.api.refusals.problem(error, call.request_id)
        assert problem is not None, "our own errors are problems"
        refused = ImportResult(
            status=problem.status, code=problem.code, detail=problem.detail, errors=problem.errors
        )
        return refused, False
    if done.replay is not None:
        return msgspec.json.decode(done.replay, type=ImportResult), True
    shown = show_key(call, done.result, call.books)
    return ImportResult(status=201, code="imported", key=shown), False


def _adoption(call: Call[Any, Any], body: ImportedKey) -> CreateKey:
    keyspace = keyspace_of(call, body.keyspace_id)
    if not keyspace.builtin and (unfit := why_unfit(keyspace, body.hint)) is not None:
        raise invalid("hint", unfit)
    shown = body.hint or f"{keyspace.prefix}..."
    return creation(body, digest_of(body.sha256), shown, imported=True)


def digest_of(text: str) -> bytes:
    """32 bytes from hex or base64 (of either alphabet, padded or not)."""
    try:
        if len(text) == _HEX_LENGTH:
            return bytes.fromhex(text)
        plain = text.rstrip("=").replace("-", "+").replace("_", "/")
        digest = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != _DIGEST_BYTES:
        raise invalid("sha256", "a SHA-256 as 64 hex digits or as base64")
    return digest


ROUTES = [import_keys]
