"""The eventsourcing library carries the log: its classes are the way there, and there is no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

import psycopg
import pytest
from eventsourcing.application import Application
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import IntegrityError, Mapper, Tracking
from eventsourcing.postgres import PostgresApplicationRecorder, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteTrackingRecorder

from domain.ports import Group
from infra.postgres.data_keys import DataKeys
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import EventMapper, StreamEvent
from infra.postgres.projecting_log import RunReader
from infra.postgres.projection_pipeline import Pipeline
from infra.postgres.projection_schema import REBUILD, ProjectionTables, connect_for_projections
from infra.postgres.recorder import LedgerRecorder
from infra.postgres.tracking import LedgerTracking, LedgerTrackingRecorder, MovedCheckpointError
from keyledger_language.events import KeyCreated, KeyDisabled
from keyledger_reading import KeyledgerLog, SQLiteView
from keyledger_reading.mapper import ReadingMapper
from keyledger_reading.recorder import ReadingRecorder
from projections.every import every_projection
from tests.contract.projected_worlds import mapper, projecting, reached, reading, written_log
from tests.histories import NOON, History

ROOT: Final = Path(__file__).parents[2]


class BrokenError(Exception):
    """What a method raises that is made to fail."""


def raise_broken(*_: Any, **__: Any) -> Any:
    raise BrokenError


# -- what the product does with the log -----------------------------------------------------------


HISTORY: Final = History(3)
KEYS: Final = [event.key_id for event in HISTORY.grow(200) if isinstance(event, KeyCreated)]
DISABLED: Final = KeyDisabled(at=HISTORY.events[-1].at, key_id=KEYS[0])
CREATED: Final = "key.created"


async def append(database: str) -> None:
    log = PostgresLog(database, wakeups=False)
    try:
        assert await log.acquire()
        end = await log.end()
        event = mapper().new_event(f"log_{end.position}", 1, DISABLED)
        await log.append(Group(os.urandom(16), end, [event]))
    finally:
        await log.close()


async def save_by_an_application(database: str) -> None:
    with an_application(database) as application:
        application.events.put([StreamEvent(f"app_{os.urandom(4).hex()}", 1, DISABLED)])


async def load_by_an_application(database: str) -> None:
    with an_application(database) as application:
        assert list(application.events.get(KEYS[0]))


def asked(ask: Callable[[PostgresLog], Awaitable[Any]]) -> Callable[[str], Awaitable[None]]:
    async def work(database: str) -> None:
        log = PostgresLog(database, wakeups=False)
        try:
            assert await ask(log)
        finally:
            await log.close()

    return work


async def list_a_streams_events(database: str) -> None:
    async with reading(database) as asked:
        assert await asked.events.stream(KEYS[0], None, after=0, limit=9, newest_first=False)


async def list_events_between(database: str) -> None:
    async with reading(database) as asked:
        assert await asked.events.between(1, len(HISTORY.events), [CREATED])


async def show_events_at(database: str) -> None:
    async with reading(database) as asked:
        assert await asked.events.at([1, 2])


async def project(database: str) -> None:
    with (
        closing(connect_for_projections(database, "test writer")) as writer,
        closing(connect_for_projections(database, "test reader")) as reader,
    ):
        tables = ProjectionTables(writer, REBUILD, every_projection())
        tables.drop()
        tables.create()
        with Pipeline(tables, RunReader(reader, 0, mapper()), position=0) as pipeline:
            assert pipeline.catch_up() >= len(HISTORY.events)


class Seen(Projection[SQLiteView]):
    """Counts nothing, but that it has seen the event."""

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        assert domain_event is not None
        with self.view.counting(tracking):
            pass


async def follow_by_a_runner(database: str) -> None:
    env = {"KEYLEDGER_DATABASE_URL": database, "PERSISTENCE_MODULE": "eventsourcing.sqlite"}
    with (
        NamedTemporaryFile() as file,
        ProjectionRunner(
            application_class=KeyledgerLog,
            projection_class=Seen,
            view_class=SQLiteView,
            env=env | {"SQLITE_DBNAME": file.name},
        ) as runner,
    ):
        runner.wait(len(HISTORY.events), timeout=60)


FUNCTIONS: Final[dict[str, Callable[[str], Awaitable[None]]]] = {
    "append": append,
    "save by an application": save_by_an_application,
    "load by an application": load_by_an_application,
    "ask for the head": asked(lambda log: log.head()),
    "ask where it ends": asked(lambda log: log.end()),
    "read": asked(lambda log: log.read(0, 10)),
    "read what is durable": asked(lambda log: log.read_durable(0, 10)),
    "read at positions": asked(lambda log: log.read_at([1, 2])),
    "list a stream's events": list_a_streams_events,
    "list events between": list_events_between,
    "show events at": show_events_at,
    "project": project,
    "follow by a runner": follow_by_a_runner,
}

FAILS: Final[dict[tuple[type, str], set[str]]] = {
    (LedgerRecorder, "begin_insert"): {"append"},
    (LedgerRecorder, "insert_events"): {"save by an application"},
    (ReadingRecorder, "select_events"): {"load by an application", "list a stream's events"},
    (ReadingRecorder, "select_notifications"): {
        "read",
        "read what is durable",
        "list events between",
        "follow by a runner",
    },
    (ReadingRecorder, "select_data"): {"project"},
    (ReadingRecorder, "select_at"): {"read at positions", "show events at", "project"},
    (ReadingRecorder, "max_notification_id"): {"ask for the head"},
    (ReadingRecorder, "end"): {"ask where it ends", "append", "follow by a runner"},
    (ReadingRecorder, "subscribe"): {"follow by a runner"},
    (EventMapper, "encode"): {"append", "save by an application"},
    (ReadingMapper, "decode"): {
        "load by an application",
        "list a stream's events",
        "list events between",
        "show events at",
        "project",
        "follow by a runner",
    },
    (ReadingMapper, "decode_public"): {"project"},
    (LedgerTrackingRecorder, "_insert_tracking"): {"project"},
    (SQLiteView, "_insert_tracking"): {"follow by a runner"},
}


def an_application(database: str) -> Application[str]:
    env = {"PERSISTENCE_MODULE": "infra.postgres.factory", "KEYLEDGER_DATABASE_URL": database}
    return Application[str](env=env)


@pytest.fixture
async def written(database: str) -> str:
    """A log with a history in it, personal fields too, and nobody who owns it."""
    async with written_log(database) as log:
        await log.write(HISTORY.events)
    return database


@pytest.mark.parametrize("broken", [None, *FAILS], ids=lambda one: one and f"{one[0].__name__}.{one[1]}")
async def test_exactly_what_needs_a_method_fails_without_it(
    broken: tuple[type, str] | None, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken is not None:
        monkeypatch.setattr(*broken, raise_broken)

    failed = set()
    for name, function in FUNCTIONS.items():
        try:
            await function(written)
        except BrokenError:
            failed.add(name)

    assert failed == (set() if broken is None else FAILS[broken])


def test_the_classes_are_the_librarys() -> None:
    assert issubclass(LedgerRecorder, ReadingRecorder)
    assert issubclass(ReadingRecorder, PostgresApplicationRecorder)
    assert issubclass(SQLiteView, SQLiteTrackingRecorder)
    assert issubclass(LedgerTrackingRecorder, PostgresTrackingRecorder)
    assert issubclass(EventMapper, Mapper)
    assert "max_notification_id" not in vars(LedgerRecorder) | vars(ReadingRecorder), "as the library has it"


# -- and no other way -----------------------------------------------------------------------------

_TABLE: Final = re.compile(r"events_p|\bevents_table\b|events_table_name")
_MAY: Final = {"infra/postgres/recorder.py", "services/reading/keyledger_reading/recorder.py"}


def sources() -> list[Path]:
    folders = ("domain", "infra", "projections", "services")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def names_the_table(path: Path) -> bool:
    return _TABLE.search(path.read_text()) is not None


def test_no_other_sql_touches_the_events_tables(tmp_path: Path) -> None:
    assert {str(path.relative_to(ROOT)) for path in sources() if names_the_table(path)} == _MAY

    planted = tmp_path / "planted.py"
    planted.write_text('SELECT = f"SELECT state FROM ledger.events_p{partition}"')
    assert names_the_table(planted)


# -- the checkpoint -------------------------------------------------------------------------------


async def test_the_checkpoint_is_a_row_of_the_tracking_recorder_with_mark_and_epoch(database: str) -> None:
    async with written_log(database) as log:
        await log.write(History(3).grow(30))
        with projecting(database) as projector:
            await reached(projector, log.head)
        end = await log.log.end()

    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT * FROM projections.tracking").fetchall()
    assert rows == [("ledger_p0", end.position, end.mark, end.epoch)]


@pytest.mark.parametrize("before", [(6, 70), (7, 71), (8, 70), (0, 0)])
def test_it_moves_from_the_point_that_is_named_or_not_at_all(
    ledger_database: str, before: tuple[int, int]
) -> None:
    with closing(connect_for_projections(ledger_database, "test")) as connection:
        tables = ProjectionTables(connection, REBUILD, every_projection())
        tables.create()
        tables.write([], (0, 0), (7, 70))

        with pytest.raises(MovedCheckpointError, match=f"is not {before[0]}"):
            tables.write([], before, (9, 90))
        assert tables.checkpoint()[:2] == (7, 70)

        tables.write([], (7, 70), (9, 90))
        assert tables.checkpoint()[:2] == (9, 90)


def test_a_position_without_a_mark_is_no_checkpoint() -> None:
    assert LedgerTracking("ledger_p0", 7, mark=70, before=(6, 60)).mark == 70
    assert issubclass(MovedCheckpointError, IntegrityError), "what the library's callers expect"


async def test_projections_of_a_program_before_this_one_are_made_anew(database: str) -> None:
    """They kept their checkpoint in a table of another form."""
    async with written_log(database) as log:
        await log.write(History(5).grow(50))
        with projecting(database) as projector:
            await reached(projector, log.head)
        with psycopg.connect(database) as owner:
            owner.execute("DROP TABLE projections.tracking, projections.definitions")
            owner.execute("CREATE TABLE projections.checkpoints (name text, position bigint)")
            owner.execute("DELETE FROM projections.audit")

        with projecting(database) as projector:
            await reached(projector, log.head)

    with psycopg.connect(database) as connection:
        audit = connection.execute("SELECT count(*) FROM projections.audit").fetchone()
        old = connection.execute("SELECT to_regclass('projections.checkpoints')").fetchone()
    assert audit is not None
    assert audit[0] > 0
    assert old == (None,)


# -- who loads the library ------------------------------------------------------------------------

_LOADED: Final = "import sys; {}; print('eventsourcing' in sys.modules)"


def loads_the_library(program: str) -> bool:
    command = [sys.executable, "-c", _LOADED.format(program)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize(
    "program",
    [
        "import keyledger_edge",
        "import keyledger_language.events, domain.evolve, projections.every",
        "import services.cli.main",
        "from services.cli import keys, orgs, charges, wallet, usage, requests, audit, events, verify, edge",
    ],
)
def test_edges_the_domain_and_clients_on_the_command_line_do_not(program: str) -> None:
    assert not loads_the_library(program)


def test_the_server_does() -> None:
    assert loads_the_library("import services.bootstrap")


def test_data_keys_of_a_save_that_failed_are_forgotten(ledger_database: str) -> None:
    keys = DataKeys()
    with an_application(ledger_database) as application:
        recorder = application.recorder
        assert isinstance(recorder, LedgerRecorder)
        recorder._data_keys = keys
        keys.encrypt("org_1", b"Ada", "key_1")
        stored = application.mapper.to_stored_event(
            StreamEvent("key_1", 1, KeyDisabled(at=NOON, key_id="key_1"))
        )
        recorder.insert_events([stored])
        assert keys.knows("org_1")

        keys.encrypt("org_2", b"Eve", "key_2")
        with pytest.raises(IntegrityError):
            recorder.insert_events([stored])
        assert not keys.knows("org_2")
