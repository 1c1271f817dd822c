"""One group, one statement, one transaction, one round trip: the call of the append function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg import Connection
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int4, Int8

from domain.instants import Instant, to_datetime
from domain.ports import (
    ClaimTakenError,
    Group,
    HeadMovedError,
    LogUnavailableError,
    NotOwnerError,
    OtherHistoryError,
    OutcomeUnknownError,
)
from infra.postgres.arrays import BigintArray, ByteaArray, InstantArray, IntegerArray, TextArray, UuidArray

MOST_EVENTS: Final = 10_000
"""A bus stays far below; this bounds what one statement may hold in the server's memory."""

_REFUSALS: Final[dict[str, type[Exception]]] = {
    "KL001": HeadMovedError,
    "KL002": ClaimTakenError,
    "21000": ClaimTakenError,  # the same claim twice in one group
    "KL003": NotOwnerError,
    "KL006": OtherHistoryError,
}
_STREAM_VERSION_TAKEN: Final = "23505"


AppendParameters = tuple[Any, ...]


def append_group(connection: Connection[Any], partition: int, group: Group, decided_at: Instant) -> int:
    """Write the group and return the new head, or say which of the port's errors it was."""
    return append_packed(connection, partition, append_parameters(group, decided_at))


def append_packed(connection: Connection[Any], partition: int, parameters: AppendParameters) -> int:
    """The same for a group that is packed already."""
    try:
        cursor = connection.cursor(row_factory=tuple_row, binary=True)
        row = cursor.execute(_statement(partition), parameters, prepare=True).fetchone()
    except psycopg.Error as error:
        raise _translated(error, connection) from error
    assert row is not None, "the append function returns the new head"
    return int(row[0])


def _statement(partition: int) -> bytes:
    return b"SELECT ledger.append_p%d(%s)" % (partition, b", ".join([b"%s"] * 15))


def append_parameters(group: Group, decided_at: Instant) -> AppendParameters:
    """The group as the append function takes it. Raises ValueError when it is too large."""
    if len(group.events) > MOST_EVENTS:
        raise ValueError(f"a group has at most {MOST_EVENTS} events, not {len(group.events)}")
    streams, versions, types, datas = zip(*group.events, strict=True) if group.events else ((),) * 4
    digests, indexes, expires, answers = zip(*group.claims, strict=True) if group.claims else ((),) * 4
    subjects, materials = zip(*group.data_keys, strict=True) if group.data_keys else ((),) * 2
    return (
        Int8(group.behind.position),
        Int8(group.behind.mark),
        Int4(group.behind.epoch),
        UUID(bytes=group.group_id),
        to_datetime(decided_at),
        TextArray(streams),
        BigintArray(versions),
        TextArray(types),
        ByteaArray(datas),
        UuidArray(digests),
        IntegerArray(indexes),
        InstantArray(_unless_all_none(expires)),
        ByteaArray(_unless_all_none(answers)),
        TextArray(subjects),
        ByteaArray(materials),
    )


def _unless_all_none(values: Sequence[Any]) -> Sequence[Any]:
    """The append function pads an empty array with nulls, so most groups need not send them."""
    return () if all(value is None for value in values) else values


def _translated(error: psycopg.Error, connection: Connection[Any]) -> Exception:
    if connection.broken or connection.closed:
        # The server may have committed before it, or the network, went away.
        return OutcomeUnknownError("the connection was lost while the group was being committed")
    if refusal := _REFUSALS.get(error.sqlstate or ""):
        return refusal(error.diag.message_primary)
    if error.sqlstate == _STREAM_VERSION_TAKEN:
        return ValueError("a stream has this version already")
    # The server lives and says that it rolled back: a full disk, a cancelled statement.
    return LogUnavailableError(f"PostgreSQL refused the group: {error.diag.message_primary}")
