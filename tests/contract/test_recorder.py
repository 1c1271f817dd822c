"""The recorder: what is sent, what is found, and that its short ways give what the long ones do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import msgspec
import psycopg
import pytest
from eventsourcing.persistence import IntegrityError, NotSupportedError, OperationalError, StoredEvent
from psycopg import Connection

from domain.ports import HeadMovedError, NewClaim, NewEvent, NotOwnerError
from infra.postgres.arrays import register_packed_arrays
from infra.postgres.connections import ADVISORY_CLASS, connect
from infra.postgres.datastore import AppendingDatastore
from infra.postgres.insertion import pack_group
from infra.postgres.recorder import LedgerRecorder
from keyledger_language.history import HistoryPoint, mark_of
from keyledger_reading.datastore import SessionDatastore
from tests.contract.projected_worlds import mapper
from tests.histories import History

BEGIN = HistoryPoint(0, 0, 1)


def event(number: int, stream: str = "key_1", topic: str = "key.revoked") -> NewEvent:
    return NewEvent(stream, number, topic, b"data %d" % number)


def packed(*events: NewEvent, behind: HistoryPoint = BEGIN, group_id: bytes = b"g" * 16) -> tuple[bytes, ...]:
    return pack_group(events, group_id=group_id, behind=behind, decided_at=1_800_000_000_000_000)


@pytest.fixture
def session(ledger_database: str) -> Iterator[Connection[tuple[object, ...]]]:
    """One that holds the partition."""
    with closing(connect(ledger_database, "test")) as connection:
        register_packed_arrays(connection)
        connection.execute("SELECT pg_advisory_lock(%s, 0)", (ADVISORY_CLASS,))
        yield connection


@pytest.fixture
def recorder(session: Connection[tuple[object, ...]]) -> LedgerRecorder:
    return LedgerRecorder(SessionDatastore(lambda: session))


# -- appending ------------------------------------------------------------------------------------


def test_a_group_that_was_sent_is_written_whether_or_not_anybody_waits(
    recorder: LedgerRecorder, ledger_database: str
) -> None:
    pending = recorder.begin_insert(packed(event(1), event(2)))
    with psycopg.connect(ledger_database, autocommit=True) as other:
        deadline = time.monotonic() + 30
        while other.execute("SELECT max(notification_id) FROM ledger.events_p0").fetchone() != (2,):
            assert time.monotonic() < deadline

    assert pending.complete() == 2


def test_what_is_refused_is_said_when_it_is_completed_and_the_session_lives_on(
    recorder: LedgerRecorder,
) -> None:
    recorder.begin_insert(packed(event(1))).complete()
    pending = recorder.begin_insert(packed(event(2), group_id=b"h" * 16))

    with pytest.raises(HeadMovedError):
        pending.complete()
    assert recorder.begin_insert(packed(event(2), behind=recorder.end(), group_id=b"i" * 16)).complete() == 2


def test_a_session_that_ended_before_anything_was_sent_holds_nothing(
    recorder: LedgerRecorder, session: Connection[tuple[object, ...]], ledger_database: str
) -> None:
    with psycopg.connect(ledger_database) as administrator:
        administrator.execute("SELECT pg_terminate_backend(%s, 5000)", (session.info.backend_pid,))

    with pytest.raises(NotOwnerError):
        recorder.begin_insert(packed(event(1)))


def test_inserting_is_sending_and_a_wait_in_the_librarys_words(recorder: LedgerRecorder) -> None:
    stored = [StoredEvent("key_1", 1, "key.revoked", b"one"), StoredEvent("key_1", 2, "key.revoked", b"two")]
    group_id = os.urandom(16)
    claim = NewClaim(b"c" * 16, 0)

    assert recorder.insert_events(stored, group_id=group_id, behind=BEGIN, claims=[claim]) == range(1, 3)
    assert [(one.state, one.mark) for one in recorder.select_notifications(1, 10)] == [
        (b"one", mark_of(group_id)),
        (b"two", mark_of(group_id)),
    ]
    with pytest.raises(IntegrityError, match="the head is 2, not 0"):
        recorder.insert_events(stored, behind=BEGIN)
    with pytest.raises(IntegrityError, match="a claim is taken"):
        recorder.insert_events([event(3)], behind=recorder.end(), claims=[claim])
    assert recorder.insert_events([]) is None


def test_whoever_does_not_hold_the_partition_writes_nothing(
    recorder: LedgerRecorder, ledger_database: str
) -> None:
    with closing(connect(ledger_database, "other")) as connection:
        other = LedgerRecorder(SessionDatastore(lambda: connection))
        for behind in (None, BEGIN):
            with pytest.raises(OperationalError, match="another session owns partition 0"):
                other.insert_events([event(1)], behind=behind)
    assert recorder.max_notification_id() is None


def test_a_pool_keeps_the_connection_until_the_answer_is_there(ledger_database: str) -> None:
    with AppendingDatastore(ledger_database) as datastore:
        pooled = LedgerRecorder(datastore)
        for elsewhere in (HistoryPoint(0, 0, 9), HistoryPoint(5, 0, 1)):
            with pytest.raises(IntegrityError, match="is"):
                pooled.insert_events([event(1)], behind=elsewhere)
        assert pooled.insert_events([event(1)], behind=BEGIN) == range(1, 2)
        assert pooled.insert_events([event(2)]) == range(2, 3)
        with pytest.raises(NotSupportedError):
            pooled.begin_insert(packed(event(3), behind=pooled.end()))


# -- reading --------------------------------------------------------------------------------------


@pytest.fixture
def filled(recorder: LedgerRecorder) -> LedgerRecorder:
    """Six events: two streams in turns, the fourth and the sixth of another type."""
    events = [
        event(1, "key_1"),
        event(1, "schlüssel_✓"),
        event(2, "key_1"),
        event(2, "schlüssel_✓", "key.rotated"),
        event(3, "key_1"),
        event(3, "schlüssel_✓", "key.rotated"),
    ]
    recorder.insert_events(events, behind=BEGIN, group_id=b"\xff" * 16)
    return recorder


@pytest.mark.parametrize(
    "ask, positions",
    [
        (lambda r: r.select_notifications(None, 10), [1, 2, 3, 4, 5, 6]),
        (lambda r: r.select_notifications(2, 3), [2, 3, 4]),
        (lambda r: r.select_notifications(2, 3, inclusive_of_start=False), [3, 4, 5]),
        (lambda r: r.select_notifications(2, 10, stop=4), [2, 3, 4]),
        (lambda r: r.select_notifications(1, 10, topics=["key.rotated"]), [4, 6]),
        (lambda r: r.select_notifications(1, 10, topics=("key.rotated", "key.revoked"), stop=2), [1, 2]),
        (lambda r: r.select_notifications(1, 10, containing=b"data 2"), [3, 4]),
        (lambda r: r.select_notifications(7, 10), []),
        (lambda r: r.select_at([6, 2, 99, 0, 2]), [2, 6]),
        (lambda r: r.select_events("key_1"), [1, 3, 5]),
        (lambda r: r.select_events("schlüssel_✓", gt=1), [4, 6]),
        (lambda r: r.select_events("key_1", lte=2), [1, 3]),
        (lambda r: r.select_events("key_1", desc=True, limit=2), [5, 3]),
        (lambda r: r.select_events("schlüssel_✓", topics=["key.revoked"]), [2]),
        (lambda r: r.select_events("key_2"), []),
    ],
)
def test_what_is_asked_for_is_found(
    ask: Callable[[LedgerRecorder], list[StoredEvent]], positions: list[int], filled: LedgerRecorder
) -> None:
    assert [one.id for one in ask(filled)] == positions  # type: ignore[attr-defined]  # a notification


def test_a_row_has_the_librarys_names_and_ours(filled: LedgerRecorder) -> None:
    last = filled.select_notifications(1, 10)[-1]
    assert filled.select_at([2]) == [(2, "schlüssel_✓", 1, "key.revoked", b"data 1", -1)]
    names = (last.id, last.originator_id, last.originator_version, last.topic, last.state, last.mark)
    assert names == tuple(last)


@pytest.mark.parametrize("after", range(7))
@pytest.mark.parametrize("limit", [1, 2, 10])
def test_data_alone_is_the_data_of_the_same_events(filled: LedgerRecorder, after: int, limit: int) -> None:
    rows = filled.select_notifications(after, limit, inclusive_of_start=False)
    before = filled.select_at([after])

    found = filled.select_data(after, limit)

    assert found.data == [row.data for row in rows]
    assert (found.last, found.mark) == ((rows[-1].position, rows[-1].mark) if rows else (0, 0))
    assert found.mark_before == (before[0].mark if before else None)


def test_its_end_is_position_mark_and_epoch(recorder: LedgerRecorder) -> None:
    assert (recorder.end(), recorder.max_notification_id()) == (BEGIN, None)
    recorder.insert_events([event(1), event(2)], behind=BEGIN, group_id=b"g" * 16)
    assert (recorder.end(), recorder.max_notification_id()) == (HistoryPoint(2, mark_of(b"g" * 16), 1), 2)


def test_somebodys_session_opens_no_other(recorder: LedgerRecorder) -> None:
    with pytest.raises(NotSupportedError):
        recorder.subscribe()


@pytest.mark.parametrize("seed", range(20))
def test_what_is_decoded_by_the_thousand_is_what_is_decoded_singly_without_personal_fields(
    seed: int,
) -> None:
    using = mapper()
    events = History(seed).grow(200)
    data = [using.encode(one, "stream") for one in events]

    assert using.decode_public(data) == [msgspec.structs.replace(one, private=None) for one in events]
