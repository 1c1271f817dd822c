"""Views of somebody's own projections: every event once, and never those of another history."""

from __future__ import annotations

import copy
import pickle
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, Final

import psycopg
import pytest
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.persistence import (
    IntegrityError,
    NotSupportedError,
    PersistenceError,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.postgres import PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.sqlite import SQLiteTrackingRecorder
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from keyledger_language.events import KeyCreated, KeyDisabled, KeyExpired, KeyRevoked
from keyledger_reading import (
    DifferentPastError,
    KeyledgerLog,
    LogPosition,
    PostgresView,
    SQLiteView,
    TrackedView,
    topics_of,
)
from keyledger_reading import subscription as subscription_module
from keyledger_reading.recorder import ReadingRecorder
from tests.contract.projected_worlds import Written, written_log
from tests.histories import NOON, History

PATIENCE: Final = 60.0


class BrokenError(Exception):
    """What a projection meets in the middle of an event."""


class Positions(TrackedView):
    """A view of the positions that were counted, in the order in which they were."""

    tables = ("CREATE TABLE IF NOT EXISTS counted (position bigint)",)

    def add(self, tracking: Tracking, *, broken: bool = False) -> None:
        with self.counting(tracking) as cursor:
            statement = f"INSERT INTO counted VALUES ({self.parameter})"
            cursor.execute(statement, (int(tracking.notification_id),))
            if broken:
                raise BrokenError

    def counted(self) -> list[int]:
        with self.datastore.transaction(commit=False) as cursor:  # type: ignore[attr-defined]
            cursor.execute("SELECT position FROM counted")
            return [row["position"] for row in cursor.fetchall()]


class InPostgres(Positions, PostgresView): ...


class InSQLite(Positions, SQLiteView): ...


class Counted(Projection[Any]):
    """Counts every event; `broken_at`: it fails in the middle of that one."""

    name = "counted"
    broken_at: ClassVar[int | None] = None

    @singledispatchmethod
    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.add(tracking, broken=tracking.notification_id == type(self).broken_at)


class CountedRevocations(Counted):
    name = "counted"
    topics = topics_of(KeyRevoked)


class CountedChanges(Counted):
    name = "counted"
    topics = topics_of(KeyRevoked, KeyDisabled)


class CountedEnds(Counted):
    name = "counted"
    topics = topics_of(KeyRevoked, KeyExpired)


class Place:
    """A log, and a database of somebody's own."""

    def __init__(self, log: Written, view_class: type[Any], env: dict[str, str]) -> None:
        self.log = log
        self.view_class = view_class
        self.env = env | {"KEYLEDGER_DATABASE_URL": log.database}

    @contextmanager
    def run(self, projection: type[Counted] = Counted, **env: str) -> Generator[ProjectionRunner[Any, Any]]:
        with ProjectionRunner(
            application_class=KeyledgerLog,
            projection_class=projection,
            view_class=self.view_class,
            env=self.env | env,
        ) as runner:
            yield runner

    def run_to(self, position: int, projection: type[Counted] = Counted, **env: str) -> list[int]:
        """What is counted once it has come so far."""
        with self.run(projection, **env) as runner:
            runner.wait(position, timeout=PATIENCE)
            counted: list[int] = runner.view.counted()
        return counted

    def change(self, *statements: str) -> None:
        """In the log, as its owner can."""
        with psycopg.connect(self.log.database) as owner:
            for statement in statements:
                owner.execute(statement.encode())


OPEN: Final = "ALTER TABLE ledger.events_p0 DISABLE TRIGGER append_only"
NEXT_EPOCH: Final = "UPDATE ledger.identity SET epoch = epoch + 1"


def disabled(count: int) -> list[KeyDisabled]:
    return [KeyDisabled(at=NOON, key_id="key_1") for _ in range(count)]


@pytest.fixture(params=[InSQLite, InPostgres])
async def place(request: pytest.FixtureRequest, ledger_database: str, database: str, tmp_path: Path) -> Any:
    if request.param is InSQLite:
        env = {
            "COUNTED_PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "COUNTED_SQLITE_DBNAME": str(tmp_path / "own.db"),
        }
    else:
        own = conninfo_to_dict(database)
        env = {
            "COUNTED_PERSISTENCE_MODULE": "eventsourcing.postgres",
            "COUNTED_POSTGRES_DBNAME": str(own["dbname"]),
            "COUNTED_POSTGRES_HOST": str(own["host"]),
            "COUNTED_POSTGRES_PORT": str(own.get("port", "5432")),
            "COUNTED_POSTGRES_USER": str(own["user"]),
            "COUNTED_POSTGRES_PASSWORD": "",
        }
    async with written_log(ledger_database) as log:
        await log.write(disabled(20))
        yield Place(log, request.param, env)


# -- every event once -----------------------------------------------------------------------------


async def test_every_event_counts_once_in_order_over_all_starts(place: Place) -> None:
    assert place.run_to(20) == [*range(1, 21)]
    assert place.run_to(20) == [*range(1, 21)]
    await place.log.write(disabled(2))
    assert place.run_to(22) == [*range(1, 23)]


def test_an_event_that_failed_in_the_middle_leaves_nothing_and_is_counted_at_the_next_start(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Counted, "broken_at", 7)
        with pytest.raises(BrokenError), place.run() as runner:
            runner.wait(20, timeout=PATIENCE)
    with place.run() as runner:
        assert runner.view.max_tracking_id("keyledger") >= 6
        runner.wait(20, timeout=PATIENCE)
        assert runner.view.counted() == [*range(1, 21)]


async def test_the_second_of_two_that_keep_one_view_ends_and_counts_nothing(place: Place) -> None:
    place.run_to(20)
    held = threading.Event()

    async def keep_it_twice() -> None:
        with place.run() as second:
            add = second.view.add

            def late(tracking: Tracking, *, broken: bool = False) -> None:
                assert held.wait(PATIENCE)
                add(tracking, broken=broken)

            second.view.add = late
            await place.log.write(disabled(1))
            assert place.run_to(21) == [*range(1, 22)]
            held.set()
            second.wait(22, timeout=PATIENCE)

    with pytest.raises(
        IntegrityError, match="Event 21 cannot be counted: the tracking table is not at event 20"
    ):
        await keep_it_twice()

    assert place.run_to(21) == [*range(1, 22)]


def test_an_error_that_is_caught_inside_counting_ends_it_and_loses_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a projection that swallows the error of a statement, after which a database only rolls back."""
    in_sqlite = place.view_class is InSQLite
    bad = "INSERT OR ROLLBACK INTO once VALUES (1)" if in_sqlite else "SELECT 1 / 0"

    def swallow(self: Any, tracking: Tracking, **_: Any) -> None:
        with self.counting(tracking) as cursor:
            cursor.execute("CREATE TABLE IF NOT EXISTS once (one integer PRIMARY KEY)")
            if in_sqlite:
                cursor.execute("INSERT OR IGNORE INTO once VALUES (1)")
            with suppress(Exception):
                cursor.execute(bad)

    with monkeypatch.context() as swallowing:
        swallowing.setattr(place.view_class, "add", swallow)
        with (
            pytest.raises(PersistenceError, match="A statement inside `counting` failed"),
            place.run() as one,
        ):
            one.wait(20, timeout=PATIENCE)

    assert place.run_to(20) == [*range(1, 21)]


async def test_tables_that_are_emptied_while_it_runs_end_it(place: Place) -> None:
    async def empty_them() -> None:
        with place.run() as runner:
            runner.wait(20, timeout=PATIENCE)
            tracking = "tracking" if place.view_class is InSQLite else "counted_tracking"
            with runner.view.datastore.transaction(commit=True) as cursor:
                cursor.execute(f"DELETE FROM {tracking} WHERE application_name = 'keyledger'")
                cursor.execute("DELETE FROM counted")
            await place.log.write(disabled(1))
            runner.wait(21, timeout=PATIENCE)

    with pytest.raises(IntegrityError, match="its tables were emptied or restored"):
        await empty_them()
    assert place.run_to(21) == [*range(1, 22)]


def test_another_view_in_the_same_tables_is_refused(place: Place) -> None:
    place.run_to(20)
    renamed = type("Renamed", (place.view_class,), {})
    other = Place(place.log, renamed, place.env)

    with pytest.raises(PersistenceError, match=r"is the one of In\w+, not of Renamed"), other.run():
        pass


class Keyledger(Counted):
    name = "keyledger"


def test_a_projection_may_have_the_name_of_the_log(place: Place) -> None:
    env = {name.replace("COUNTED_", "KEYLEDGER_"): value for name, value in place.env.items()}

    assert place.run_to(20, Keyledger, **env) == [*range(1, 21)]


async def test_types_that_are_wanted_later_are_refused_where_earlier_events_were_passed_over(
    place: Place,
) -> None:
    await place.log.write([KeyRevoked(at=NOON, key_id="key_1")])
    assert place.run_to(21, CountedRevocations) == [21]

    for wider in (Counted, CountedChanges):
        with pytest.raises(PersistenceError, match=r"built without events of the type key\.disabled"):
            place.run_to(21, wider)
    assert place.run_to(21, CountedRevocations) == [21]
    assert place.run_to(21, CountedEnds) == [21], "nothing was missed: there is none of the other type"


async def test_only_events_of_its_topics_are_read_and_the_others_are_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "_SEARCHED", 3)
    await place.log.write([KeyRevoked(at=NOON, key_id="key_1"), *disabled(7)])
    await place.log.write([KeyRevoked(at=NOON, key_id="key_2"), *disabled(5)])

    assert place.run_to(29, CountedRevocations) == [21, 29]
    await place.log.write([KeyRevoked(at=NOON, key_id="key_3")])
    assert place.run_to(35, CountedRevocations) == [21, 29, 35]


# -- and never those of another history -----------------------------------------------------------


def ends_with(place: Place, message: str, projection: type[Counted] = Counted, **env: str) -> None:
    with pytest.raises(DifferentPastError, match=message), place.run(projection, **env) as runner:
        runner.wait(10**6, timeout=PATIENCE)


def test_a_log_that_was_restored_from_before_stops_it_and_changes_nothing(place: Place) -> None:
    place.run_to(20)
    place.change(OPEN, "DELETE FROM ledger.events_p0 WHERE notification_id > 15")

    ends_with(place, "^Event 20, up to which the log was followed, is no longer in it: the log was restored")


def test_a_log_that_has_another_event_in_its_place_stops_it(place: Place) -> None:
    place.run_to(20)
    place.change(OPEN, "UPDATE ledger.events_p0 SET mark = mark + 1 WHERE notification_id = 20")

    ends_with(place, "^Event 20, up to which the log was followed, is no longer in it")


async def test_another_epoch_stops_it_until_it_is_named(place: Place) -> None:
    place.run_to(20)
    place.change(NEXT_EPOCH)
    await place.log.write(disabled(1))

    ends_with(place, "in epoch 2, and was followed in epoch 1.* KEYLEDGER_EPOCH=2")
    ends_with(place, "in epoch 2", KEYLEDGER_EPOCH="3")
    assert place.run_to(21, KEYLEDGER_EPOCH="2") == [*range(1, 22)]
    assert place.run_to(21) == [*range(1, 22)], "noted with the event"


def test_a_past_that_is_gone_stops_it_in_whatever_epoch(place: Place) -> None:
    place.run_to(20)
    place.change(OPEN, NEXT_EPOCH, "DELETE FROM ledger.events_p0 WHERE notification_id > 15")

    ends_with(place, "^Event 20, up to which the log was followed, is no longer in it", KEYLEDGER_EPOCH="2")


def test_another_ledgers_log_stops_it(place: Place) -> None:
    place.run_to(20)
    place.change("UPDATE ledger.identity SET log_id = gen_random_uuid()")

    ends_with(place, "another ledger's")


def test_an_epoch_that_is_raised_while_it_follows_stops_it(place: Place) -> None:
    def follow() -> None:
        with place.run() as runner:
            runner.wait(20, timeout=PATIENCE)
            place.change(NEXT_EPOCH)
            runner.wait(10**6, timeout=PATIENCE)

    with pytest.raises(DifferentPastError, match="in epoch 2"):
        follow()


async def test_a_past_that_changed_among_the_events_that_were_passed_over_stops_it(place: Place) -> None:
    """Given a revocation, and others behind it that its subscription has only passed over."""
    await place.log.write([KeyRevoked(at=NOON, key_id="key_1"), *disabled(9)])

    def follow() -> None:
        with place.run(CountedRevocations) as runner:
            runner.wait(21, timeout=PATIENCE)
            passed(30, runner)
            place.change(OPEN, "UPDATE ledger.events_p0 SET mark = mark + 1 WHERE notification_id = 30")
            place.change(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE application_name LIKE '%subscription' AND datname = current_database()"
            )
            runner.wait(10**6, timeout=PATIENCE)

    with pytest.raises(DifferentPastError, match=r"Event 30 is no longer .* 21, is still in it: start"):
        follow()


def passed(position: int, runner: ProjectionRunner[Any, Any]) -> None:
    """Until the runner's subscription has looked at the event."""
    subscription: Any = runner._subscription.subscription
    deadline = time.monotonic() + PATIENCE
    while subscription._seen != position:
        assert time.monotonic() < deadline, f"it has not passed over {position}"
        time.sleep(0.01)


def test_a_view_of_the_librarys_own_is_refused_since_it_keeps_a_number_only(place: Place) -> None:
    stock: type[TrackingRecorder] = (
        PostgresTrackingRecorder if place.view_class is InPostgres else SQLiteTrackingRecorder
    )

    class OnlyNumbers(Projection[Any]):
        name = "counted"

        @singledispatchmethod
        def process_event(self, domain_event: Any, tracking: Tracking) -> None:
            self.view.insert_tracking(tracking)

    def run() -> None:
        with ProjectionRunner(
            application_class=KeyledgerLog, projection_class=OnlyNumbers, view_class=stock, env=place.env
        ) as runner:
            runner.wait(20, timeout=PATIENCE)

    run()
    with pytest.raises(DifferentPastError, match="PostgresView or SQLiteView"):
        run()


def test_a_log_that_was_restored_under_a_session_that_lives_on_stops_it(place: Place) -> None:
    """Given a reader that stands still meanwhile, and as many events that come after the restore."""

    def follow() -> None:
        with place.run() as runner:
            runner.wait(20, timeout=PATIENCE)
            place.change(
                OPEN,
                "UPDATE ledger.events_p0 SET mark = mark + 1 WHERE notification_id = 20",
                "INSERT INTO ledger.events_p0 SELECT 21, 21, originator_id, topic, state, mark + 1"
                " FROM ledger.events_p0 WHERE notification_id = 20",
            )
            runner.wait(21, timeout=PATIENCE)

    with pytest.raises(DifferentPastError, match="Event 20, up to which the log was followed"):
        follow()


def test_it_ends_though_a_statement_does_not_return(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an administrator who locks the events' table."""
    monkeypatch.setattr(subscription_module, "_STATEMENT_SECONDS", 0.2)
    with psycopg.connect(place.log.database) as administrator:
        with place.run() as runner:
            runner.wait(20, timeout=PATIENCE)
            administrator.execute("LOCK TABLE ledger.events_p0 IN ACCESS EXCLUSIVE MODE")
            time.sleep(1.5)  # it polls once a second
            started = time.monotonic()
        assert time.monotonic() - started < PATIENCE / 2


# -- what a reader may ----------------------------------------------------------------------------


@pytest.mark.parametrize("place", [InSQLite], indirect=True)
async def test_a_reader_sees_events_without_their_personal_fields(place: Place) -> None:
    created = [event for event in History(3).grow(60) if isinstance(event, KeyCreated)]
    assert any(event.private and event.private.name for event in created)
    await place.log.write(created)

    with KeyledgerLog(env=place.env) as log:
        for event in created:
            [found] = log.events.get(event.key_id)
            assert isinstance(found, KeyCreated)
            assert (found.key_id, found.private) == (event.key_id, None)


def test_the_role_reads_events_and_the_logs_identity_and_nothing_else(ledger_database: str) -> None:
    readable = {"events_p0", "identity", "partitions"}
    with psycopg.connect(ledger_database, autocommit=True) as connection:
        names = connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname IN ('ledger', 'projections')"
        ).fetchall()
        tables = {name for (name,) in names}
        connection.execute("SET ROLE keyledger_reader")
        for table in tables:
            select = f"SELECT count(*) FROM ledger.{table}".encode()
            if table in readable:
                connection.execute(select)
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(select)
        for write in ("INSERT INTO ledger.partitions VALUES (9)", "DELETE FROM ledger.events_p0"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(write.encode())
    assert tables > readable | {"data_keys", "claims_p0", "state_rows_p0", "owners"}


@pytest.mark.parametrize("place", [InSQLite], indirect=True)
def test_the_programs_sessions_act_in_that_role(place: Place) -> None:
    with KeyledgerLog(env=place.env) as log:
        recorder = log.recorder
        assert isinstance(recorder, ReadingRecorder)
        session, _ = recorder.new_session()
        with session, recorder.datastore.get_connection() as pooled:
            assert session.execute("SELECT current_user").fetchone() == ("keyledger_reader",)
            assert pooled.execute("SELECT current_user AS name").fetchone() == {"name": "keyledger_reader"}


@pytest.mark.parametrize("place", [InSQLite], indirect=True)
def test_nothing_is_written_by_it(place: Place) -> None:
    with KeyledgerLog(env=place.env) as log:
        with pytest.raises(NotSupportedError, match="only a ledger writes it"):
            log.mapper.to_stored_event(disabled(1)[0])  # type: ignore[arg-type]
        with pytest.raises(NotSupportedError, match="only a ledger writes it"):
            log.recorder.insert_events([])


@pytest.mark.parametrize("place", [InSQLite], indirect=True)
def test_a_user_that_may_not_read_the_log_gets_to_know_what_it_lacks(place: Place) -> None:
    with psycopg.connect(place.log.database, autocommit=True) as owner:
        owner.execute("CREATE ROLE stranger LOGIN")
    stranger = make_conninfo(place.log.database, user="stranger")
    try:
        with (
            pytest.raises(PersistenceError, match="stranger may not read the log: GRANT keyledger_reader"),
            place.run(KEYLEDGER_DATABASE_URL=stranger),
        ):
            pass
    finally:
        with psycopg.connect(place.log.database, autocommit=True) as owner:
            owner.execute("DROP ROLE stranger")


@pytest.mark.parametrize("place", [InSQLite], indirect=True)
def test_a_database_without_a_ledger_is_named(place: Place, database: str) -> None:
    with (
        pytest.raises(PersistenceError, match="has no ledger: KEYLEDGER_DATABASE_URL names the"),
        place.run(KEYLEDGER_DATABASE_URL=make_conninfo(database, dbname="postgres")),
    ):
        pass


@pytest.mark.parametrize(
    "name, value, message",
    [("KEYLEDGER_DATABASE_URL", "", "Set KEYLEDGER_DATABASE_URL"), ("KEYLEDGER_EPOCH", "two", "such as 2")],
)
@pytest.mark.parametrize("place", [InSQLite], indirect=True)
def test_a_setting_that_is_missing_or_wrong_is_named(
    place: Place, name: str, value: str, message: str
) -> None:
    with pytest.raises(PersistenceError, match=message):
        KeyledgerLog(env=place.env | {name: value})


def test_a_position_is_a_number_that_knows_its_history() -> None:
    position = LogPosition(7, log_id="log", epoch=2, mark=-5, topics="key.revoked")

    assert (position, position + 1, f"{position}") == (7, 8, "7")
    for one in (position, copy.deepcopy(position), pickle.loads(pickle.dumps(position))):
        assert (one, one.log_id, one.epoch, one.mark, one.topics) == (7, "log", 2, -5, "key.revoked")
