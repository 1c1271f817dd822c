"""Migrations run once, in order, forward only, whoever runs them at the same time."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from infra.embedded import EmbeddedPostgres, EmbeddedServers
from infra.postgres.connections import connect
from infra.postgres.migrate import (
    Migration,
    MigrationMismatchError,
    check_migrated,
    migrate,
    shipped_migrations,
)
from tests.servers import fresh_database, initialised, server_folder

STEPS = shipped_migrations()
NEWER = Migration(len(STEPS) + 1, f"{len(STEPS) + 1:04}_newer", "CREATE TABLE ledger.newer ()")


def rows(conninfo: str, query: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return connection.execute(query.encode()).fetchall()


def tables(conninfo: str) -> set[str]:
    return {name for (name,) in rows(conninfo, "SELECT tablename FROM pg_tables WHERE schemaname = 'ledger'")}


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_each_is_applied_onto_the_one_before(database: str, step: Migration) -> None:
    migrate(database, STEPS[: step.number - 1])

    assert migrate(database, STEPS[: step.number]) == [step.name]
    check_migrated(database, STEPS[: step.number])


def test_a_saved_state_of_another_layout_is_dropped_with_its_checkpoint(database: str) -> None:
    migrate(database, STEPS[:3])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO ledger.state_rows_p0 VALUES ('wallets/org_1', true, 'row')")
        connection.execute("INSERT INTO ledger.checkpoints VALUES (0, 7)")

    migrate(database, STEPS[:4])

    assert rows(database, "SELECT through FROM ledger.checkpoints") == []
    assert rows(database, "SELECT * FROM ledger.state_rows_p0") == []
    assert rows(database, "SELECT * FROM ledger.state_rows_p0_settled") == []


def test_rows_saved_with_personal_fields_in_the_open_go_with_their_files(database: str) -> None:
    """What is only deleted stays on its page until that is used again."""
    files = "SELECT pg_read_binary_file(pg_relation_filepath(oid)) FROM pg_class WHERE relname ~ '^state'"
    step = next(step for step in STEPS if step.name.endswith("_closed_rows"))
    migrate(database, STEPS[: step.number - 1])
    with psycopg.connect(database, autocommit=True) as connection:
        for table in ("state_rows_p0", "state_rows_p0_settled"):
            connection.execute(f"INSERT INTO ledger.{table} VALUES ('keys/1', 'Ada Lovelace')".encode())
        connection.execute("INSERT INTO ledger.checkpoints (partition, through) VALUES (0, 7)")
        connection.execute("CHECKPOINT")
    assert sum(b"Lovelace" in bytes(data) for (data,) in rows(database, files)) == 2

    migrate(database, STEPS[: step.number])

    assert [data for (data,) in rows(database, files) if b"Lovelace" in bytes(data)] == []
    assert rows(database, "SELECT through FROM ledger.checkpoints") == []


def test_a_second_run_does_nothing(database: str) -> None:
    assert migrate(database) == [step.name for step in STEPS]
    assert migrate(database) == []
    check_migrated(database)


def test_a_step_that_fails_leaves_nothing_behind(database: str) -> None:
    failing = NEWER._replace(sql="CREATE TABLE ledger.half (); SELECT 1/0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        migrate(database, [*STEPS, failing])

    assert "half" not in tables(database)
    assert migrate(database, [*STEPS, NEWER]) == [NEWER.name]


def test_several_processes_may_migrate_at_once(database: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        applied = list(pool.map(lambda _: migrate(database), range(8)))

    assert sorted(applied, key=len) == [[]] * 7 + [[step.name for step in STEPS]]


@pytest.fixture
def databases(postgres_server: EmbeddedPostgres) -> Iterator[list[str]]:
    with fresh_database(postgres_server) as first, fresh_database(postgres_server) as second:
        yield [first, second]


def test_two_databases_of_one_server_may_create_the_role_at_once(databases: list[str]) -> None:
    # The role belongs to the whole server; each database's lock is its own.
    start = threading.Barrier(2)

    def run(conninfo: str) -> list[str]:
        start.wait()
        return migrate(conninfo)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, databases)) == [[step.name for step in STEPS]] * 2


def test_a_killed_migration_blocks_nobody(database: str) -> None:
    migrate(database, STEPS[:1])
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(1262243905, -1)")
        waiting = ThreadPoolExecutor(1).submit(migrate, database)
        assert not waiting.done()

    assert waiting.result(10) == [step.name for step in STEPS[1:]]


# -- mismatches -----------------------------------------------------------------------------------


def test_a_database_that_is_behind_is_refused_by_the_check(database: str) -> None:
    with pytest.raises(MigrationMismatchError, match=r"0001_log is not applied yet"):
        check_migrated(database)
    assert tables(database) == set(), "a check changes nothing"

    migrate(database, STEPS[:1])

    with pytest.raises(MigrationMismatchError, match=r"^migration mismatch: 0002.* is not applied yet"):
        check_migrated(database)


def test_a_database_that_is_newer_is_refused(database: str) -> None:
    migrate(database, [*STEPS, NEWER])

    for refusing in (migrate, check_migrated):
        with pytest.raises(MigrationMismatchError, match=r"^migration mismatch: .* newer than this program"):
            refusing(database)


def test_a_step_that_was_changed_is_refused(database: str) -> None:
    migrate(database)
    changed = (STEPS[0]._replace(sql=STEPS[0].sql + " "), *STEPS[1:])

    for refusing in (migrate, check_migrated):
        with pytest.raises(MigrationMismatchError, match=r"^migration mismatch: 0001_log was changed"):
            refusing(database, changed)


def test_a_step_that_is_missing_before_later_ones_is_refused(database: str) -> None:
    migrate(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DELETE FROM ledger.migrations WHERE number = 2")

    with pytest.raises(MigrationMismatchError, match=r"0002_.* is missing in the database"):
        migrate(database)


def test_files_are_numbered_without_gaps(tmp_path: Path) -> None:
    (tmp_path / "0001_first.sql").write_text("SELECT 1")
    (tmp_path / "0003_third.sql").write_text("SELECT 1")

    with pytest.raises(AssertionError, match="number is missing"):
        shipped_migrations(tmp_path)


# -- roles ----------------------------------------------------------------------------------------


@pytest.fixture
def plain_owner(postgres_server: EmbeddedPostgres, database: str) -> Iterator[str]:
    """A database whose owner may not create roles, on a server that may have ours already."""
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute("DROP ROLE IF EXISTS plain_owner")
        administrator.execute("CREATE ROLE plain_owner LOGIN")
        administrator.execute(b"GRANT CREATE ON DATABASE %s TO plain_owner" % name_of(database).encode())
    yield make_conninfo(database, user="plain_owner")
    with psycopg.connect(database, autocommit=True) as administrator:
        administrator.execute("DROP OWNED BY plain_owner CASCADE")
        administrator.execute("DROP ROLE plain_owner")


def name_of(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo)["dbname"])


def test_an_owner_that_may_not_create_roles_can_migrate(plain_owner: str) -> None:
    assert migrate(plain_owner) == [step.name for step in STEPS]
    check_migrated(plain_owner)


def test_an_owner_that_may_create_roles_makes_them_and_acts_in_them() -> None:
    """Since PostgreSQL 16 such an owner administers what it creates, and is no member of it by itself."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
        with psycopg.connect(servers.postgres.dsn, autocommit=True) as administrator:
            administrator.execute("CREATE ROLE owner LOGIN CREATEROLE")
            administrator.execute("CREATE DATABASE owned OWNER owner")
        owned = make_conninfo(servers.postgres.dsn, user="owner", dbname="owned")

        assert migrate(owned) == [step.name for step in STEPS]

        for role in ("keyledger_service", "keyledger_reader"):
            with connect(owned, "test", role=role) as session:
                assert session.execute("SELECT current_user").fetchone() == (role,)
                session.execute("SELECT FROM ledger.events_p0")


def test_grants_are_made_when_a_migration_was_killed_before_it_made_them(ledger_database: str) -> None:
    with psycopg.connect(ledger_database, autocommit=True) as connection:
        connection.execute("REVOKE ALL ON ledger.owners FROM keyledger_service")
        connection.execute("REVOKE ALL ON ledger.events_p0 FROM keyledger_reader")

    migrate(ledger_database)

    granted = (
        "SELECT has_table_privilege('keyledger_service', 'ledger.owners', 'UPDATE'),"
        " has_table_privilege('keyledger_reader', 'ledger.events_p0', 'SELECT')"
    )
    assert rows(ledger_database, granted) == [(True, True)]


def test_grants_are_made_up_for_when_the_role_was_missing(ledger_database: str) -> None:
    with psycopg.connect(ledger_database, autocommit=True) as connection:
        connection.execute("REVOKE ALL ON SCHEMA ledger FROM keyledger_service")

    assert migrate(ledger_database) == []

    granted = rows(ledger_database, "SELECT has_schema_privilege('keyledger_service', 'ledger', 'USAGE')")
    assert granted == [(True,)]
