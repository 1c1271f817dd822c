"""Whether this process has the master key that the data keys need: checked before anything starts."""

from __future__ import annotations

from typing import Final

import psycopg

from infra.postgres.data_keys import WRAPPED_BYTES, DataKeys
from keyledger_reading.connections import ledger_conninfo

_ONE_THAT_IS_WRAPPED: Final = (
    "SELECT subject, material FROM ledger.data_keys WHERE octet_length(material) = %s LIMIT 1"
)


def check_master_key(conninfo: str, master_key: bytes | None) -> None:
    """Raise MasterKeyError if data keys are wrapped, and not with this master key."""
    with psycopg.connect(ledger_conninfo(conninfo, "keyledger start"), autocommit=True) as connection:
        found = connection.execute(_ONE_THAT_IS_WRAPPED, (WRAPPED_BYTES,)).fetchall()
    DataKeys(master_key).learn({subject: bytes(material) for subject, material in found})
