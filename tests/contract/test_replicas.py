"""The pair of PostgreSQL that other tests break: it replicates, and what is done to it happens."""

import threading

import psycopg
import pytest

from tests.replicas import Replicas


def write(conninfo: str, text: str) -> None:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (text text PRIMARY KEY)")
        connection.execute("INSERT INTO kept VALUES (%s)", [text])


def read(conninfo: str) -> set[str]:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        return {text for (text,) in connection.execute("SELECT text FROM kept").fetchall()}


def test_a_killed_primary_is_followed_by_its_standby_and_comes_back_as_one(
    replicated_postgres: Replicas,
) -> None:
    replicas = replicated_postgres
    write(replicas.conninfo, "before")
    replicas.primary.kill()
    replicas.promote()
    write(replicas.conninfo, "on b")
    replicas.rebuild()
    replicas.make_synchronous()
    write(replicas.conninfo, "on both")

    assert replicas.primary is replicas.b
    assert (replicas.b.timeline, replicas.a.in_recovery) == (2, True)
    replicas.primary.kill()
    replicas.promote()
    assert read(replicas.a.conninfo()) == {"before", "on b", "on both"}


def test_a_commit_waits_for_the_standby_and_a_split_brain_has_two_primaries(
    replicated_postgres: Replicas,
) -> None:
    replicas = replicated_postgres
    write(replicas.conninfo, "before")
    replicas.isolate()
    hung = threading.Thread(target=_expect_termination, args=(replicas.a.conninfo(),))
    hung.start()
    hung.join(0.5)
    assert hung.is_alive()

    replicas.promote(replicas.b)
    write(replicas.b.conninfo(), "new")

    assert hung.is_alive()
    assert (replicas.a.in_recovery, replicas.b.in_recovery) == (False, False)
    assert read(replicas.b.conninfo()) == {"before", "new"}
    replicas.rebuild()
    hung.join(10)
    assert read(replicas.a.conninfo()) == {"before", "new"}


def _expect_termination(conninfo: str) -> None:
    with pytest.raises(psycopg.OperationalError):
        write(conninfo, "old")


def test_a_standby_that_lags_loses_what_it_had_not_got(replicated_postgres: Replicas) -> None:
    replicas = replicated_postgres
    write(replicas.conninfo, "kept")
    replicas.make_asynchronous()
    replicas.isolate()
    write(replicas.conninfo, "lost")
    replicas.primary.kill()
    replicas.promote()

    assert read(replicas.conninfo) == {"kept"}


def test_a_cold_copy_is_what_there_was(replicated_postgres: Replicas) -> None:
    replicas = replicated_postgres
    write(replicas.conninfo, "kept")
    replicas.standby.stop()
    replicas.primary.stop()
    copy = replicas.primary.copy_cold(replicas.primary.folder / "copy")
    replicas.primary.start()
    replicas.make_asynchronous()
    write(replicas.conninfo, "lost")
    replicas.primary.kill()
    replicas.primary.restore(copy)
    replicas.primary.start()
    replicas.make_asynchronous()
    replicas.rebuild()

    assert read(replicas.conninfo) == {"kept"}
    assert read(replicas.b.conninfo()) == {"kept"}
