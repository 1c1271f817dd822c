"""Bytes to events: msgpack, older shapes brought up to date, personal fields left out.

On disk an event is the msgpack map that its Struct encodes to. If it has personal fields, or a
schema version above 1, it is an array instead: [map, ciphertext or nil, version].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Generic, NoReturn, TypeVar, Union

import msgspec
from eventsourcing.persistence import JSONTranscoder, Mapper, NotSupportedError, StoredEvent

from keyledger_language.history import RecordedEvent
from keyledger_reading.errors import UnknownEventError

E = TypeVar("E", bound=msgspec.Struct)
Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts the fields of one schema version to those of the next; may rename the type as well."""

ARRAY_MARK: Final = 0x93


class WrappedEvent(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """An event on disk that is more than the map of its fields."""

    fields: msgspec.Raw
    private: bytes | None
    schema: int


class ReadingMapper(Mapper[str], Generic[E]):
    """Decodes the events of a registry of Structs, by their tags: a mapper of the library that only reads.

    The library's own mapper writes and reads paths of Python classes. `upcasters`: by (tag, schema
    version); a tag's current version is one above its last. Personal fields are None: their keys are in
    a table that readers of the log cannot read.
    """

    def __init__(
        self,
        event_types: Iterable[type[E]],
        *,
        upcasters: Mapping[tuple[str, int], Upcaster] | None = None,
    ) -> None:
        super().__init__(JSONTranscoder())
        self._types = {tag_of(event_type): event_type for event_type in event_types}
        self._upcasters = dict(upcasters or {})
        self._schemas = {tag: version + 1 for tag, version in sorted(self._upcasters)}
        self._decoders = {tag: msgspec.msgpack.Decoder(t) for tag, t in self._types.items()}
        self._decode_wrapped = msgspec.msgpack.Decoder(WrappedEvent).decode

    def to_stored_event(self, domain_event: Any) -> NoReturn:  # noqa: ARG002 - the library's name
        """Raises NotSupportedError: a reader writes nothing."""
        raise NotSupportedError("The log is read-only here: only a ledger writes it.")

    def to_domain_event(self, stored_event: StoredEvent) -> Any:  # the library wants its own protocol
        """The event, as `decode` returns it: for a stock `Application`, a `Projection` or a runner."""
        return self.decode(
            RecordedEvent(
                0,
                str(stored_event.originator_id),
                stored_event.originator_version,
                stored_event.topic,
                stored_event.state,
            )
        )

    def decode(self, recorded: RecordedEvent) -> E:
        """The event as its current Struct; personal fields that cannot be read are None."""
        data, tag = recorded.data, recorded.type
        if data[0] == ARRAY_MARK or tag in self._schemas:
            return self._decode_otherwise(recorded)
        try:
            return self._decoders[tag].decode(data)
        except KeyError:
            raise UnknownEventError(tag) from None

    def _decode_otherwise(self, recorded: RecordedEvent) -> E:
        """`decode` for an event that is not just the map of its current fields."""
        return self._current(recorded.type, self._wrapped(recorded.data))

    def decode_public(self, data: Sequence[bytes]) -> list[E]:
        """Like `decode`, without personal fields: twice as fast, for reading events by the thousand.

        Raises msgspec.ValidationError if an event does not fit this version's schemas: use `decode` for
        those.
        """
        decode, decode_wrapped = self._decode_public
        return [decode(one) if one[0] != ARRAY_MARK else _first_version(decode_wrapped(one)) for one in data]

    @cached_property
    def _decode_public(self) -> tuple[Callable[[bytes], E], Callable[[bytes], tuple[E, bytes | None, int]]]:
        """For plain and for wrapped events of the types that have no upcaster."""
        as_written: Any = Union[tuple(t for tag, t in self._types.items() if tag not in self._schemas)]  # noqa: UP007 - of a tuple
        wrapped: Any = tuple[as_written, bytes | None, int]
        return msgspec.msgpack.Decoder(as_written).decode, msgspec.msgpack.Decoder(wrapped).decode

    def _wrapped(self, data: bytes) -> WrappedEvent:
        if data[0] == ARRAY_MARK:
            return self._decode_wrapped(data)
        return WrappedEvent(msgspec.Raw(data), None, 1)

    def _current(self, tag: str, wrapped: WrappedEvent) -> E:
        if (tag, wrapped.schema) in self._upcasters:
            return self._upcasted(tag, wrapped)
        if wrapped.schema > self._schemas.get(tag, 1):
            raise UnknownEventError(f"{tag} of version {wrapped.schema}")
        try:
            return self._decoders[tag].decode(wrapped.fields)
        except KeyError:
            raise UnknownEventError(tag) from None

    def _upcasted(self, tag: str, wrapped: WrappedEvent) -> E:
        fields: dict[str, Any] = msgspec.msgpack.decode(wrapped.fields)
        schema = wrapped.schema
        while upcast := self._upcasters.get((tag, schema)):
            fields = upcast(fields)
            schema += 1
        renamed = fields["type"]
        if renamed not in self._types:
            raise UnknownEventError(renamed)
        return msgspec.convert(fields, self._types[renamed])


def _first_version(wrapped: tuple[E, bytes | None, int]) -> E:
    event, _, schema = wrapped
    if schema != 1:
        raise msgspec.ValidationError(f"version {schema} of a type that has one")
    return event


def tag_of(event_type: type[msgspec.Struct]) -> str:
    """The name on disk of a Struct's events."""
    tag = event_type.__struct_config__.tag
    assert isinstance(tag, str), f"{event_type.__name__} needs a tag"
    return tag
