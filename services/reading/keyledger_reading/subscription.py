"""Following the log with the eventsourcing library's `subscribe`: for a runner in any process.

The library's own subscription listens on the channel of its own inserts, reads before it listens,
never polls, ends with the connection, and wakes ten times a second when nothing happens.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, get_args

import psycopg
from eventsourcing.persistence import OperationalError, PersistenceError, Subscription
from psycopg import Connection

from keyledger_language.events import LedgerEvent
from keyledger_language.history import HistoryPoint
from keyledger_reading.connections import hang_up
from keyledger_reading.errors import DifferentPastError
from keyledger_reading.mapper import tag_of
from keyledger_reading.notices import Listener, channel
from keyledger_reading.notifications import LoggedEvent
from keyledger_reading.positions import LogPosition

if TYPE_CHECKING:
    from keyledger_reading.recorder import ReadingRecorder

_READ: Final = 1_000
_SEARCHED: Final = 16_000
"""How many events are searched at once for those of the wanted types: a stop is noticed in between."""
_POLL_SECONDS: Final = 1.0
"""How late an event may be if its wake-up was lost."""
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_WARN_SECONDS: Final = 60.0
_STATEMENT_SECONDS: Final = 2.0
"""How long a statement that is under way may keep the end waiting."""

_log: Final = logging.getLogger("keyledger_reading")

NewSession = Callable[[], "tuple[Connection[Any], ReadingRecorder]"]


class LedgerSubscription(Subscription["ReadingRecorder"]):
    """Events in order, each once: the existing ones, then each new one as it is committed.

    It listens before it reads, polls once a second, and tries to reconnect for as long as PostgreSQL
    cannot be reached. Each event's `id` is a `LogPosition`. Iterating raises DifferentPastError when the
    log is not the one that was followed: it was restored, or a fail-over lost events. `stop` may be
    called from any thread.

    `epoch`: continue in this epoch of the log, although an earlier one was followed.
    """

    def __init__(
        self,
        recorder: ReadingRecorder,
        new_session: NewSession,
        *,
        gt: int | None = None,
        topics: Sequence[str] = (),
        epoch: int | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        if gt and not isinstance(gt, LogPosition):
            raise DifferentPastError(
                f"Position {gt} alone does not identify the log that it belongs to: keep the view in a"
                " keyledger_reading.PostgresView or SQLiteView, which store that, too. If it was kept in"
                " another one until now, empty its tables and its tracking table."
            )
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._new_session = new_session
        self._poll_seconds = poll_seconds
        self._accepted_epoch = epoch
        self._seen = gt if isinstance(gt, LogPosition) else None
        """The last event that was read or skipped; None before the first."""
        self._delivered = self._seen
        """The last event that was returned; those behind it, up to `_seen`, were read or skipped."""
        self._followed = ",".join(sorted(topics))
        self._log_id = ""
        self._epoch = 0
        self._found: list[LoggedEvent] = []
        self._next = 0
        self._waking, self._woken = socket.socketpair()
        self._reading = threading.Lock()
        self._session: Connection[Any] | None = None
        self._failures = 0
        self._warned_at = float("-inf")
        try:
            self._connect()
            self._refuse_missed_types()
        except BaseException:
            self._close()
            raise

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        super().__exit__(*args, **kwargs)
        in_time = self._reading.acquire(timeout=_STATEMENT_SECONDS)
        if not in_time:
            # A statement does not return: a lock, or a server that is stopped.
            if (session := self._session) is not None:
                hang_up(session)
            self._reading.acquire()
        try:
            self._close()
        finally:
            self._reading.release()

    def stop(self) -> None:
        """End the iteration, even while it waits; the session is closed with it."""
        super().stop()
        with contextlib.suppress(OSError):  # closed already
            self._woken.send(b"\0")

    def __next__(self) -> LoggedEvent:  # type: ignore[override]  # it looks like the library's Notification
        with self._reading:
            while not self._has_been_stopped:
                if self._next < len(self._found):
                    event = self._found[self._next]
                    self._next += 1
                    self._delivered = self._position(event)
                    return event._replace(position=self._delivered)
                self._read_or_wait()
            self._close()
        raise StopIteration

    def _position(self, event: LoggedEvent) -> LogPosition:
        return LogPosition(
            event.position, log_id=self._log_id, epoch=self._epoch, mark=event.mark, topics=self._followed
        )

    def _read_or_wait(self) -> None:
        try:
            if self._session is None:
                self._connect()
            found = self._read()
            self._failures = 0
            if not found:
                self._listener.wait(self._poll_seconds)
        except (psycopg.OperationalError, OperationalError) as error:
            self._hang_up()
            self._warn(error)
            self._pause()

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._warned_at >= _WARN_SECONDS and not self._has_been_stopped:
            self._warned_at = now
            reason = " ".join(str(error).split())
            _log.warning("The log cannot be read, trying again: %s", reason)

    @property
    def _seen_to(self) -> int:
        return 0 if self._seen is None else int(self._seen)

    def _read(self) -> bool:
        """Read or search the next events; False if the end of the log was reached, and nothing was found."""
        end = self._on_session.end()
        if end.epoch != self._epoch or not self._has(self._seen, end):
            self._check_history()  # epoch raised, or log restored, while the session stayed open
        after, limit = self._seen_to, _READ
        stop = min(end.position, after + _SEARCHED) if self._topics else None
        self._found, self._next = (
            self._on_session.select_notifications(
                after, limit, stop, topics=self._topics, inclusive_of_start=False
            ),
            0,
        )
        if stop is not None and stop > after and len(self._found) < limit:
            # None of the other events is wanted; the last of them is remembered with its mark, too.
            [passed] = self._on_session.select_at([stop])
            self._seen = self._position(passed)
        elif self._found:
            self._seen = self._position(self._found[-1])
        return bool(self._found) or self._seen_to < end.position

    def _connect(self) -> None:
        self._session, self._on_session = self._new_session()
        self._listener = Listener(
            self._session, channel(self._on_session.partition), waking=self._waking.fileno()
        )
        # A new connection may lead to another server, which must have what was followed.
        self._check_history()

    def _has(self, position: LogPosition | None, end: HistoryPoint | None = None) -> bool:
        """Whether the log has this event, with its mark; `end`: where the log ends, if that is known."""
        if position is None:
            return True
        if end is not None and end.position == position:
            return end.mark == position.mark
        found = self._on_session.select_at([position])
        return bool(found) and found[0].mark == position.mark

    def _check_history(self) -> None:
        log_id, epoch = self._on_session.log_id(), self._on_session.end().epoch
        if (seen := self._seen) is not None:
            self._refuse_another_log(seen, log_id)
            self._refuse_another_past(seen)
            self._refuse_another_epoch(
                seen.epoch, epoch, f"Event {seen}, the last one that was followed, is still in it."
            )
        elif self._log_id:
            self._refuse_another_epoch(self._epoch, epoch, "None of its events was followed yet.")
        self._log_id, self._epoch = log_id, epoch

    def _refuse_another_log(self, seen: LogPosition, log_id: str) -> None:
        if seen.log_id != log_id:
            raise DifferentPastError(
                f"This is the log {log_id}; the one followed so far, up to event {seen}, is the log"
                f" {seen.log_id}, another ledger's. Follow that one, or rebuild the projection: empty its"
                " tables and its tracking table."
            )

    def _refuse_another_past(self, seen: LogPosition) -> None:
        if self._has(seen):
            return
        what = "it was restored, or a fail-over lost events"
        if self._delivered != seen and self._delivered is not None and self._has(self._delivered):
            raise DifferentPastError(
                f"Event {seen} is no longer in the log: {what}. The last event that was returned,"
                f" {self._delivered}, is still in it: start again, and the view continues behind it."
            )
        raise DifferentPastError(
            f"Event {seen}, up to which the log was followed, is no longer in it: the log was restored, or"
            " a fail-over lost events. Rebuild the projection: empty its tables and its tracking table."
        )

    def _refuse_missed_types(self) -> None:
        """Refuse a view that was built without events of types that are wanted now."""
        if self._seen is None or not self._seen.topics:
            return
        wanted = set(self._topics) or {tag_of(one) for one in get_args(LedgerEvent)}
        missed = sorted(wanted - set(self._seen.topics.split(",")))
        if not missed:
            return
        found = self._on_session.select_notifications(0, 1, self._seen, topics=missed)
        if found:
            raise PersistenceError(
                f"The view was built without events of the type {found[0].topic}, which are in the log before"
                f" event {self._seen}, up to which it was built. Rebuild the projection (empty its tables and"
                " its tracking table), or follow the types that it was built with."
            )

    def _refuse_another_epoch(self, followed: int, epoch: int, still: str) -> None:
        if epoch not in {followed, self._accepted_epoch}:
            raise DifferentPastError(
                f"The log is in epoch {epoch}, and was followed in epoch {followed}: it was restored, or a"
                f" fail-over lost events. {still} To continue, set KEYLEDGER_EPOCH={epoch}; or"
                " rebuild the projection: empty its tables and its tracking table."
            )

    def _pause(self) -> None:
        seconds = _RETRY_SECONDS[min(self._failures, len(_RETRY_SECONDS) - 1)]
        self._failures += 1
        self._waking.settimeout(seconds)
        with contextlib.suppress(TimeoutError):
            self._waking.recv(1)

    def _hang_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _close(self) -> None:
        self._hang_up()
        self._waking.close()
        self._woken.close()
