"""Arrays for PostgreSQL, packed in its binary format.

psycopg dumps arrays element by element, and composites as text; for groups of 500 events that took
eleven times the processor time of these few joins.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from struct import Struct
from typing import Any, Final, Self

from psycopg.abc import AdaptContext
from psycopg.adapt import Dumper
from psycopg.pq import Format

from keyledger_language.instants import Instant

_HEADER: Final = Struct(">iiIii")
_LENGTH: Final = Struct(">i").pack
_BIGINT: Final = Struct(">iq").pack
_NULL: Final = _LENGTH(-1)
_SHORT: Final = tuple(_LENGTH(length) for length in range(1024))
"""Most elements are short, and a look-up is cheaper than a pack."""

MICROSECONDS_TO_2000: Final = 946_684_800_000_000
"""PostgreSQL counts from 2000-01-01."""


class PackedArray(bytes):
    """An array in the format of the wire; subclasses define the type of its elements."""

    __slots__ = ()
    element_oid: int
    array_oid: int

    @classmethod
    def _pack(cls, count: int, body: bytes, *, has_null: bool = False) -> bytes:
        if count == 0:
            return _HEADER.pack(0, 0, cls.element_oid, 0, 0)[:12]
        return _HEADER.pack(1, has_null, cls.element_oid, count, 1) + body


class TextArray(PackedArray):
    """text[]."""

    __slots__ = ()
    element_oid, array_oid = 25, 1009

    def __new__(cls, values: Sequence[str]) -> Self:
        """Pack texts."""
        return super().__new__(cls, cls._pack(len(values), _join([value.encode() for value in values])))


class ByteaArray(PackedArray):
    """bytea[], with nulls."""

    __slots__ = ()
    element_oid, array_oid = 17, 1001

    def __new__(cls, values: Sequence[bytes | None]) -> Self:
        """Pack byte strings."""
        if None in values:
            body = b"".join([_NULL if v is None else _LENGTH(len(v)) + v for v in values])
            return super().__new__(cls, cls._pack(len(values), body, has_null=True))
        return super().__new__(cls, cls._pack(len(values), _join(values)))  # type: ignore[arg-type]  # no None


class UuidArray(PackedArray):
    """uuid[], from 16 bytes each."""

    __slots__ = ()
    element_oid, array_oid = 2950, 2951

    def __new__(cls, values: Sequence[bytes]) -> Self:
        """Pack digests."""
        assert set(map(len, values)) <= {16}, "a digest has 16 bytes"
        return super().__new__(cls, cls._pack(len(values), _join(values)))


class IntegerArray(PackedArray):
    """integer[]."""

    __slots__ = ()
    element_oid, array_oid = 23, 1007

    def __new__(cls, values: Sequence[int]) -> Self:
        """Pack small integers."""
        return super().__new__(cls, cls._pack(len(values), _words(array("i", values))))


class BigintArray(PackedArray):
    """bigint[]."""

    __slots__ = ()
    element_oid, array_oid = 20, 1016

    def __new__(cls, values: Sequence[int]) -> Self:
        """Pack integers."""
        return super().__new__(cls, cls._pack(len(values), _words(array("q", values))))


class BooleanArray(PackedArray):
    """boolean[]."""

    __slots__ = ()
    element_oid, array_oid = 16, 1000

    def __new__(cls, values: Sequence[bool]) -> Self:
        """Pack booleans."""
        body = b"".join([b"\0\0\0\1\1" if value else b"\0\0\0\1\0" for value in values])
        return super().__new__(cls, cls._pack(len(values), body))


class InstantArray(PackedArray):
    """timestamptz[], with nulls."""

    __slots__ = ()
    element_oid, array_oid = 1184, 1185

    def __new__(cls, values: Sequence[Instant | None]) -> Self:
        """Pack instants."""
        parts = [_NULL if v is None else _BIGINT(8, v - MICROSECONDS_TO_2000) for v in values]
        return super().__new__(cls, cls._pack(len(values), b"".join(parts), has_null=None in values))


_KINDS: Final = (TextArray, ByteaArray, UuidArray, IntegerArray, BigintArray, BooleanArray, InstantArray)


class _PackedDumper(Dumper):
    """Passes the bytes on unchanged."""

    format = Format.BINARY

    def dump(self, obj: PackedArray) -> bytes:
        """The bytes themselves: the array is already packed."""
        return obj


def register_packed_arrays(context: AdaptContext) -> None:
    """Enable a connection to send packed arrays."""
    for kind in _KINDS:
        dumper: Any = type(f"{kind.__name__}Dumper", (_PackedDumper,), {"oid": kind.array_oid})
        context.adapters.register_dumper(kind, dumper)


def _words(values: array[int]) -> bytes:
    """Integers of one size in network byte order, each after its length: without a call for each."""
    words = values.itemsize // 4
    packed = array("I", _LENGTH(values.itemsize)) * (len(values) * (words + 1))
    if sys.byteorder == "little":
        values.byteswap()
    plain = array("I", values.tobytes())
    for word in range(words):
        packed[word + 1 :: words + 1] = plain[word::words]
    return packed.tobytes()


def _join(values: Sequence[bytes]) -> bytes:
    lengths = set(map(len, values))
    if len(lengths) == 1:  # ids, digests: no need to look at each
        return _LENGTH(lengths.pop()).join((b"", *values))
    parts: list[bytes] = []
    for value in values:
        length = len(value)
        parts.append(_SHORT[length] if length < 1024 else _LENGTH(length))  # noqa: PLR2004
        parts.append(value)
    return b"".join(parts)
