"""`keyledger doctor`: what is configured, reachable, migrated, lagging, and what to do about it."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import click
import psycopg

from domain.ids import format_position
from domain.publishing import Place
from infra.embedded import DataFolder, DataFolderBusyError, EmbeddedError
from infra.nats.connection import NatsUnreachableError
from infra.nats.relay import published_place
from infra.postgres.connections import (
    ADVISORY_CLASS,
    UnsafeDatabaseError,
    connect,
    refuse_unsafe_settings,
    waits_for_standby,
)
from infra.postgres.data_keys import MasterKeyError
from infra.postgres.epochs import end_of_log, marks_at, read_history
from infra.postgres.master_key import check_master_key
from infra.postgres.migrate import MigrationMismatchError, check_migrated
from keyledger_language import position_prefix
from services.api.resources.edge_membership import edge_address
from services.cli.databases import running_servers
from services.cli.faults import REFUSED
from services.cli.main import examples
from services.cli.root_key import FILE_NAME
from services.cli.session import Session, local
from services.cli.version import program_version
from services.settings import Settings, unknown_variables

State = Literal["ok", "attention", "broken"]

_LITTLE_DISK: Final = 1 << 30
_NO_DISK: Final = 100 << 20
_FEW_FILES: Final = 4_096
_CLOCK_SECONDS: Final = 1.0
_LAG: Final = 5_000
_TIMEOUT_SECONDS: Final = 3.0

_OWNER: Final = """
    SELECT o.address, EXISTS (
        SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND classid = %s AND objid = 0 AND granted
    ) FROM ledger.owners AS o WHERE o.partition = 0
