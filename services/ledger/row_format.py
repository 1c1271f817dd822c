"""The format of a saved row.

A row is its id and its value, both in MessagePack, one after the other: concatenated rows are a map
without its header, and one call decodes thousands of them. What is large and rarely used is in its row
as bytes, to be decoded when it is looked up; beside it is what an index needs.

Personal fields are taken out of their row and put at its end, encrypted: a start decrypts none of them.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Final, get_args, get_type_hints

import msgspec

from domain.accounts import Counters, Reservation, Wallet
from domain.keys import Key
from domain.keyspaces import ROOT_KEYSPACE_ID, Keyspace
from domain.organizations import Organization, Plan, Project
from domain.personal import SUBJECTS, key_subject, put_together, taken_apart
from keyledger_language.events import Private
from keyledger_language.instants import Instant
from services.ledger.jobs import DataKeyring

_FORMAT: Final = 4
"""To be raised when rows of the same shape get another meaning."""

_MAP: Final = b"\xdf"
_ONE: Final = b"\x81"

Dues = tuple[tuple[Instant, str, int], ...]
"""(when, kind, generation): what will be due for a subject."""


class Ahead(msgspec.Struct, array_like=True, frozen=True):
    """What a start must know of a key; for most keys there is nothing."""

    dues: Dues
    at_once: bool
    """Whether it is decoded at the start. Keys of the root keyspace are, and come first in the table."""


# Tuples: a start takes a block's apart with one `zip`.
KeyEntry = tuple[bytes, bytes | tuple[bytes, ...], Ahead | None]
"""A key's row, the fingerprint of its secret (or of all its secrets), what a start must know."""
ProjectEntry = tuple[bytes, str | None]
"""A project's row, and the organization that it is a member of."""


Box = bytes | None
"""The personal fields of a row, encrypted; None if it has none."""

# A row holds what changes together: a stream's version is saved with the subject it belongs to.
LATER: Final[dict[str, Any]] = {
    "organizations": tuple[Organization, Box],
    "projects": tuple[Project, Box],
    "keys": tuple[Key, int, Box],
    "wallets": tuple[Wallet, int],
    "counters": tuple[Counters | None, Instant | None],
}
"""The tables whose rows are decoded when they are looked up."""
AT_ONCE: Final[dict[str, Any]] = {
    "keyspaces": tuple[Keyspace, int],
    "plans": tuple[Plan, int],
    "reservations": tuple[Reservation],
    "refunds": tuple[int],
    "versions": tuple[int],
}
"""The tables whose rows are decoded at the start."""
_ENTRIES: Final[dict[str, Any]] = {
    "organizations": bytes,
    "projects": ProjectEntry,
    "keys": KeyEntry,
    "wallets": bytes,
    "counters": bytes,
    "meta": Any,
} | AT_ONCE

_encode = msgspec.msgpack.Encoder().encode
_decode_private = msgspec.msgpack.Decoder(Private).decode
_decoders = {name: msgspec.msgpack.Decoder(shape) for name, shape in LATER.items()}
_block_decoders: dict[str, msgspec.msgpack.Decoder[Any]] = {
    name: msgspec.msgpack.Decoder(types.GenericAlias(dict, (str, shape))) for name, shape in _ENTRIES.items()
}


def encode_row(table: str, subject: str, parts: tuple[Any, ...], keyring: DataKeyring) -> bytes:
    """A row: id and value."""
    entry: Any = parts
    if table in LATER:
        entry = row = _encode(_closed(table, subject, parts, keyring))
        if table == "keys":
            entry = _key_entry(parts[0], row)
        elif table == "projects":
            entry = _project_entry(parts[0], row)
    return _encode(subject) + _encode(entry)


def encode_told(name: str, value: Any) -> bytes:
    """A row of the table `meta`."""
    return _encode(name) + _encode(value)


def decode_block(table: str, row_count: int, rows: bytes) -> dict[str, Any]:
    """The entries of this many concatenated rows, by id."""
    header = _MAP + row_count.to_bytes(4, "big")
    entries: dict[str, Any] = _block_decoders[table].decode(header + rows)
    return entries


def decode_one(table: str, row: bytes) -> Any:
    """The entry of one row."""
    [entry] = _block_decoders[table].decode(_ONE + row).values()
    return entry


def decode_later(table: str, subject: str, row: bytes, keyring: DataKeyring) -> Any:
    """The parts of a row that was left encoded; without personal fields if their data key was deleted."""
    parts = _decoders[table].decode(row)
    return _opened(table, subject, parts, keyring) if type(parts[0]) in SUBJECTS else parts


def _closed(table: str, subject: str, parts: tuple[Any, ...], keyring: DataKeyring) -> tuple[Any, ...]:
    """The parts, with personal fields in a box that can be decrypted for this row only."""
    if type(parts[0]) not in SUBJECTS:
        return parts
    row, private = taken_apart(parts[0])
    if private is None:
        return (*parts, None)
    owner = _owner_of(row)
    if not keyring.knows(owner):
        # A key made for it now would be durable later than the row, or never.
        raise LookupError(f"{owner} has no data key, and {table}/{subject} has personal fields.")
    return row, *parts[1:], keyring.encrypt(owner, _encode(private), f"{table}/{subject}")


def _opened(table: str, subject: str, parts: tuple[Any, ...], keyring: DataKeyring) -> tuple[Any, ...]:
    row, *others, box = parts
    if box is not None:
        plaintext = keyring.decrypt(_owner_of(row), box, f"{table}/{subject}")
        if plaintext is not None:
            row = put_together(row, _decode_private(plaintext))
    return row, *others


def _owner_of(row: Organization | Project | Key) -> str:
    """The subject whose data key is used, as for the events that the row is folded from."""
    return key_subject(row.id if isinstance(row, Organization) else row.organization_id)


def knows(table: str) -> bool:
    """Whether rows of this table are saved."""
    return table in _ENTRIES


def _dues_of(key: Key) -> Dues:
    dues = [
        (secret.ends_at, "secret_ends", secret.generation)
        for secret in key.secrets
        if secret.ends_at is not None and not secret.retired
    ]
    if key.expires_at is not None and not key.expiry_recorded:
        dues.append((key.expires_at, "key_expires", 0))
    return tuple(dues)


def schema() -> bytes:
    """A digest of the format of rows: rows in the format of another program version are not read."""
    shapes = [*LATER.values(), *_ENTRIES.values(), Private]
    # Both: only the first contains tags and limits, only the second the field names of arrays.
    described = msgspec.json.schema_components(shapes), sorted(_fields_of(shapes).items())
    return sha256(msgspec.json.encode([_FORMAT, described], order="deterministic")).digest()


def _fields_of(shapes: Iterable[Any]) -> dict[str, tuple[str, ...]]:
    """The field names of every struct that occurs, in order: an array is saved without them."""
    fields: dict[str, tuple[str, ...]] = {}
    for shape in shapes:
        if isinstance(shape, type) and issubclass(shape, msgspec.Struct):
            if shape.__name__ not in fields:
                fields[shape.__name__] = shape.__struct_fields__
                fields |= _fields_of(get_type_hints(shape).values())
        else:
            fields |= _fields_of(get_args(shape))
    return fields


def _key_entry(key: Key, row: bytes) -> KeyEntry:
    first, *more = [secret.fingerprint for secret in key.secrets]
    ahead = Ahead(_dues_of(key), key.keyspace_id == ROOT_KEYSPACE_ID)
    return row, (first, *more) if more else first, ahead if ahead.dues or ahead.at_once else None


def _project_entry(project: Project, row: bytes) -> ProjectEntry:
    return row, None if project.archived else project.organization_id
