"""Fixtures: a real PostgreSQL and a real NATS for the session, a database and an empty NATS for each test."""

import asyncio
import atexit
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import LiteralString

import nats
import psycopg
import pytest
from nats.js.errors import APIError
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.embedded import EmbeddedNats, EmbeddedPostgres, EmbeddedServers
from infra.embedded.folder import DataFolder


@contextmanager
def server_folder() -> Generator[Path]:
    """A folder that the servers' own user can enter, whoever runs the tests; gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="keyledger-test-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


kept = ExitStack()
"""What is made once for all tests of a process; conftest.py closes it when they are done."""
atexit.register(kept.close)


@cache
def _initialised() -> Path:
    """The files of a PostgreSQL as initdb makes them, which nobody ever started."""
    path = kept.enter_context(server_folder())
    with DataFolder(path / "data") as folder:
        EmbeddedPostgres(folder)._initialise()
    return path / "data" / "postgres"


def initialised(data: Path) -> Path:
    """A data folder whose PostgreSQL has never been started: initdb takes a second, and its copy does not."""
    data.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(_initialised()), str(data / "postgres")], check=True)
    return data


@contextmanager
def fresh_database(server: EmbeddedPostgres, *, template: str = "template0") -> Generator[str]:
    """A database of one's own, as a conninfo; gone afterwards, whoever is connected."""
    name = f"test_{uuid.uuid4().hex}"
    _administer(server, "CREATE DATABASE {} TEMPLATE {} STRATEGY WAL_LOG", name, template)
    try:
        yield make_conninfo(server.dsn, dbname=name)
    finally:
        _administer(server, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[EmbeddedPostgres]:
    """One PostgreSQL for the session."""
    with server_folder() as folder, EmbeddedServers(initialised(folder / "data"), nats=False) as servers:
        yield servers.postgres


@pytest.fixture(scope="session")
def nats_server() -> Iterator[EmbeddedNats]:
    """One nats-server for the session."""
    with server_folder() as folder, EmbeddedServers(folder / "data", postgres=False) as servers:
        yield servers.nats


@pytest.fixture
def database(postgres_server: EmbeddedPostgres) -> Iterator[str]:
    """The conninfo of an empty database of this test's own."""
    with fresh_database(postgres_server) as conninfo:
        yield conninfo


@pytest.fixture
def nats_url(nats_server: EmbeddedNats) -> Iterator[str]:
    """The address of a NATS without streams; those that the test makes are deleted."""
    asyncio.run(delete_streams(nats_server.url))  # a test that took `nats_server` alone may have left some
    yield nats_server.url
    asyncio.run(delete_streams(nats_server.url))


async def delete_streams(url: str) -> None:
    """Leave no stream behind: the next test is to find none."""
    connection = await nats.connect(url, connect_timeout=5)
    try:
        jetstream = connection.jetstream()
        for stream in await jetstream.streams_info():
            if stream.config.name is not None:
                await jetstream.delete_stream(stream.config.name)
    except APIError as error:
        pytest.fail(f"NATS could not be emptied: {error}")
    finally:
        await connection.close()


def _administer(server: EmbeddedPostgres, statement: LiteralString, *names: str) -> None:
    with psycopg.connect(make_conninfo(server.dsn, dbname="postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
