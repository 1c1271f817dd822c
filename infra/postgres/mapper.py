"""Events to bytes and back: msgpack, personal fields encrypted, older shapes brought up to date.

On disk an event is the msgpack map that its Struct encodes to. Where it has personal fields, or a
schema version beyond 1, it is an array instead: [map, ciphertext or nil, version].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, Generic, NamedTuple, TypeVar, Union

import msgspec
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from domain.metadata import cut, is_deeper
from domain.personal import key_subject
from domain.ports import NewDataKey, NewEvent, RecordedEvent
from infra.postgres.data_keys import DataKeys

E = TypeVar("E", bound=msgspec.Struct)
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Makes the fields of one schema version those of the next; may rename the type as well."""

_ARRAY_OF_3: Final = b"\x93"
_ARRAY_MARK: Final = 0x93


class StreamEvent(NamedTuple):
    """What the library calls a domain event, on its way into the log: ours, with its place in its stream."""

    originator_id: str
    originator_version: int
    event: Any


class Decoded(NamedTuple, Generic[E]):
    """An event, and whether its personal fields are gone with their key."""

    event: E
    erased: bool


class UnknownEventError(Exception):
    """The log holds an event of a type that this program does not know."""

    def __init__(self, tag: str) -> None:
        super().__init__(
            f"The log holds a {tag}, which this program does not know: it is older than its log."
        )


class _Wrapped(msgspec.Struct, array_like=True, frozen=True, gc=False):
    fields: msgspec.Raw
    private: bytes | None
    schema: int


