"""What waits in front of the bus, and what comes back from it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol

import msgspec

from domain.commands import Asking, Command
from domain.ports import NewDataKey, NewEvent
from domain.state import Books
from keyledger_language.events import Event
from keyledger_language.history import RecordedEvent


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """An `Idempotency-Key`, as the root key's claim, and what it was sent with."""

    claim: bytes
    body_digest: bytes
    """16 bytes over method, path and body: another body under the same key is a conflict."""


Render = Callable[[Any, Books, int], bytes]
"""(result, books as of the decision, position) to the answer that a replay gets: no secret in it."""


class Done(msgspec.Struct, kw_only=True):
    """A command was carried out, durably."""

    result: Any = None
    """What the decision answered."""
    position: int = 0
    """The last position it wrote, or the head on which it was decided when it wrote nothing."""
    wrote: bool = False
    fence_position: int | None = None
    """Up to where fences must hold before it may be said that nobody accepts what was taken away.

    Of a command that took something away, its own last one; of one that would have and found nothing
    left to take away, the newest that was open when it was decided (or its position, when none was).
    None: it has nothing to do with fences.
    """
    narrowed: bool = False
    """Did it take something away itself, that edges must hear of?"""
    replay: bytes | None = None
    """The first answer under this `Idempotency-Key`; `result` is None then."""


WAITED_PAST: Final[ContextVar[int | None]] = ContextVar("waited_past", default=None)
"""Set where a request is carried out that another process passed on: up to which refusal that process
knows its client to have waited; None where the client asks us itself. It goes with the request through
all that it calls, as nobody in between has to know of it."""


class Job:
    """One command on its way."""

    __slots__ = ("asking", "charge", "command", "future", "idempotency", "render", "waited_past")

    def __init__(
        self,
        command: Command,
        asking: Asking,
        future: asyncio.Future[Done],
        idempotency: Idempotency | None = None,
        render: Render | None = None,
    ) -> None:
        self.command = command
        self.asking = asking
        self.future = future
        self.idempotency = idempotency
        self.render = render
        self.waited_past = WAITED_PAST.get()
        self.charge: Event | None = None
        """The charge that a refund names, read from the log before the decision."""


class DataKeyring(Protocol):
    """The data keys that this process knows."""

    def knows(self, subject: str) -> bool:
        """Has this process the subject's key, or does it know that the subject was forgotten?"""
        ...

    def learn(self, stored: Mapping[str, bytes]) -> None:
        """Take data keys as the log stores them."""
        ...

    def forget_all(self) -> None:
        """The log may have lost some of them: all are to be learned anew."""
        ...

    def encrypt(self, subject: str, plaintext: bytes, context: str) -> bytes | None:
        """For who has the subject's key, bound to the context; None: the subject was forgotten.

        A subject without a key gets one, which belongs into the next group.
        """
        ...

    def decrypt(self, subject: str, ciphertext: bytes, context: str) -> bytes | None:
        """The plaintext, or None where the subject has no key (any more). Raises DataKeyError."""
        ...


class Mapper(Protocol):
    """Events to bytes and back."""

    @property
    def data_keys(self) -> DataKeyring:
        """What its personal fields are read with."""
        ...

    def subject_of(self, recorded: RecordedEvent) -> str | None:
        """Whose data key the event's personal fields need; None when it has none."""
        ...

    def new_event(self, stream: str, version: int, event: Event) -> NewEvent:
        """The event, encoded, on its way into the log."""
        ...

    def decode(self, recorded: RecordedEvent) -> Event:
        """The event that the log holds."""
        ...

    def take_new_data_keys(self) -> tuple[NewDataKey, ...]:
        """Data keys that encoding made; they belong into the same group."""
        ...

    def forget_data_keys(self, keys: tuple[NewDataKey, ...]) -> None:
        """The group was not written: its new keys do not exist."""
        ...
