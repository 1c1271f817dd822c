"""Follow a Keyledger ledger's log from your own process, with projections of the eventsourcing library."""

from keyledger_reading.errors import DifferentPastError, UnknownEventError
from keyledger_reading.log import KeyledgerLog, topics_of
from keyledger_reading.positions import LogPosition
from keyledger_reading.views import PostgresView, SQLiteView, TrackedView

__all__ = [
    "DifferentPastError",
    "KeyledgerLog",
    "LogPosition",
    "PostgresView",
    "SQLiteView",
    "UnknownEventError",
    "TrackedView",
    "topics_of",
]
