"""Events to bytes and back: what a reader's mapper does, and also writing and personal fields.

Those are encrypted wherever the ledger keeps them; the reader's mapper describes how an event looks on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Generic, NamedTuple, TypeVar

import msgspec
from eventsourcing.persistence import StoredEvent

from domain.metadata import cut, is_deeper
from domain.personal import key_subject
from domain.ports import NewDataKey, NewEvent
from infra.postgres.data_keys import DataKeys
from keyledger_language.history import RecordedEvent
from keyledger_reading.mapper import ARRAY_MARK, ReadingMapper, Upcaster

E = TypeVar("E", bound=msgspec.Struct)

_ARRAY_OF_3: Final = bytes((ARRAY_MARK,))


class StreamEvent(NamedTuple):
    """What the library calls a domain event, to be written: our event, with its place in its stream."""

    originator_id: str
    originator_version: int
    event: Any


class Decoded(NamedTuple, Generic[E]):
    """An event, and whether its personal fields were erased with their key."""

    event: E
    erased: bool


class EventMapper(ReadingMapper[E]):
    """Encodes and decodes the events of a registry of Structs, by their tags: the library's mapper.

    The library's own calls `vars()` on events, which does not work on a Struct. `find_data_keys` looks up
    a key that `to_domain_event` needs and that is not known yet.
    """

    def __init__(
        self,
        event_types: Iterable[type[E]],
        *,
        data_keys: DataKeys | None = None,
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
        find_data_keys: Callable[[str], Mapping[str, bytes]] = lambda _: {},
    ) -> None:
        super().__init__(event_types, upcasters=upcasters)
        self._tags = {event_type: tag for tag, event_type in self._types.items()}
        self._private_decoders = {tag: _private_decoder(t) for tag, t in self._types.items()}
        self._encode = msgspec.msgpack.Encoder().encode
        self._later_schemas = bool(self._schemas)
        self._find_data_keys = find_data_keys
        self.data_keys = DataKeys() if data_keys is None else data_keys

    # -- writing --------------------------------------------------------------------------------

    def new_event(self, stream: str, version: int, event: E) -> NewEvent:
        """The event in the form in which it is written to the log."""
        tag = self._tags[type(event)]
        return NewEvent(stream, version, tag, self.encode(event, stream))

    def to_stored_event(self, domain_event: Any) -> StoredEvent:  # type: ignore[override]  # a reader's writes nothing
        """The same in the library's terms, for a `StreamEvent`."""
        new = self.new_event(*domain_event)
        return StoredEvent(new.stream, new.version, new.type, new.data)

    def encode(self, event: E, stream: str) -> bytes:
        """The event as bytes; its personal fields can be read with their subject's key only."""
        private = event.private  # type: ignore[attr-defined]  # every event of a registry has it
        if private is None and not self._later_schemas:
            return self._encode(event)  # nearly all events: charges
        tag = self._tags[type(event)]
        schema = self._schemas.get(tag, 1)
        if private is None and schema == 1:
            return self._encode(event)
        ciphertext = None
        if private is not None:
            ciphertext = self.data_keys.encrypt(_subject(event), self._encode(private), f"{stream}/{tag}")
            event = msgspec.structs.replace(event, private=None)
            if ciphertext is None and schema == 1:
                return self._encode(event)  # of a forgotten subject: nothing personal is written again
        return b"".join((_ARRAY_OF_3, self._encode(event), self._encode(ciphertext), self._encode(schema)))

    def take_new_data_keys(self) -> tuple[NewDataKey, ...]:
        """Keys created by `encode` since the last call, for the same group; see `forget_data_keys`."""
        return self.data_keys.take_new()

    def forget_data_keys(self, keys: Iterable[NewDataKey]) -> None:
        """The group was not written: its new keys do not exist."""
        self.data_keys.forget(key.subject for key in keys)

    # -- reading --------------------------------------------------------------------------------

    def to_domain_event(self, stored_event: StoredEvent) -> Any:  # the library wants its own protocol
        """The event, as `decode` returns it: for a stock `Application`, a `Projection` or a runner."""
        recorded = RecordedEvent(
            0,
            str(stored_event.originator_id),
            stored_event.originator_version,
            stored_event.topic,
            stored_event.state,
        )
        subject = self.subject_of(recorded)
        if subject is not None and not self.data_keys.knows(subject):
            self.data_keys.learn(self._find_data_keys(subject))
        return self.decode(recorded)

    def _decode_otherwise(self, recorded: RecordedEvent) -> E:
        return self.decode_fully(recorded).event

    def decode_fully(self, recorded: RecordedEvent) -> Decoded[E]:
        """The event, and whether its personal fields were erased (or their key is not known)."""
        wrapped = self._wrapped(recorded.data)
        event = self._current(recorded.type, wrapped)
        if wrapped.private is None:
            return Decoded(event, erased=False)
        context = f"{recorded.stream}/{recorded.type}"
        plaintext = self.data_keys.decrypt(_subject(event), wrapped.private, context)
        if plaintext is None:
            return Decoded(event, erased=True)
        private = _read_private(self._private_decoders[self._tags[type(event)]], plaintext)
        return Decoded(msgspec.structs.replace(event, private=private), erased=False)

    def subject_of(self, recorded: RecordedEvent) -> str | None:
        """The subject whose data key this event's personal fields need; None if it has none."""
        if recorded.data[0] != ARRAY_MARK:
            return None
        wrapped = self._wrapped(recorded.data)
        return None if wrapped.private is None else _subject(self._current(recorded.type, wrapped))


def is_wrapped(data: bytes) -> bool:
    """Whether the event has personal fields, or a later schema version than its first."""
    return data[0] == ARRAY_MARK


def _subject(event: msgspec.Struct) -> str:
    return key_subject(getattr(event, "organization_id", None))


def _private_decoder(event_type: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[Any]:
    private = next(field for field in msgspec.structs.fields(event_type) if field.name == "private")
    return msgspec.msgpack.Decoder(private.type)


def _read_private(decoder: msgspec.msgpack.Decoder[Any], plaintext: bytes) -> Any:
    """Personal fields, cut to a depth that all code can process.

    Early logs contain metadata that is nested as deep as the interpreter allowed on the shallow stack on
    which requests are read. Code that reads the event has a deeper stack, and has to encode it again.
    """
    try:
        private = decoder.decode(plaintext)
    except RecursionError:
        with ThreadPoolExecutor(1) as shallow:  # each thread has a stack of its own
            private = shallow.submit(decoder.decode, plaintext).result()
    metadata = getattr(private, "metadata", None)
    if not metadata or not is_deeper(metadata):
        return private
    return msgspec.structs.replace(private, metadata=cut(metadata))
