"""What waits in the command queue, and what comes back from it."""

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
    """An `Idempotency-Key`, as the root key's claim, and a digest of the request that it was sent with."""

    claim: bytes
    body_digest: bytes
    """16 bytes over method, path and body: another body under the same key is a conflict."""


Render = Callable[[Any, Books, int], bytes]
"""(result, books as of the decision, position) to the answer that a replay gets: no secret in it."""


class Done(msgspec.Struct, kw_only=True):
    """A command was carried out, durably."""

    result: Any = None
    """What the decision returned."""
    position: int = 0
    """The last position it wrote; if it wrote nothing, the head on which it was decided."""
    wrote: bool = False
    fence_position: int | None = None
    """The position up to which fences must hold before the answer may say that nobody accepts what was
    taken away.

    If the command took something away, its own last one. If it would have, but found nothing left to
    take away, the newest that was open when it was decided (or its position, if none was).
    None: it has nothing to do with fences.
    """
    narrowed: bool = False
    """Whether it took something away itself, so that edges must be notified."""
    replay: bytes | None = None
    """The first answer under this `Idempotency-Key`; `result` is None then."""


WAITED_PAST: Final[ContextVar[int | None]] = ContextVar("waited_past", default=None)
"""Set while a forwarded request is carried out: the number of the refusal up to which the forwarding
process knows that its client waited; None if the client called this process itself. A context variable,
because the functions in between do not need it."""


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
        """Whether this process has the subject's key, or knows that the subject was forgotten."""
        ...

    def learn(self, stored: Mapping[str, bytes]) -> None:
        """Add data keys, as the log stores them."""
        ...

    def forget_all(self) -> None:
        """Forget all keys, since the log may have lost some of them: they are learned again."""
        ...

    def encrypt(self, subject: str, plaintext: bytes, context: str) -> bytes | None:
        """Encrypt with the subject's key, bound to the context; None: the subject was forgotten.

        A subject without a key gets one, which belongs in the next group.
        """
        ...

    def decrypt(self, subject: str, ciphertext: bytes, context: str) -> bytes | None:
        """The plaintext, or None if the subject has no key (any more). Raises DataKeyError."""
        ...


class Mapper(Protocol):
    """Events to bytes and back."""

    @property
    def data_keys(self) -> DataKeyring:
        """The data keys with which personal fields are encrypted."""
        ...

    def subject_of(self, recorded: RecordedEvent) -> str | None:
        """The subject whose data key the event's personal fields need; None if it has none."""
        ...

    def new_event(self, stream: str, version: int, event: Event) -> NewEvent:
        """The event, encoded for the log."""
        ...

    def decode(self, recorded: RecordedEvent) -> Event:
        """The event, decoded from the log."""
        ...

    def take_new_data_keys(self) -> tuple[NewDataKey, ...]:
        """The data keys that encoding created; they belong in the same group."""
        ...

    def forget_data_keys(self, keys: tuple[NewDataKey, ...]) -> None:
        """The group was not written, so its new keys do not exist."""
        ...
