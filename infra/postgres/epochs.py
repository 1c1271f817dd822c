"""The history of a log, and its epoch: shown to the operator, and raised by the operator's command."""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from psycopg import Connection

from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import connect
from infra.postgres.recorder import LedgerRecorder
from keyledger_language.history import HistoryPoint
from keyledger_reading.datastore import SessionDatastore


class History(NamedTuple):
    """A log, and the server that stores it."""

    log_id: str
    end: HistoryPoint
    system_identifier: str
    """Of the server's data folder: copies of it have the same one."""
    timeline: int | None
    """Raised by each promotion; None on a server that is a standby."""


class EpochMovedError(Exception):
    """Another command raised the epoch meanwhile."""

    def __init__(self) -> None:
        super().__init__("Another command has just raised the epoch: check again.")


def read_history(conninfo: str, partition: int = 0) -> History:
    """Where the log ends, in which epoch, and on which server."""
    with connect(conninfo, "keyledger history") as connection:
        end = end_of_log(connection, partition)
        row = connection.execute(
            "SELECT log_id::text, (SELECT system_identifier::text FROM pg_control_system()),"
            " CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END"
            " FROM ledger.identity"
        ).fetchone()
    assert row is not None, "a log has an identity"
    log_id, system_identifier, timeline = row
    return History(log_id, end, system_identifier, None if timeline is None else int(timeline, 16))


def end_of_log(connection: Connection[Any], partition: int = 0) -> HistoryPoint:
    """Where the log ends, and its epoch."""
    return _recorder(connection, partition).end()


def marks_at(conninfo: str, positions: list[int], partition: int = 0) -> dict[int, int]:
    """The marks of those of these positions that the log has."""
    with connect(conninfo, "keyledger history") as connection:
        register_packed_arrays(connection)
        return {one.position: one.mark for one in _recorder(connection, partition).select_at(positions)}


def raise_epoch(conninfo: str, *, from_epoch: int, seen_epoch: int) -> int:
    """Raise the epoch above both, in one transaction, and return it. The old one gets no more events.

    Waits for the append in progress. Raises EpochMovedError.
    """
    with connect(conninfo, "keyledger new-epoch") as connection:
        try:
            row = connection.execute("SELECT ledger.raise_epoch(%s, %s)", (from_epoch, seen_epoch)).fetchone()
        except psycopg.DatabaseError as error:
            if error.sqlstate == "KL006":
                raise EpochMovedError from None
            raise
    assert row is not None, "a function returns a row"
    return int(row[0])


def _recorder(connection: Connection[Any], partition: int) -> LedgerRecorder:
    return LedgerRecorder(SessionDatastore(lambda: connection), partition=partition)
