"""The log of a ledger as an application of the eventsourcing library, which its projections follow."""

from __future__ import annotations

from typing import Any

from eventsourcing.application import Application
from eventsourcing.persistence import InfrastructureFactory
from eventsourcing.utils import Environment

from keyledger_language.events import Event
from keyledger_reading.factory import ReadingFactory
from keyledger_reading.mapper import tag_of


class KeyledgerLog(Application[str]):
    """The `application_class` for `ProjectionRunner`: it reads the log, and writes nothing.

    The environment variable KEYLEDGER_DATABASE_URL names the ledger's database (a URL or libpq conninfo),
    with a user that may act as `keyledger_reader`.
    """

    name = "keyledger"

    def construct_factory(self, env: Environment) -> InfrastructureFactory[Any]:
        """The one that reads the log, whatever PERSISTENCE_MODULE names for the views."""
        return ReadingFactory(env)


def topics_of(*event_types: type[Event]) -> tuple[str, ...]:
    """The `topics` of a projection for which only events of these types are read."""
    return tuple(map(tag_of, event_types))
