"""The projections' checkpoint: a row of the library's tracking recorder, with mark and epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from eventsourcing.persistence import IntegrityError, Tracking
from eventsourcing.postgres import PostgresTrackingRecorder
from psycopg import Cursor
from psycopg.sql import SQL, Identifier

from keyledger_language.history import BEGINNING, HistoryPoint
from keyledger_reading.datastore import SessionDatastore

TRACKING_TABLE: Final = "tracking"


class MovedCheckpointError(IntegrityError):
    """Another process has moved the checkpoint: a rebuild was swapped in, or a second projector runs."""


@dataclass(frozen=True)
class LedgerTracking(Tracking):
    """How far a projection is, in which history."""

    mark: int
    """Of the event at the position."""
    before: tuple[int, int]
    """Position and mark of the checkpoint before it is moved."""


class LedgerTrackingRecorder(PostgresTrackingRecorder):
    """Keeps one row per log that is followed, in the schema of the tables that follow it.

    Besides the library's columns it has the mark and the epoch of the history that was followed, and it
    moves only from the point that is named. `told_on`: a NOTIFY channel on which each new position is
    announced.
    """

    def __init__(
        self, datastore: SessionDatastore, *, partition: int = 0, told_on: str | None = None
    ) -> None:
        super().__init__(datastore, tracking_table_name=TRACKING_TABLE)
        self.followed = followed(partition)
        self._session = datastore.session
        table = {"table": Identifier(datastore.schema, TRACKING_TABLE)}
        self.sql_create_statements = [
            SQL(
                'CREATE TABLE {table} (application_name text COLLATE "C" PRIMARY KEY,'
                " notification_id bigint NOT NULL, mark bigint NOT NULL, epoch integer NOT NULL"
                ") WITH (fillfactor = 20)"
            ).format(**table)
        ]
        told = SQL("") if told_on is None else SQL(", pg_notify({}, notification_id::text)").format(told_on)
        # An UPDATE with the library's parameters and three more: the row was created with its table.
        self.insert_tracking_statement = SQL(
            "UPDATE {table} SET notification_id = %(notification_id)s, mark = %(mark)s"
            " WHERE application_name = %(application_name)s AND notification_id = %(before)s"
            " AND mark = %(before_mark)s RETURNING notification_id{told}"
        ).format(told=told, **table)
        self._insert_first = SQL("INSERT INTO {table} SELECT %s, 0, 0, epoch FROM ledger.identity").format(
            **table
        )
        self._select_point = SQL(
            "SELECT notification_id, mark, epoch FROM {table} WHERE application_name = %s"
        ).format(**table)
        self._update_epoch = SQL("UPDATE {table} SET epoch = %s WHERE application_name = %s").format(**table)

    def create_table(self) -> None:
        """Create the table and its row at position 0, in the current transaction."""
        connection = self._session()
        for statement in self.sql_create_statements:
            connection.execute(statement)
        connection.execute(self._insert_first, (self.followed,))

    def move(self, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Move the checkpoint between two positions with their marks, in the current transaction.

        Raises MovedCheckpointError.
        """
        tracking = LedgerTracking(self.followed, after[0], mark=after[1], before=before)
        self._insert_tracking(self._session().cursor(), tracking)

    def _insert_tracking(self, curs: Cursor[Any], tracking: Tracking) -> None:
        assert isinstance(tracking, LedgerTracking), "a position alone does not identify a history"
        position, mark = tracking.before
        parameters = {
            "application_name": tracking.application_name,
            "notification_id": tracking.notification_id,
            "mark": tracking.mark,
            "before": position,
            "before_mark": mark,
        }
        if curs.execute(self.insert_tracking_statement, parameters, prepare=True).rowcount != 1:
            raise MovedCheckpointError(f"the checkpoint in {self.datastore.schema} is not {position}")

    def point(self) -> HistoryPoint:
        """Position, mark, and the epoch in which they were known to be in the log."""
        row = self._session().execute(self._select_point, (self.followed,)).fetchone()
        return HistoryPoint(*row) if row else BEGINNING

    def enter(self, epoch: int) -> None:
        """Record that what was followed is in the log of this epoch, too."""
        self._session().execute(self._update_epoch, (epoch, self.followed))


def followed(partition: int) -> str:
    """The name under which the progress in a partition's log is tracked."""
    return f"ledger_p{partition}"


def sql_tracked(schema: str, partition: int = 0) -> str:
    """An SQL expression: the position that the projections in this schema have reached, or null."""
    table = f"{schema}.{TRACKING_TABLE}"
    return f"(SELECT notification_id FROM {table} WHERE application_name = '{followed(partition)}')"
