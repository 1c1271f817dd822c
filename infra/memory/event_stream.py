"""The public stream in memory: an honest fake, held to the same contract tests as JetStream."""

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
    """What several connections share, as several processes share a NATS server."""

    def __init__(self, *, most_bytes: int = 1 << 20, most_age_seconds: float = 0.0) -> None:
        self.messages: dict[int, Message] = {}
        """By sequence; the oldest may be gone."""
        self.last_sequence = 0
        self.stored_at: float | None = None
        self.most_bytes = most_bytes
        self.most_age_seconds = most_age_seconds
        self.up = True
        self.dies_after: int | None = None
        """Goes down once it has stored so many more messages."""

    def empty(self) -> None:
        """All messages are dropped; the sequence goes on."""
        self.messages.clear()

    def store(self, message: Message, behind: int) -> bool:
        """Keep the message if the stream ends there and is up."""
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
    """One connection to a storage; what it sends is stored by the time `settle` is asked."""

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
        """Where the stream ends now."""
        self.check()
        last = self._storage.messages.get(self._storage.last_sequence)
        return StreamEnd(
            self._storage.last_sequence,
            None if last is None else dict(last.headers),
            None if last is None else self._storage.stored_at,
        )

    async def send(self, messages: Sequence[Message], *, behind: int) -> None:
        """Store them, up to the first that does not fit; that is only told later, as by a real one."""
        self.check()
        for sequence, message in enumerate(messages, start=behind + 1):
            if self._failure is None and not self._storage.store(message, sequence - 1):
                self._failure = self._reason()
            if self._failure is None:
                self.acknowledged = sequence

    async def settle(self) -> None:
        """Everything is stored, or it never will be."""
        self.check()

    def check(self) -> None:
        """Raise what went wrong."""
        if self._failure is None and not self._storage.up:
            self._failure = StreamUnavailableError("the stream is down")
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Let go."""

    def _reason(self) -> Exception:
        if not self._storage.up:
            return StreamUnavailableError("the stream is down")
        return StreamConflictError("the stream does not end there")
