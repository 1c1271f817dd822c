"""`keyledger up`, `serve` and `project`: processes that run until they are stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec
import structlog

from services.cli.faults import REFUSED, UNREACHABLE, WRONG_USAGE, CommandError
from services.cli.main import examples
from services.cli.session import Session, local
from services.cli.version import program_version
from services.settings import Settings

if TYPE_CHECKING:
    from infra.embedded import EmbeddedServers

log = structlog.get_logger()

_WATCH_SECONDS: Final = 0.5
_WORKER_PATIENCE_SECONDS: Final = 10.0
_WORKER_BEGINS_SECONDS: Final = 10.0
_WORKER_PAUSES_SECONDS: Final = (0.2, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_SECONDS: Final = 30.0
# Without the current folder on its path: a package `domain` of the operator must not be imported instead.
_PROGRAM: Final = (sys.executable, "-P", "-c", "from keyledger_boot import main; main()")
_PR_SET_PDEATHSIG: Final = 1


class Addresses(NamedTuple):
    """The addresses of PostgreSQL and NATS."""

    database_url: str
    nats_url: str
    edge_nats_url: str | None
    edge_nats_issuer: str | None


def _address_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--port", type=int, help="The port to listen on [KEYLEDGER_PORT, 8700]; 0: any."),
        click.option("--host", help="The address to listen on [KEYLEDGER_HOST, 127.0.0.1]."),
    ):
        function = option(function)
    return function


@click.command(
    "up",
    **examples(
        "keyledger up",
        "keyledger up --port 8800 --data-dir /var/lib/keyledger",
        "KEYLEDGER_DATABASE_URL=postgresql://ledger@db/ledger keyledger up    # embeds NATS only",
    ),
)
@_address_options
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="The data folder [KEYLEDGER_DATA_DIR, ./.keyledger]."
)
@local
def up(session: Session, host: str | None, port: int | None, data_dir: Path | None) -> None:
    """Run everything here: a PostgreSQL and a NATS of its own, the API, the worker.

    Data is in ./.keyledger. The first start creates a root key, in the file `root-key` there.
    Ctrl-C stops everything that it started.
    """
    settings = session.settings_with(host=host, port=port, data_dir=data_dir)
    _run(_Up(settings, as_json=session.as_json))


@click.command(
    "serve",
    **examples(
        "KEYLEDGER_DATABASE_URL=postgresql://ledger@db/ledger KEYLEDGER_NATS_URL=nats://nats keyledger serve",
        "keyledger serve --host 0.0.0.0 --no-worker      # and `keyledger project` elsewhere",
    ),
)
@_address_options
@click.option("--worker/--no-worker", default=True, help="Run the worker beside the API.")
@local
def serve(session: Session, host: str | None, port: int | None, worker: bool) -> None:
    """Serve the API on your own PostgreSQL and NATS, after `keyledger migrate`."""
    from services.cli.databases import required_urls  # noqa: PLC0415 - a quick start

    settings = session.settings_with(host=host, port=port)
    required_urls(settings, "serve")
    _run(_Up(settings, as_json=session.as_json, embed=False, worker=worker))


@click.command("project", **examples("keyledger project"))
@click.option("--parent", type=int, hidden=True)
@local
def project(session: Session, parent: int | None) -> None:
    """Run the worker: projections, and the relay to NATS. `up` and `serve` run one; more are on standby."""
    from services.cli.databases import required_urls  # noqa: PLC0415 - a quick start

    if parent is not None:
        end_with(parent)
    settings = session.settings
    database_url, nats_url = required_urls(settings, "project")
    with sentences():
        from services.api.serving.server import run  # noqa: PLC0415 - a quick start
        from services.bootstrap import check_migrated, run_worker  # noqa: PLC0415 - a quick start
        from services.cli.logs import configure_logs  # noqa: PLC0415 - a quick start
        from services.cli.waiting import wait_for_postgresql  # noqa: PLC0415 - a quick start

        configure_logs(settings)

        async def work() -> None:
            stop = stop_on_signals()
            check = partial(check_migrated, database_url)
            if await wait_for_postgresql(check, stop, most_seconds=settings.wait_seconds):
                await run_worker(settings, database_url, nats_url, stop)

        run(work())


class _Up:
    """One ledger: its servers, its API, its worker."""

    def __init__(self, settings: Settings, *, as_json: bool, embed: bool = True, worker: bool = True) -> None:
        self.settings = settings
        self._as_json = as_json
        self._embed = embed
        self._with_worker = worker
        self._servers: EmbeddedServers | None = None
        self._listener: socket.socket | None = None

    def main(self) -> None:
        """Run it to its end; everything that was started is stopped, however it ends."""
        from services.api.serving.server import listen, run  # noqa: PLC0415 - a quick start
        from services.cli.logs import configure_logs  # noqa: PLC0415 - a quick start

        configure_logs(self.settings)
        # A kill during the start must still stop what was started.
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            self._take_folder()
            # Before the servers start: a busy port is reported at once.
            self._listener = listen(self.settings.host, self.settings.port)
            self.settings = msgspec.structs.replace(self.settings, port=self._listener.getsockname()[1])
            # The program is imported while the servers start: either takes half a second.
            reading = Thread(target=import_module, args=("services.bootstrap",))
            reading.start()
            addresses = self._start_servers()
            reading.join()
            run(self._run(addresses))
        finally:
            if self._listener is not None:
                self._listener.close()
            if self._servers is not None:
                self._servers.stop()

    def _take_folder(self) -> None:
        settings = self.settings
        if not self._embed or (settings.database_url and settings.nats_url):
            return
        from infra.embedded import EmbeddedServers  # noqa: PLC0415 - a quick start

        servers = EmbeddedServers(
            settings.data_dir, postgres=settings.database_url is None, nats=settings.nats_url is None
        )
        servers.folder.open()
        self._servers = servers

    def _start_servers(self) -> Addresses:
        settings, servers = self.settings, self._servers
        if servers is None:
            assert settings.database_url, "without embedded servers both addresses are set"
            assert settings.nats_url, "without embedded servers both addresses are set"
            return Addresses(
                settings.database_url, settings.nats_url, settings.edge_nats_url, settings.edge_nats_issuer
            )
        servers.start()
        if settings.nats_url is not None:
            return Addresses(
                servers.postgres.dsn, settings.nats_url, settings.edge_nats_url, settings.edge_nats_issuer
            )
        return Addresses(
            settings.database_url or servers.postgres.dsn,
            servers.nats.url,
            settings.edge_nats_url or servers.nats.edge_url,
            servers.nats.issuer_seed,
        )

    def _warn_without_master_key(self) -> None:
        """Only for the operator's own database; for the embedded one, for trials, `doctor` reports it."""
        if self.settings.database_url is not None and self.settings.master_key is None:
            problem = (
                "Without KEYLEDGER_MASTER_KEY anyone who can read the database can read the names in it."
            )
            log.warning("master_key.missing", problem=problem)

    async def _run(self, addresses: Addresses) -> None:
        from services.bootstrap import check_migrated, migrate, run_server  # noqa: PLC0415 - a quick start
        from services.cli.waiting import wait_for_postgresql  # noqa: PLC0415 - a quick start

        self._warn_without_master_key()
        stop = stop_on_signals()
        told = msgspec.structs.replace(
            self.settings,
            database_url=addresses.database_url,
            nats_url=addresses.nats_url,
            edge_nats_url=addresses.edge_nats_url,
            edge_nats_issuer=addresses.edge_nats_issuer,
        )
        assert self._listener is not None, "the address is taken before anything starts"
        prepare = migrate if self._embed else check_migrated
        beside: list[asyncio.Task[None]] = []
        if self._servers is not None:
            beside.append(asyncio.create_task(self._watch_servers(self._servers, stop)))
        try:
            if not await wait_for_postgresql(
                partial(prepare, addresses.database_url),
                stop,
                most_seconds=self.settings.wait_seconds,
                listeners=[self._listener],
            ):
                return
            if self._with_worker:
                beside.append(
                    asyncio.create_task(
                        _Worker(msgspec.structs.replace(told, edge_nats_issuer=None)).keep(stop)
                    )
                )
            await run_server(
                told,
                addresses.database_url,
                addresses.nats_url,
                stop,
                listeners=[self._listener],
                on_ready=self._announce,
            )
        finally:
            stop.set()
            await asyncio.gather(*beside)

    async def _announce(self, assembled: Any) -> None:
        from services.cli.first_root_key import ensure_root_key  # noqa: PLC0415 - a quick start

        file = await ensure_root_key(assembled, self.settings)
        if self._with_worker:
            # A user who reads that it is ready may ask for a list next, from tables that the worker creates.
            ledger = assembled.ledger
            await ledger.wait_for_projections(ledger.head, _WORKER_BEGINS_SECONDS)
        if self._as_json:
            click.echo(json.dumps(self._told(file)))
            return
        click.echo(f"Keyledger {program_version()} is ready.\n")
        for name, value in self._lines(file):
            click.echo(f"  {name:<9} {value}")
        click.echo("\nCtrl-C stops it." if sys.stdout.isatty() else "", nl=sys.stdout.isatty())
        sys.stdout.flush()

    def _told(self, file: Path | None) -> dict[str, str | None]:
        return {
            "api": self.settings.address,
            "docs": f"{self.settings.address}/docs",
            "data_dir": str(self.settings.data_dir.absolute()) if self._servers is not None else None,
            "root_key_file": str(file.absolute()) if file is not None else None,
        }

    def _lines(self, file: Path | None) -> list[tuple[str, str]]:
        settings = self.settings
        lines = [("API", settings.address), ("Docs", f"{settings.address}/docs")]
        if self._servers is not None:
            embedded = [
                name
                for name, url in (("PostgreSQL", settings.database_url), ("NATS", settings.nats_url))
                if url is None
            ]
            lines.append(("Data", f"{settings.data_dir.absolute()} (embedded {' and '.join(embedded)})"))
        if file is None:
            return lines
        if sys.stdout.isatty():
            lines.append(("Root key", file.read_text(encoding="utf-8")))
            lines.append(("", f"shown only once; a copy that only you can read is in {file.absolute()}"))
        else:
            lines.append(("Root key", f"in {file.absolute()}"))
        return lines

    async def _watch_servers(self, servers: EmbeddedServers, stop: asyncio.Event) -> None:
        """Restart an embedded server that ended by itself.

        Here, in the main thread: a server ends with the thread that started it.
        """
        from infra.embedded import EmbeddedError  # noqa: PLC0415 - a quick start

        while not await _stopped(stop, _WATCH_SECONDS):
            try:
                for name in servers.revive():
                    log.warning("server.revived", server=name)
            except EmbeddedError as error:
                log.error("server.not_revived", problem=str(error))  # noqa: TRY400 - the sentence is enough


