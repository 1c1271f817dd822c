"""One group, one statement, one transaction, one round trip: the call of the append function.

Sent and completed in two steps, with libpq's own calls: the sender need not wait, and a statement
that is prepared once takes parameters that are already packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from typing import Any, Final

import psycopg
from psycopg import Connection
from psycopg.errors import error_from_result
from psycopg.generators import execute
from psycopg.pq import ExecStatus, Format

from domain.ports import (
    ClaimTakenError,
    HeadMovedError,
    LogUnavailableError,
    NewClaim,
    NewDataKey,
    NewEvent,
    NotOwnerError,
    OtherHistoryError,
    OutcomeUnknownError,
)
from infra.postgres.arrays import (
    MICROSECONDS_TO_2000,
    BigintArray,
    ByteaArray,
    InstantArray,
    IntegerArray,
    TextArray,
    UuidArray,
)
from keyledger_language.history import HistoryPoint
from keyledger_language.instants import Instant

MOST_EVENTS: Final = 10_000
"""A command queue stays far below this bound on what one statement may hold in the server's memory."""

_REFUSALS: Final[dict[str, type[Exception]]] = {
    "KL001": HeadMovedError,
    "KL002": ClaimTakenError,
    "21000": ClaimTakenError,  # the same claim twice in one group
    "KL003": NotOwnerError,
    "KL006": OtherHistoryError,
}
_STREAM_VERSION_TAKEN: Final = "23505"
_BIGINT: Final = Struct(">q")
_INTEGER: Final = Struct(">i")
_STATEMENT: Final = b"keyledger_append"
_PARAMETERS: Final = 15
_ALL_BINARY: Final = (Format.BINARY,) * _PARAMETERS

PackedGroup = tuple[bytes, ...]
"""A group as the append function takes it, in the format of the wire."""


def pack_group(
    events: Sequence[NewEvent],
    *,
    group_id: bytes,
    behind: HistoryPoint,
    claims: Sequence[NewClaim] = (),
    data_keys: Sequence[NewDataKey] = (),
    decided_at: Instant,
) -> PackedGroup:
    """The append function's parameters. Raises ValueError if there are more than 10,000 events."""
    if len(events) > MOST_EVENTS:
        raise ValueError(f"a group has at most {MOST_EVENTS} events, not {len(events)}")
    streams, versions, types, datas = zip(*events, strict=True) if events else ((),) * 4
    digests, indexes, expires, answers = zip(*claims, strict=True) if claims else ((),) * 4
    subjects, materials = zip(*data_keys, strict=True) if data_keys else ((),) * 2
    return (
        _BIGINT.pack(behind.position),
        _BIGINT.pack(behind.mark),
        _INTEGER.pack(behind.epoch),
        group_id,
        _BIGINT.pack(decided_at - MICROSECONDS_TO_2000),
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


class PendingInsert:
    """A group that was sent, and whose answer has not been read yet."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def complete(self) -> int:
        """Wait for the answer: the new head, once durable. Raises the errors of `domain.ports.Log.append`."""
        connection = self._connection
        try:
            with connection.lock:
                result = connection.wait(execute(connection.pgconn))[-1]
            if result.status != ExecStatus.TUPLES_OK:
                raise error_from_result(result)
        except psycopg.Error as error:
            raise _translated(error, connection) from error
        head = result.get_value(0, 0)
        assert head is not None, "the append function returns the new head"
        return int.from_bytes(head)


def prepare_append(connection: Connection[Any], partition: int) -> None:
    """Prepare the statement that `send_group` names, on this session.

    Raises NotOwnerError if the session has ended, and a lock with it, otherwise LogUnavailableError.
    """
    parameters = b", ".join([b"$%d" % number for number in range(1, _PARAMETERS + 1)])
    statement = b"SELECT ledger.append_p%d(%s)" % (partition, parameters)
    try:
        with connection.lock:
            connection.pgconn.send_prepare(_STATEMENT, statement)
            result = connection.wait(execute(connection.pgconn))[-1]
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result)
    except psycopg.Error as error:
        if connection.closed:
            raise NotOwnerError("the session that held the partition has ended") from error
        raise LogUnavailableError(f"PostgreSQL: {error}") from error


def send_group(connection: Connection[Any], group: PackedGroup) -> PendingInsert:
    """Send the group on a session that `prepare_append` prepared; send nothing else on it until completed."""
    try:
        with connection.lock:
            connection.pgconn.send_query_prepared(_STATEMENT, group, _ALL_BINARY, Format.BINARY)
            connection.pgconn.flush()
    except psycopg.Error as error:
        raise _translated(error, connection) from error
    return PendingInsert(connection)


def _unless_all_none(values: Sequence[Any]) -> Sequence[Any]:
    """The append function pads an empty array with nulls, so most groups need not send them."""
    return () if all(value is None for value in values) else values


def _translated(error: psycopg.Error, connection: Connection[Any]) -> Exception:
    if connection.broken or connection.closed:
        # The server may have committed before it, or the network, failed.
        return OutcomeUnknownError("the connection was lost while the group was being committed")
    if refusal := _REFUSALS.get(error.sqlstate or ""):
        return refusal(error.diag.message_primary)
    if error.sqlstate == _STREAM_VERSION_TAKEN:
        return ValueError("a stream has this version already")
    # The server is alive and reports that it rolled back: a full disk, a cancelled statement.
    return LogUnavailableError(f"PostgreSQL refused the group: {error.diag.message_primary}")
