"""Which history a log is of, and its epoch: looked at by people, raised by their command."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from domain.ports import HistoryPoint
from infra.postgres.connections import connect
from infra.postgres.log import select_end


class History(NamedTuple):
    """A log, and the server that keeps it."""

    log_id: str
    end: HistoryPoint
    system_identifier: str
    """Of the server's data folder: its copies have the same."""
    timeline: int | None
    """Risen with each promotion; None on a server that is a standby."""


class EpochMovedError(Exception):
    """Somebody else raised the epoch meanwhile."""

    def __init__(self) -> None:
        super().__init__("The epoch was raised by somebody else just now: look again.")


def read_history(conninfo: str, partition: int = 0) -> History:
    """Where the log ends, in which epoch, and on which server."""
    with connect(conninfo, "keyledger history") as connection:
        end = connection.execute(select_end(partition)).fetchone()
        row = connection.execute(
            "SELECT log_id::text, (SELECT system_identifier::text FROM pg_control_system()),"
            " CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_lsn()), 8) END"
            " FROM ledger.identity"
        ).fetchone()
    assert end is not None, "a log has an identity"
    assert row is not None, "a log has an identity"
    log_id, system_identifier, timeline = row
    return History(
        log_id, HistoryPoint(*end), system_identifier, None if timeline is None else int(timeline, 16)
    )


def marks_at(conninfo: str, positions: list[int], partition: int = 0) -> dict[int, int]:
    """The marks of these positions, those that the log has."""
    with connect(conninfo, "keyledger history") as connection:
        select = (
            f"SELECT notification_id, mark FROM ledger.events_p{partition} WHERE notification_id = ANY(%s)"
        )
        return dict(connection.execute(select.encode(), (positions,)).fetchall())


def raise_epoch(conninfo: str, *, from_epoch: int, seen_epoch: int) -> int:
    """Raise it beyond both, in one transaction; the new epoch. Nothing of the old one is appended after it.

    Waits for the append under way. Raises EpochMovedError.
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