class _Worker:
    """The worker process beside the API: restarted whenever it ends; it never outlives this process."""

    def __init__(self, settings: Settings) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("KEYLEDGER_")}
        # In the environment: everybody on the machine can see the arguments.
        self._environment = kept | settings.environment()

    async def keep(self, stop: asyncio.Event) -> None:
        """Keep it running until `stop` is set."""
        failures = 0
        while not stop.is_set():
            started = time.monotonic()
            process = await asyncio.create_subprocess_exec(
                *_PROGRAM,
                "project",
                "--parent",
                str(os.getpid()),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C on the terminal is for this process
            )
            if await _ended(process, stop):
                failures = 0 if time.monotonic() - started > _HEALTHY_SECONDS else failures + 1
                log.warning("worker.ended", status=process.returncode)
                await _stopped(stop, _WORKER_PAUSES_SECONDS[min(failures, len(_WORKER_PAUSES_SECONDS)) - 1])
                continue
            await _stop(process)


async def _ended(process: asyncio.subprocess.Process, stop: asyncio.Event) -> bool:
    """Wait until it ends or `stop` is set; True if it ended by itself."""
    ending, stopping = asyncio.create_task(process.wait()), asyncio.create_task(stop.wait())
    await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
    ended = ending.done() and not stop.is_set()
    for task in (ending, stopping):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return ended


