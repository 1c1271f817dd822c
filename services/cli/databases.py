"""The PostgreSQL and the NATS that commands beside a ledger work on: the operator's, or embedded ones."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

from infra.embedded import DataFolder, DataFolderBusyError, EmbeddedError, EmbeddedPostgres, EmbeddedServers
from services.cli.faults import UNREACHABLE, WRONG_USAGE, CommandError
from services.settings import Settings


class Running(NamedTuple):
    """Addresses of the servers that a command works on."""

    database_url: str
    nats_url: str | None


def required_urls(settings: Settings, command: str) -> tuple[str, str]:
    """Both addresses, or an error that names what to set."""
    missing = [
        name
        for name, value in (
            ("KEYLEDGER_DATABASE_URL", settings.database_url),
            ("KEYLEDGER_NATS_URL", settings.nats_url),
        )
        if value is None
    ]
    if settings.database_url is None or settings.nats_url is None:
        raise CommandError(
            f"`keyledger {command}` needs {' and '.join(missing)}; `keyledger up` brings its own servers.",
            code="setting_needed",
            exit_code=WRONG_USAGE,
        )
    return settings.database_url, settings.nats_url


@contextmanager
def reachable_database(settings: Settings) -> Generator[str]:
    """The operator's database; else the embedded one, which is started for this command unless it runs."""
    with reachable_servers(settings, nats=False) as servers:
        yield servers.database_url


@contextmanager
def reachable_servers(settings: Settings, *, nats: bool = True) -> Generator[Running]:
    """The same with NATS, if its address is known."""
    if settings.database_url is not None:
        yield Running(settings.database_url, settings.nats_url)
        return
    if not (settings.data_dir / "postgres").is_dir():
        raise CommandError(
            f"There is no ledger in {settings.data_dir.absolute()}: start one with `keyledger up`, or set "
            "KEYLEDGER_DATABASE_URL or KEYLEDGER_DATA_DIR.",
            code="no_ledger",
            exit_code=UNREACHABLE,
        )
    servers = EmbeddedServers(settings.data_dir, nats=nats and settings.nats_url is None)
    try:
        servers.start()
    except DataFolderBusyError:
        running = running_servers(settings)
        yield running._replace(nats_url=settings.nats_url or running.nats_url)
        return
    except EmbeddedError as error:
        raise CommandError(str(error), code="embedded_server", exit_code=UNREACHABLE) from None
    try:
        own = servers.nats.url if nats and settings.nats_url is None else None
        yield Running(servers.postgres.dsn, settings.nats_url or own)
    finally:
        servers.stop()


def running_servers(settings: Settings) -> Running:
    """The addresses of the embedded servers of a `keyledger up` that runs as another process."""
    folder = DataFolder(settings.data_dir)
    users, port = folder.recall("nats-users"), folder.recall("nats-port")
    nats_url = None
    if users is not None and port is not None:
        nats_url = f"nats://ledger:{json.loads(users)['ledger']}@127.0.0.1:{port}"
    return Running(EmbeddedPostgres(folder).dsn, nats_url)
