"""Following the log by the eventsourcing library's `subscribe`: for a runner in anybody's process.

The library's own subscription listens to the channel of its own inserts, reads before it listens,
never looks by itself, ends with the connection, and wakes ten times a second when nothing happens.
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

from domain.ports import OtherHistoryError
from infra.postgres.notices import Listener, channel
from infra.postgres.notifications import LoggedEvent

if TYPE_CHECKING:
    from infra.postgres.recorder import LedgerRecorder

_READ: Final = 1_000
_POLL_SECONDS: Final = 1.0
"""So late comes an event whose hint was lost."""
_RETRY_SECONDS: Final = (0.05, 0.1, 0.2, 0.5, 1.0)

NewSession = Callable[[], "tuple[Connection[Any], LedgerRecorder]"]


class LedgerSubscription(Subscription["LedgerRecorder"]):
    """Events in order, each once: those that are there, then each as it is committed.

    It listens before it reads, looks by itself once a second, and connects anew for as long as
    PostgreSQL is away. Iterating raises OtherHistoryError when the log is not the one that was followed:
    it was restored, or a fail-over lost events. `stop` may be called from any thread.
    """

    def __init__(
        self,
        recorder: LedgerRecorder,
        new_session: NewSession,
        *,
        gt: int | None = None,
        topics: Sequence[str] = (),
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._new_session = new_session
        self._poll_seconds = poll_seconds
        self._last = gt or 0
        self._mark: int | None = None
        """Of the event at `_last`, as soon as it has been looked up."""
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
        """End the iteration, also one that waits; the session is closed with it."""
        super().stop()
        with contextlib.suppress(OSError):  # closed already
            self._woken.send(b"\0")

    def __next__(self) -> LoggedEvent:  # type: ignore[override]  # it looks like the library's Notification
        with self._reading:
            while not self._has_been_stopped:
                if self._next < len(self._found):
                    event = self._found[self._next]
                    self._next += 1
                    self._last, self._mark = event.position, event.mark
                    return event
                self._read_or_wait()
            self._close()
        raise StopIteration

    def _read_or_wait(self) -> None:
        try:
            if self._session is None:
                self._connect()
            self._found, self._next = self._read(), 0
            if not self._found:
                self._listener.wait(self._poll_seconds)
        except (psycopg.OperationalError, OperationalError):
            self._hang_up()
            self._pause()

    def _read(self) -> list[LoggedEvent]:
        return self._on_session.select_notifications(
            self._last, _READ, topics=self._topics, inclusive_of_start=False
        )

    def _connect(self) -> None:
        self._session, self._on_session = self._new_session()
        self._listener = Listener(
            self._session, channel(self._on_session.partition), waking=self._waking.fileno()
        )
        # Another connection may lead to another server: what was followed has to be there.
        self._check_history()
        self._failures = 0

    def _check_history(self) -> None:
        if self._last == 0:
            return
        found = self._on_session.select_at([self._last])
        if not found or (self._mark is not None and found[0].mark != self._mark):
            raise OtherHistoryError(
                f"Event {self._last}, up to which the log was followed, is not in it any more:"
                " it was restored, or a fail-over lost events. Build the projection anew."
            )
        self._mark = found[0].mark

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