async def _stop(process: asyncio.subprocess.Process) -> None:
    for ask in (process.terminate, process.kill):
        if process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            ask()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _WORKER_PATIENCE_SECONDS)


def end_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, even by kill -9."""
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only needed on Linux

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    else:
        import threading  # noqa: PLC0415 - other kernels cannot do it: a thread polls

        threading.Thread(target=_look_after, args=(parent,), daemon=True).start()
    # The parent may have died before the kernel was asked.
    if os.getppid() != parent:
        raise CommandError("The keyledger process that started this worker has ended.")


def _look_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def stop_on_signals() -> asyncio.Event:
    """An event that Ctrl-C and SIGTERM set."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


async def _stopped(stop: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
    return stop.is_set()


def _interrupt(_: int, __: object) -> None:
    raise KeyboardInterrupt


def _run(ledger: _Up) -> None:
    with sentences():
        ledger.main()


@contextmanager
def sentences() -> Generator[None]:
    """Turn each error that keeps a ledger from running into one sentence and an exit code."""
    import psycopg  # noqa: PLC0415 - a quick start

    from domain.ports import LogUnavailableError  # noqa: PLC0415 - a quick start
    from infra.embedded import EmbeddedError  # noqa: PLC0415 - a quick start
    from infra.nats.edge_logins import IssuerSeedError  # noqa: PLC0415 - a quick start
    from infra.postgres.connections import UnsafeDatabaseError  # noqa: PLC0415 - a quick start
    from infra.postgres.data_keys import MasterKeyError  # noqa: PLC0415 - a quick start
    from infra.postgres.migrate import MigrationMismatchError  # noqa: PLC0415 - a quick start
    from services.api.serving.server import CannotListenError  # noqa: PLC0415 - a quick start

    try:
        yield
    except CannotListenError as error:
        raise CommandError(str(error), code="cannot_listen", exit_code=WRONG_USAGE) from None
    except EmbeddedError as error:
        raise CommandError(str(error), code="embedded_server", exit_code=REFUSED) from None
    except IssuerSeedError as error:
        sentence = f"KEYLEDGER_EDGE_NATS_ISSUER: {error}"
        raise CommandError(sentence, code="wrong_setting", exit_code=WRONG_USAGE) from None
    except (MigrationMismatchError, UnsafeDatabaseError, MasterKeyError) as error:
        raise CommandError(_sentence(error), code="unfit_database", exit_code=REFUSED) from None
    except (psycopg.Error, LogUnavailableError) as error:
        raise CommandError(
            f"PostgreSQL cannot be used: {_sentence(error)}",
            code="database_unreachable",
            exit_code=UNREACHABLE,
        ) from None


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{text[0].upper()}{text[1:]}."
