"""Arrays that we pack ourselves reach PostgreSQL as what they were."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from infra.embedded import EmbeddedPostgres
from infra.postgres.arrays import (
    BigintArray,
    BooleanArray,
    ByteaArray,
    IntegerArray,
    PackedArray,
    TextArray,
    UuidArray,
    register_packed_arrays,
)


@pytest.fixture(scope="module")
def connection(postgres_server: EmbeddedPostgres) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        register_packed_arrays(connection)
        yield connection


@pytest.mark.parametrize(
    "packed,expected",
    [
        (BigintArray([]), []),
        (BigintArray([0, 1, -1, 2**63 - 1, -(2**63)]), [0, 1, -1, 2**63 - 1, -(2**63)]),
        (IntegerArray([]), []),
        (IntegerArray([0, 1, -1, 2**31 - 1, -(2**31)]), [0, 1, -1, 2**31 - 1, -(2**31)]),
        (BooleanArray([True, False]), [True, False]),
        (TextArray([]), []),
        (TextArray(["same", "size"]), ["same", "size"]),
        (TextArray(["", "ü", "x" * 1_023, "x" * 1_024]), ["", "ü", "x" * 1_023, "x" * 1_024]),
        (ByteaArray([b"", b"\0", None]), [b"", b"\0", None]),
        (UuidArray([b"\x01" * 16, b"\xff" * 16]), ["01" * 16, "ff" * 16]),
    ],
)
def test_a_packed_array_arrives_as_it_was(
    connection: psycopg.Connection[tuple[Any, ...]], packed: PackedArray, expected: list[Any]
) -> None:
    row = connection.execute("SELECT %s", (packed,)).fetchone()

    assert row is not None
    found = [one.hex if isinstance(packed, UuidArray) else one for one in row[0]]
    assert expected == found


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_what_is_beyond_32_bits_is_no_integer(value: int) -> None:
    with pytest.raises(OverflowError):
        IntegerArray([value])


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1])
def test_what_is_beyond_64_bits_is_no_bigint(value: int) -> None:
    with pytest.raises(OverflowError):
        BigintArray([value])


@pytest.mark.parametrize("size", [15, 17])
def test_what_has_not_16_bytes_is_no_uuid(size: int) -> None:
    with pytest.raises(AssertionError):
        UuidArray([b"x" * 16, b"x" * size])
