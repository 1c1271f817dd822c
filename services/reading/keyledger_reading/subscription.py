"""Following the log with the eventsourcing library's `subscribe`: for a runner in any process.

The library's own subscription listens on the channel of its own inserts, reads before it listens,
never polls, ends with the connection, and wakes ten times a second when nothing happens.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import psycopg
from eventsourcing.persistence import OperationalError, Subscription
from psycopg import Connection

from keyledger_reading.errors import DifferentPastError
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
                " keyledger_reading.PostgresView or SQLiteView, which store that, too."
            )
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._new_session = new_session
        self._poll_seconds = poll_seconds
        self._accepted_epoch = epoch
        self._seen = gt if isinstance(gt, LogPosition) else None
        """The last event that was read or skipped; None before the first."""
        self._log_id = ""
        self._epoch = 0
        self._found: list[LoggedEvent] = []
        self._next = 0
        self._waking, self._woken = socket.socketpair()
        self._reading = threading.Lock()
        self._session: Connection[Any] | None = None
        try:
            self._connect()
        except BaseException:
            self._close()
            raise

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        super().__exit__(*args, **kwargs)
        with self._reading:
            self._close()

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
                    return event._replace(position=self._position(event))
                self._read_or_wait()
            self._close()
        raise StopIteration

    def _position(self, event: LoggedEvent) -> LogPosition:
        return LogPosition(event.position, log_id=self._log_id, epoch=self._epoch, mark=event.mark)

    def _read_or_wait(self) -> None:
        try:
            if self._session is None:
                self._connect()
            if not self._read():
                self._listener.wait(self._poll_seconds)
        except (psycopg.OperationalError, OperationalError):
            self._hang_up()
            self._pause()

    @property
    def _seen_to(self) -> int:
        return 0 if self._seen is None else int(self._seen)

    def _read(self) -> bool:
        """Read or search the next events; False if the end of the log was reached, and nothing was found."""
        end = self._on_session.end()
        if end.epoch != self._epoch or end.position < self._seen_to:
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
        self._failures = 0

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
        found = self._on_session.select_at([seen])
        if not found or found[0].mark != seen.mark:
            raise DifferentPastError(
                f"Event {seen}, up to which the log was followed, is no longer in it: the log was restored,"
                " or a fail-over lost events. Rebuild the projection: empty its tables and its tracking"
                " table."
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