class EventMapper(Mapper[str], Generic[E]):
    """Encodes and decodes the events of a registry of Structs, by their tags: the library's mapper.

    The library's own calls `vars()` on events, which a Struct has not, and writes the paths of Python's
    classes to disk. `upcasters`: by (tag, schema version); a tag's current version is one beyond its
    last. `find_data_keys`: where a key is looked up that `to_domain_event` needs and nobody has learned.
    """

    def __init__(
        self,
        event_types: Iterable[type[E]],
        *,
        data_keys: DataKeys | None = None,
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
        find_data_keys: Callable[[str], Mapping[str, bytes]] = lambda _: {},
    ) -> None:
        super().__init__(JSONTranscoder())
        self._types = {tag_of(event_type): event_type for event_type in event_types}
        self._upcasters = dict(upcasters or {})
        self._schemas = {tag: version + 1 for tag, version in sorted(self._upcasters)}
        self._tags = {event_type: tag for tag, event_type in self._types.items()}
        self._decoders = {tag: msgspec.msgpack.Decoder(t) for tag, t in self._types.items()}
        self._private_decoders = {tag: _private_decoder(t) for tag, t in self._types.items()}
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode_wrapped = msgspec.msgpack.Decoder(_Wrapped).decode
        self._later_schemas = bool(self._schemas)
        self._find_data_keys = find_data_keys
        self.data_keys = DataKeys() if data_keys is None else data_keys

    # -- writing --------------------------------------------------------------------------------

    def new_event(self, stream: str, version: int, event: E) -> NewEvent:
        """The event, on its way into the log."""
        tag = self._tags[type(event)]
        return NewEvent(stream, version, tag, self.encode(event, stream))

    def to_stored_event(self, domain_event: Any) -> StoredEvent:  # the library's protocol is looser
        """The same in the library's words, of a `StreamEvent`."""
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
        """Keys made by `encode` since the last call, for the same group; see `forget_data_keys`."""
        return self.data_keys.take_new()

    def forget_data_keys(self, keys: Iterable[NewDataKey]) -> None:
        """The group was not written: its new keys do not exist."""
        self.data_keys.forget(key.subject for key in keys)

    # -- reading --------------------------------------------------------------------------------

    def to_domain_event(self, stored_event: StoredEvent) -> Any:  # the library wants its own protocol
        """The event, as `decode` has it: of a stock `Application`, a `Projection` or a runner."""
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

    def decode_public(self, data: Sequence[bytes]) -> list[E]:
        """As `decode` would, without personal fields: twice as fast, for who reads by the thousand.

        Raises msgspec.ValidationError where one is of another time than this program: `decode` knows
        those.
        """
        decode, decode_wrapped = self._decode_public
        return [decode(one) if one[0] != _ARRAY_MARK else decode_wrapped(one)[0] for one in data]

    def decode(self, recorded: RecordedEvent) -> E:
        """The event as its current Struct; erased personal fields are None."""
        data, tag = recorded.data, recorded.type
        if data[0] == _ARRAY_MARK or tag in self._schemas:
            return self.decode_fully(recorded).event
        try:
            return self._decoders[tag].decode(data)
        except KeyError:
            raise UnknownEventError(tag) from None

    @cached_property
    def _decode_public(self) -> tuple[Callable[[bytes], E], Callable[[bytes], tuple[E, bytes | None, int]]]:
        """For plain and for wrapped events of the types that have no upcaster."""
        as_written: Any = Union[tuple(t for tag, t in self._types.items() if tag not in self._schemas)]  # noqa: UP007 - of a tuple
        wrapped: Any = tuple[as_written, bytes | None, int]
        return msgspec.msgpack.Decoder(as_written).decode, msgspec.msgpack.Decoder(wrapped).decode

    def decode_fully(self, recorded: RecordedEvent) -> Decoded[E]:
        """The event, and whether its personal fields were erased (or their key is not learned)."""
        if recorded.data[0] == _ARRAY_MARK:
            wrapped = self._decode_wrapped(recorded.data)
        else:
            wrapped = _Wrapped(msgspec.Raw(recorded.data), None, 1)
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
        """Whose data key this event's personal fields need; None when it has none."""
        if recorded.data[0] != _ARRAY_MARK:
            return None
        wrapped = self._decode_wrapped(recorded.data)
        return None if wrapped.private is None else _subject(self._current(recorded.type, wrapped))

    def _current(self, tag: str, wrapped: _Wrapped) -> E:
        if (tag, wrapped.schema) in self._upcasters:
            return self._upcasted(tag, wrapped)
        try:
            return self._decoders[tag].decode(wrapped.fields)
        except KeyError:
            raise UnknownEventError(tag) from None

    def _upcasted(self, tag: str, wrapped: _Wrapped) -> E:
        fields: dict[str, Any] = msgspec.msgpack.decode(wrapped.fields)
        schema = wrapped.schema
        while upcast := self._upcasters.get((tag, schema)):
            fields = upcast(fields)
            schema += 1
        renamed = fields["type"]
        if renamed not in self._types:
            raise UnknownEventError(renamed)
        return msgspec.convert(fields, self._types[renamed])


def is_wrapped(data: bytes) -> bool:
    """Has the event personal fields, or a later shape than its first?"""
    return data[0] == _ARRAY_MARK


def tag_of(event_type: type[msgspec.Struct]) -> str:
    """The name on disk of a Struct's events."""
    tag = event_type.__struct_config__.tag
    assert isinstance(tag, str), f"{event_type.__name__} needs a tag"
    return tag


def _subject(event: msgspec.Struct) -> str:
    return key_subject(getattr(event, "organization_id", None))


def _private_decoder(event_type: type[msgspec.Struct]) -> msgspec.msgpack.Decoder[Any]:
    private = next(field for field in msgspec.structs.fields(event_type) if field.name == "private")
    return msgspec.msgpack.Decoder(private.type)


def _read_private(decoder: msgspec.msgpack.Decoder[Any], plaintext: bytes) -> Any:
    """Personal fields, down to where anybody can go on with them.

    Early logs hold metadata that is nested as deep as the interpreter went, from the shallow stack on
    which requests are read. Whoever reads the event stands deeper, and has to encode it again.
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