"""


class CheckResult(NamedTuple):
    """The result of one check."""

    state: State
    what: str
    found: str
    advice: str = ""


@click.command("doctor", **examples("keyledger doctor", "keyledger doctor --json"))
@local
def doctor(session: Session) -> int:
    """Show what is configured, reachable, migrated and lagging, and what to do about it.

    Exit code 0 when nothing is broken ("attention" is advice), 1 when something is.
    """
    findings = list(examine(session.settings))
    broken = any(one.state == "broken" for one in findings)
    document = {
        "healthy": not broken,
        "version": program_version(),
        "findings": [one._asdict() for one in findings],
        "settings": session.settings.shown(),
    }

    def people() -> None:
        session.table(("", "what", "found"), [one[:3] for one in findings], empty="")
        if advised := [one for one in findings if one.advice]:
            session.say("\nWhat to do:")
            for one in advised:
                session.say(f"  {one.what}: {one.advice}")
        session.say("\nSomething is broken." if broken else "\nNothing is broken.")

    session.show(document, people)
    return REFUSED if broken else 0


def examine(settings: Settings) -> Iterator[CheckResult]:
    """Check everything, beginning with the settings."""
    yield from _settings(settings)
    yield from _machine(settings)
    api = _api(settings)
    yield api
    database_url, nats_url = settings.database_url, settings.nats_url
    if database_url is None or nats_url is None:
        running = _embedded(settings)
        yield running.finding
        database_url = database_url or running.database_url
        nats_url = nats_url or running.nats_url
    head = None
    if database_url is not None:
        yield from (_seen_beside(api, one) for one in _database(database_url, settings.master_key))
        head = _head(database_url)
    if nats_url is not None:
        yield _relay(nats_url, head, database_url)


def _settings(settings: Settings) -> Iterator[CheckResult]:
    chosen = [name for name, value in settings.shown().items() if value != _DEFAULTS[name]]
    yield CheckResult("ok", "settings", f"set: {', '.join(chosen)}" if chosen else "all defaults")
    if unknown := unknown_variables():
        yield CheckResult(
            "attention",
            "settings",
            f"not known to this version: {', '.join(unknown)}",
            "check the spelling",
        )
    key_file = settings.data_dir / FILE_NAME
    if key_file.exists() and (mode := stat.S_IMODE(key_file.stat().st_mode)) & 0o077:
        yield CheckResult(
            "broken",
            "root key",
            f"{key_file} is open to others (mode {mode:04o})",
            f"chmod 600 {key_file}, then rotate the key",
        )
    if settings.master_key is None:
        yield CheckResult(
            "attention",
            "master key",
            "not set: anyone who can read the database can read the names and metadata in it",
            "set KEYLEDGER_MASTER_KEY to 32 random bytes (`openssl rand -hex 32`), and keep a copy elsewhere",
        )

    yield from _way_of_edges(settings)


def _way_of_edges(settings: Settings) -> Iterator[CheckResult]:
    """Whether edges can get an address of NATS."""
    if settings.nats_url is None:
        return
    own_users = settings.edge_nats_issuer is not None
    if edge_address(settings.nats_url, settings.edge_nats_url, users_of_their_own=own_users) is None:
        yield CheckResult(
            "attention",
            "edges",
            "refused: the user in KEYLEDGER_NATS_URL is the ledger's own, and is not given to edges",
            "set KEYLEDGER_EDGE_NATS_URL to the address and user for edges, or KEYLEDGER_EDGE_NATS_ISSUER",
        )


_DEFAULTS: Final = Settings().shown()


def _machine(settings: Settings) -> Iterator[CheckResult]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FEW_FILES:
        yield CheckResult(
            "attention", "open files", f"at most {soft}", f"allow {_FEW_FILES} or more: ulimit -n"
        )
    if settings.database_url is not None and settings.nats_url is not None:
        return
    place = settings.data_dir if settings.data_dir.exists() else settings.data_dir.absolute().parent
    try:
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield CheckResult("broken", "disk", f"{place}: {error.strerror}", "choose another KEYLEDGER_DATA_DIR")
        return
    state: State = "broken" if free < _NO_DISK else "attention" if free < _LITTLE_DISK else "ok"
    advice = "" if state == "ok" else "free some space: a full disk stops every write"
    yield CheckResult(state, "disk", f"{free / (1 << 30):.1f} GiB free in {place}", advice)


def _api(settings: Settings) -> CheckResult:
    try:
        with urlopen(f"{settings.url}/readyz", timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - checked to be http
            ready = json.loads(answer.read())
    except HTTPError as error:
        waits = _waits(error.read())
        return CheckResult("broken", "API", f"{settings.url} waits: {waits}", "see the other findings")
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        return CheckResult(
            "attention",
            "API",
            f"no answer at {settings.url}: {getattr(why, 'strerror', None) or why}",
            "start it with `keyledger up`, or set KEYLEDGER_URL",
        )
    role = "owns the partition" if ready.get("owner") else "forwards to the owner"
    return CheckResult("ok", "API", f"{settings.url} is ready and {role}")


def _seen_beside(api: CheckResult, one: CheckResult) -> CheckResult:
    """The finding about the owner, with other advice if a process already runs and waits."""
    if one.what != "owner" or one.state == "ok" or api.state != "broken":
        return one
    if "new-epoch" not in api.found:
        return one._replace(advice="a ledger process runs and waits: see the finding API")
    return one._replace(
        advice="the running process knows another history: once you are sure that the finding history shows"
        " the log to continue with, run `keyledger new-epoch`"
    )


def _waits(body: bytes) -> str:
    try:
        waiting = json.loads(body).get("waits_for", [])
    except ValueError:
        return "it gives no reason"
    return "; ".join(str(one.get("detail")) for one in waiting) or "it gives no reason"


class _Embedded(NamedTuple):
    finding: CheckResult
    database_url: str | None = None
    nats_url: str | None = None


def _embedded(settings: Settings) -> _Embedded:
    """Where the embedded servers are, if a `keyledger up` runs them now. Starts and creates nothing."""
    place = settings.data_dir.absolute()
    if not (place / "lock").exists():
        found = f"none yet in {place}"
        return _Embedded(CheckResult("attention", "embedded servers", found, "`keyledger up` creates them"))
    folder = DataFolder(settings.data_dir)
    try:
        folder.open()
    except DataFolderBusyError as busy:
        running = running_servers(settings)
        found = f"in {place}, under pid {busy.pid}"
        return _Embedded(CheckResult("ok", "embedded servers", found), *running)
    except EmbeddedError as error:
        return _Embedded(CheckResult("broken", "embedded servers", str(error), "check who owns the folder"))
    folder.close()
    return _Embedded(
        CheckResult(
            "attention", "embedded servers", f"not running ({place})", "start them with `keyledger up`"
        )
    )


def _database(url: str, master_key: bytes | None) -> Iterator[CheckResult]:
    try:
        connection = connect(url, "keyledger doctor", role="")
    except psycopg.Error as error:
        yield CheckResult(
            "broken",
            "PostgreSQL",
            " ".join(str(error).split()),
            "check that it runs, and that KEYLEDGER_DATABASE_URL is right",
        )
        return
    with connection:
        version = connection.info.server_version
        yield CheckResult("ok", "PostgreSQL", f"version {version // 10_000}.{version % 10_000}, reachable")
        yield from (_looked(check, connection) for check in (_durability, _clock))
        try:
            check_migrated(url)
        except MigrationMismatchError as error:
            yield CheckResult("broken", "migrations", str(error), "run `keyledger migrate` with this version")
            return
        yield CheckResult("ok", "migrations", "up to date")
        try:
            check_master_key(url, master_key)
        except MasterKeyError as error:
            yield CheckResult(
                "broken", "master key", str(error), "find it: without it names and metadata are lost"
            )
        yield _history(url)
        yield from (_looked(check, connection) for check in (_owner, _projections))


def _looked(
    check: Callable[[psycopg.Connection[Any]], CheckResult], connection: psycopg.Connection[Any]
) -> CheckResult:
    try:
        return check(connection)
    except psycopg.Error as error:
        name = check.__name__.strip("_")
        return CheckResult("broken", name, " ".join(str(error).split()), "see PostgreSQL's log")


def _durability(connection: psycopg.Connection[Any]) -> CheckResult:
    try:
        refuse_unsafe_settings(connection)
    except UnsafeDatabaseError as error:
        return CheckResult("broken", "durability", str(error), "turn it on and restart PostgreSQL")
    if waits_for_standby(connection):
        return CheckResult(
            "broken",
            "durability",
            "PostgreSQL waits for its standby: nothing is written until one is back",
            "start a standby that synchronous_standby_names names, or name two: ANY 1 (a, b)",
        )
    return CheckResult("ok", "durability", "fsync, synchronous_commit and full_page_writes are on")


def _clock(connection: psycopg.Connection[Any]) -> CheckResult:
    before = time.time()
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    apart = abs(float(row[0]) - (before + time.time()) / 2) if row else 0.0
    if apart > _CLOCK_SECONDS:
        return CheckResult(
            "attention", "clock", f"{apart:.1f} s from the database's", "run an NTP client on both"
        )
    return CheckResult("ok", "clock", f"within {max(apart, 0.001) * 1000:.0f} ms of the database's")


def _history(url: str) -> CheckResult:
    try:
        history = read_history(url)
    except psycopg.Error as error:
        return CheckResult("broken", "history", " ".join(str(error).split()), "see PostgreSQL's log")
    end, timeline = history.end, history.timeline
    mark = end.mark.to_bytes(8, "big", signed=True).hex()
    return CheckResult(
        "ok",
        "history",
        f"epoch {end.epoch}, up to {_place(end.epoch, end.position)} with the mark {mark};"
        f" PostgreSQL's system identifier {history.system_identifier},"
        f" timeline {timeline or 'unknown: a standby'}",
    )


def _owner(connection: psycopg.Connection[Any]) -> CheckResult:
    row = connection.execute(_OWNER, (ADVISORY_CLASS,)).fetchone()
    if row is None:
        return CheckResult(
            "attention", "owner", "no process has ever owned the partition", "start `keyledger up` or `serve`"
        )
    if not row[1]:
        return CheckResult(
            "attention", "owner", f"none now; the last one was at {row[0]}", "start `keyledger up` or `serve`"
        )
    return CheckResult("ok", "owner", f"answers at {row[0]}")


def _projections(connection: psycopg.Connection[Any]) -> CheckResult:
    head, epoch = _head_of(connection)
    exists = connection.execute("SELECT to_regclass('projections.tracking') IS NOT NULL").fetchone()
    if not exists or not exists[0]:
        return CheckResult(
            "attention", "projections", "not created yet", "the worker creates them: `keyledger project`"
        )
    row = connection.execute("SELECT min(notification_id) FROM projections.tracking").fetchone()
    return _lag("projections", head - int((row and row[0]) or 0), head, epoch)


def _head(url: str) -> tuple[int, int] | None:
    try:
        with connect(url, "keyledger doctor", role="") as connection:
            return _head_of(connection)
    except psycopg.Error:
        return None


def _head_of(connection: psycopg.Connection[Any]) -> tuple[int, int]:
    """Where the log ends, and its epoch."""
    end = end_of_log(connection)
    return end.position, end.epoch


def _place(epoch: int, number: int) -> str:
    return format_position(position_prefix(0, epoch), number)


def _lag(what: str, behind: int, head: int, epoch: int) -> CheckResult:
    if behind > _LAG:
        return CheckResult(
            "attention",
            what,
            f"{behind:,} events behind the log ({_place(epoch, head)})",
            "check that the worker runs",
        )
    return CheckResult("ok", what, f"{max(behind, 0):,} events behind the log ({_place(epoch, head)})")


def _other_history(place: Place, database_url: str) -> CheckResult | None:
    """A finding if the stream ends with an event that the log does not have."""
    try:
        history, marks = read_history(database_url), marks_at(database_url, [place.number])
    except psycopg.Error:
        return None  # reported by the checks of the database
    end = history.end
    if place.log_id != history.log_id:
        return CheckResult(
            "broken",
            "NATS",
            f"the stream holds events of another log ({place.log_id})",
            "give this ledger a NATS account of its own, or delete the stream",
        )
    told_rightly = place.number == 0 or marks.get(place.number) == place.mark
    if place.epoch < end.epoch or (place.epoch == end.epoch and told_rightly):
        return None
    return CheckResult(
        "broken",
        "NATS",
        f"received an event {place.epoch}.0.{place.number} that is not in the log, which ends with"
        f" {end.epoch}.0.{end.position}: it was restored, or a fail-over lost events",
        "once you are sure that this is the log to continue with, run `keyledger new-epoch`",
    )


def _relay(nats_url: str, end: tuple[int, int] | None, database_url: str | None) -> CheckResult:
    try:
        place = asyncio.run(asyncio.wait_for(published_place(nats_url, 0), _TIMEOUT_SECONDS))
    except (NatsUnreachableError, TimeoutError, OSError) as error:
        found = str(error) or "does not answer"
        return CheckResult(
            "broken", "NATS", found, "check that it runs with JetStream; nothing is lost meanwhile"
        )
    except Exception as error:  # noqa: BLE001 - a doctor reports whatever it finds
        return CheckResult("broken", "NATS", str(error) or type(error).__name__, "check that JetStream is on")
    if place is None:
        return CheckResult("attention", "NATS", "reachable, nothing is published yet", "the worker publishes")
    if end is None or database_url is None:
        return CheckResult("ok", "NATS", f"published up to {_place(place.epoch, place.number)}")
    return _other_history(place, database_url) or _lag("NATS", end[0] - place.number, *end)
