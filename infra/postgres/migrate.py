"""Migrations: numbered SQL files, applied in order, once, forward only."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from psycopg import Connection

from infra.postgres.connections import ADVISORY_CLASS
from keyledger_reading.connections import ledger_conninfo

_HERE: Final = Path(__file__).parent
_MIGRATION_LOCK: Final = -1  # no partition has this number
_CREATE_HISTORY: Final = """
    CREATE SCHEMA IF NOT EXISTS ledger;
    CREATE TABLE IF NOT EXISTS ledger.migrations (
        number integer PRIMARY KEY,
        name text NOT NULL,
        checksum text NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""


class MigrationMismatchError(Exception):
    """The database's history of migrations does not match this program's."""

    def __init__(self, what: str) -> None:
        super().__init__(f"migration mismatch: {what}")


class Migration(NamedTuple):
    """One step of the schema, as shipped."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """Proves that a step was applied as it is shipped."""
        return sha256(self.sql.encode()).hexdigest()


def shipped_migrations(folder: Path = _HERE / "migrations") -> tuple[Migration, ...]:
    """All steps, in order; they are numbered 1, 2, 3 ..."""
    files = sorted(folder.glob("*.sql"))
    steps = tuple(Migration(int(file.stem.split("_")[0]), file.stem, file.read_text()) for file in files)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1)), (
        "a migration's number is missing"
    )
    return steps


def migrate(conninfo: str, steps: Sequence[Migration] | None = None) -> list[str]:
    """Apply what is missing and return its names; several processes may do so at once."""
    steps = shipped_migrations() if steps is None else steps
    with psycopg.connect(ledger_conninfo(conninfo, "keyledger migrate"), autocommit=True) as connection:
        # Released with the connection: a migration that is killed blocks no other process.
        connection.execute("SELECT pg_advisory_lock(%s, %s)", (ADVISORY_CLASS, _MIGRATION_LOCK))
        if not _has_history(connection):
            connection.execute(_CREATE_HISTORY)
        pending = _pending(connection, steps)
        for step in pending:
            _apply(connection, step)
        # Each time: a role may have been created since, and a migration killed before it came here.
        connection.execute((_HERE / "roles.sql").read_bytes())
        return [step.name for step in pending]


def check_migrated(conninfo: str, steps: Sequence[Migration] | None = None) -> None:
    """Refuse a database that does not have exactly the shipped migrations; changes nothing."""
    steps = shipped_migrations() if steps is None else steps
    with psycopg.connect(ledger_conninfo(conninfo, "keyledger migrate"), autocommit=True) as connection:
        pending = _pending(connection, steps) if _has_history(connection) else steps
    if pending:
        raise MigrationMismatchError(f"{pending[0].name} is not applied yet, run `keyledger migrate`.")


def wait_for_migration(connection: Connection[Any]) -> None:
    """Wait until none is in progress: the role and its rights are created at its end, after the tables."""
    lock = (ADVISORY_CLASS, _MIGRATION_LOCK)
    connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", lock)
    connection.execute("SELECT pg_advisory_unlock_shared(%s, %s)", lock)


def _has_history(connection: Connection[Any]) -> bool:
    row = connection.execute("SELECT to_regclass('ledger.migrations') IS NOT NULL").fetchone()
    return bool(row and row[0])


def _pending(connection: Connection[Any], steps: Sequence[Migration]) -> list[Migration]:
    rows = connection.execute("SELECT number, name, checksum FROM ledger.migrations ORDER BY number")
    applied = {number: (name, checksum) for number, name, checksum in rows}
    shipped = {step.number: step for step in steps}
    for number, (name, checksum) in applied.items():
        if number not in shipped:
            raise MigrationMismatchError(f"the database has {name}, which is newer than this program.")
        if shipped[number].checksum != checksum:
            raise MigrationMismatchError(f"{name} was changed after it had been applied.")
    pending = [step for step in steps if step.number not in applied]
    if pending and applied and pending[0].number < max(applied):
        raise MigrationMismatchError(f"{pending[0].name} is missing in the database, which has later ones.")
    return pending


def _apply(connection: Connection[Any], step: Migration) -> None:
    with connection.transaction():
        connection.execute(step.sql.encode())
        connection.execute(
            "INSERT INTO ledger.migrations (number, name, checksum) VALUES (%s, %s, %s)",
            (step.number, step.name, step.checksum),
        )
