"""The log of a ledger as an application of the eventsourcing library, which its projections follow."""

from __future__ import annotations

from typing import ClassVar

from eventsourcing.application import Application

from keyledger_language.events import Event
from keyledger_reading.mapper import tag_of


class KeyledgerLog(Application[str]):
    """What `ProjectionRunner` takes as `application_class`: it reads the log, and writes nothing.

    The environment names the ledger's database as KEYLEDGER_DATABASE_URL (a URL or a conninfo of libpq),
    with a user who may act as `keyledger_reader`.
    """

    name = "keyledger"
    env: ClassVar[dict[str, str]] = {"KEYLEDGER_PERSISTENCE_MODULE": "keyledger_reading.factory"}


def topics_of(*event_types: type[Event]) -> tuple[str, ...]:
    """A projection's `topics`: only events of these types are read for it."""
    return tuple(map(tag_of, event_types))
