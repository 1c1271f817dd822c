"""The log of a ledger as an application of the eventsourcing library, which its projections follow."""

from __future__ import annotations

from typing import ClassVar

from eventsourcing.application import Application


class KeyledgerLog(Application[str]):
    """What `ProjectionRunner` takes as `application_class`: it reads the log, and writes nothing.

    The environment names the ledger's database as KEYLEDGER_DATABASE_URL (a URL or a conninfo of libpq),
    with a user who may act as `keyledger_reader`.
    """

    name = "keyledger"
    env: ClassVar[dict[str, str]] = {"KEYLEDGER_PERSISTENCE_MODULE": "keyledger_reading.factory"}
