"""A stock application of the eventsourcing library works on our log."""

import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from eventsourcing.application import Application
from eventsourcing.persistence import IntegrityError, OperationalError

from domain.ports import Group, NewEvent
from infra.postgres.log import PostgresLog
from infra.postgres.mapper import StreamEvent
from keyledger_language.history import HistoryPoint
from tests.contract.log_samples import Charged, Personal, Renamed

RENAME = Renamed(at=2, organization_id="org_1", private=Personal(name="Ada"))


@pytest.fixture
def application(ledger_database: str) -> Iterator[Application[str]]:
    env = {
        "PERSISTENCE_MODULE": "infra.postgres.factory",
        "KEYLEDGER_DATABASE_URL": ledger_database,
        "EVENT_TYPES_TOPIC": "tests.contract.log_samples:SampleEvent",
    }
    with Application[str](env=env) as application:
        yield application


def found(application: Application[str], stream: str) -> list[Any]:
    return list(application.events.get(stream))


async def test_it_reads_what_the_append_function_wrote(
    application: Application[str], ledger_database: str
) -> None:
    log = PostgresLog(ledger_database)
    await log.acquire()
    charge = Charged(at=1, amount_micros=5)
    data = msgspec.msgpack.encode(charge)
    await log.append(
        Group(os.urandom(16), HistoryPoint(0, 0, 1), [NewEvent("key_1", 1, "sample.charged", data)])
    )
    await log.close()

    assert found(application, "key_1") == [charge]
    notifications = application.notification_log.select(start=1, limit=10)
    assert [(n.id, n.originator_id, n.topic) for n in notifications] == [(1, "key_1", "sample.charged")]
    assert application.recorder.max_notification_id() == 1


async def test_what_it_writes_gets_positions_without_holes_and_its_data_keys(
    application: Application[str], ledger_database: str
) -> None:
    application.events.put([StreamEvent("key_1", 1, RENAME), StreamEvent("key_2", 1, RENAME)])
    with pytest.raises(IntegrityError):
        application.events.put([StreamEvent("key_1", 1, RENAME)])
    [recording] = application.events.put([StreamEvent("key_1", 2, RENAME)])

    assert recording.notification.id == 3
    assert found(application, "key_2") == [RENAME]
    log = PostgresLog(ledger_database)
    assert [e.position for e in await log.read(0, 10)] == [1, 2, 3]
    assert list(await log.data_keys()) == ["org_1"]
    await log.close()


async def test_it_writes_nothing_while_an_owner_holds_the_partition(
    application: Application[str], ledger_database: str
) -> None:
    log = PostgresLog(ledger_database)
    await log.acquire()

    with pytest.raises(OperationalError, match="owns partition 0"):
        application.events.put([StreamEvent("key_1", 1, RENAME)])

    assert await log.head() == 0
    await log.close()
