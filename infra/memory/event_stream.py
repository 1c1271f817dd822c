"""The public stream in memory: a fake that passes the same contract tests as JetStream."""

from __future__ import annotations

from collections.abc import Sequence

from domain.publishing import (
    MESSAGE_ID,
    Message,
    StreamConflictError,
    StreamEnd,
    StreamUnavailableError,
)


class MemoryStreamStorage:
    """The storage that several connections share, as several processes share a NATS server."""

    def __init__(self, *, most_bytes: int = 1 << 20, most_age_seconds: float = 0.0) -> None:
        self.messages: dict[int, Message] = {}
        """By sequence; the oldest may be dropped already."""
        self.last_sequence = 0
        self.stored_at: float | None = None
        self.most_bytes = most_bytes
        self.most_age_seconds = most_age_seconds
        self.up = True
        self.dies_after: int | None = None
        """The storage goes down once it has stored this many more messages."""

    def empty(self) -> None:
        """Drop all messages; the sequence continues."""
        self.messages.clear()

    def store(self, message: Message, behind: int) -> bool:
        """Store the message if the stream ends at `behind` and is up."""
        if self.dies_after == 0:
            self.up, self.dies_after = False, None
        if not self.up or behind != self.last_sequence:
            return False
        if any(held.headers[MESSAGE_ID] == message.headers[MESSAGE_ID] for held in self._newest()):
            return False
        if self.dies_after is not None:
            self.dies_after -= 1
        self.last_sequence += 1
        self.messages[self.last_sequence] = message
        return True

    def _newest(self) -> list[Message]:
        newest = range(max(0, self.last_sequence - 100), self.last_sequence + 1)
        return [self.messages[sequence] for sequence in newest if sequence in self.messages]


class MemoryPublicStream:
    """One connection to a storage; messages are stored by the time `settle` is called."""

    def __init__(self, storage: MemoryStreamStorage) -> None:
        self.most_bytes = storage.most_bytes
        self.most_age_seconds = storage.most_age_seconds
        self.acknowledged = 0
        self._storage = storage
        self._failure: Exception | None = None

    @classmethod
    async def open(cls, storage: MemoryStreamStorage) -> MemoryPublicStream:
        """Connect."""
        stream = cls(storage)
        stream.check()
        return stream

    async def end(self) -> StreamEnd:
        """The current end of the stream."""
        self.check()
        last = self._storage.messages.get(self._storage.last_sequence)
        return StreamEnd(
            self._storage.last_sequence,
            None if last is None else dict(last.headers),
            None if last is None else self._storage.stored_at,
        )

    async def send(self, messages: Sequence[Message], *, behind: int) -> None:
        """Store messages up to the first that does not fit; the error comes later, as from a real stream."""
        self.check()
        for sequence, message in enumerate(messages, start=behind + 1):
            if self._failure is None and not self._storage.store(message, sequence - 1):
                self._failure = self._reason()
            if self._failure is None:
                self.acknowledged = sequence

    async def settle(self) -> None:
        """Return if everything sent is stored; raise if it never will be."""
        self.check()

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self._failure is None and not self._storage.up:
            self._failure = StreamUnavailableError("the stream is down")
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def _reason(self) -> Exception:
        if not self._storage.up:
            return StreamUnavailableError("the stream is down")
        return StreamConflictError("the stream does not end there")
