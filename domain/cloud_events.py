"""An event in its public form: a CloudEvents 1.0 object."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import get_annotations
from typing import Annotated, Any, Final

import msgspec

from domain.ids import format_position, placed_id
from keyledger_language import position_prefix
from keyledger_language.events import Event, RevocationFenced, public_name
from keyledger_language.instants import DAY, Instant, to_text

TYPE_PREFIX: Final = "keyledger."

# These are in the envelope; a fingerprint is not secret, but no client needs it: there are
# the hint and the generation.
_NOT_IN_DATA: Final = frozenset({"at", "actor", "organization_id", "private", "fingerprint"})
_SUBJECTS: Final = ("key_id", "keyspace_id", "plan_id", "project_id", "subject_id", "organization_id")
_CHANGED_FIELDS: Final = frozenset({"before", "after", "changes"})
_encoder = msgspec.json.Encoder()


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The envelope. Names are in lower case without underscores, as CloudEvents requires."""

    specversion: str = "1.0"
    """The version of CloudEvents."""
    id: str
    """An `evt_` id derived from the event's time and position: the same whenever the event is read."""
    source: str
    """The ledger's log; together with `id` it is unique everywhere."""
    type: str
    """`keyledger.` and the event's name, such as `keyledger.KeyRevoked`; new ones may be added."""
    subject: str
    """The id of the key that the event is about, or of another subject."""
    time: str
    """When it happened; RFC 3339 in UTC."""
    datacontenttype: str = "application/json"
    """The media type of `data`."""
    dataschema: str
    """Names the schema of `data`, and its version."""
    position: str
    """The event's place in the log; opaque."""
    sequence: int
    """The event's number in its partition of the log."""
    organizationid: str | None
    """The organization of the event; null: the platform."""
    actor: str
    """The id of the key that made the request, or `system`."""
    data: (
        Annotated[dict[str, Any], msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/EventData"})]
        | None
    )
    """Null only if a message would be too large for the NATS server: read the event from the feed."""


def cloud_event(
    event: Event, *, partition: int, epoch: int, number: int, source: str, personal: bool
) -> CloudEvent:
    """The envelope of the event at that position; `personal`: with its personal fields."""
    name, prefix = public_name(event), position_prefix(partition, epoch)
    return CloudEvent(
        id=placed_id("evt", event.at, partition=partition, position=number),
        source=source,
        type=TYPE_PREFIX + name,
        subject=subject_of(event),
        time=to_text(event.at),
        dataschema=f"urn:keyledger:events:{name}:1",
        position=format_position(prefix, number),
        sequence=number,
        organizationid=event.organization_id,
        actor=event.actor,
        data=_data(event, prefix=prefix, personal=personal),
    )


def to_json(event: CloudEvent) -> bytes:
    """The envelope and its data as JSON."""
    return _encoder.encode(event)


def source_of(log_id: str) -> str:
    """The `source` of a log's events: together with `id` it is unique everywhere."""
    return f"urn:keyledger:{log_id}"


def subject_of(event: Event) -> str:
    """What the event is about: its key, else the id of its own subject."""
    for name in _SUBJECTS:
        if (subject := getattr(event, name, None)) is not None:
            return str(subject)
    return "platform"


def _data(event: Event, *, prefix: str, personal: bool) -> dict[str, Any]:
    data: dict[str, Any] = {}
    if personal and event.private is not None:
        data = {name: value for name, value in _rendered(event.private).items() if value is not None}
    for name, render in _fields(type(event)):
        value = getattr(event, name)
        data[name] = value if render is None else render(value)
    if isinstance(event, RevocationFenced):
        data["fenced"] = [format_position(prefix, number) for number in event.fenced]
    return data


# -- fields ---------------------------------------------------------------------------------------

Render = Callable[[Any], Any]
_PLAIN: Final = frozenset({"str", "int", "bool", "str | None", "int | None"})


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Render | None], ...]:
    """Each field with the function that renders it; None for most, which are shown unchanged."""
    return tuple(
        (name, _render_of(kind, name)) for name in kind.__struct_fields__ if name not in _NOT_IN_DATA
    )


def _render_of(kind: type[msgspec.Struct], name: str) -> Render | None:
    if name in _SPECIAL:
        return _SPECIAL[name]
    annotation = _annotation(kind, name)
    if annotation in _PLAIN:
        return None
    if annotation in {"Instant", "Instant | None"}:
        return _instant
    return _changed_fields if name in _CHANGED_FIELDS else _value


def _annotation(kind: type[msgspec.Struct], name: str) -> str:
    # As written in the source: an Instant is an int once it is evaluated.
    written = (get_annotations(parent) for parent in kind.__mro__)
    return next(str(annotations[name]) for annotations in written if name in annotations)


def _rendered(struct: msgspec.Struct) -> dict[str, Any]:
    return {
        name: value if render is None else render(value)
        for name, render in _all_fields(type(struct))
        for value in (getattr(struct, name),)
    }


@cache
def _all_fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Render | None], ...]:
    return tuple((name, _render_of(kind, name)) for name in kind.__struct_fields__)


def _value(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _rendered(value)
    if isinstance(value, tuple | list):
        return [_value(item) for item in value]
    return value


def _instant(at: Instant | None) -> str | None:
    return None if at is None else to_text(at)


def _changed_fields(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return _value(fields)
    return {
        name: to_text(value) if name.endswith("_at") and isinstance(value, int) else _value(value)
        for name, value in fields.items()
    }


def _seen(seen: tuple[tuple[str, Instant, int], ...]) -> list[dict[str, Any]]:
    return [
        {"key_id": key_id, "last_used_at": to_text(at), "verifications": verifications}
        for key_id, at, verifications in seen
    ]


def _day(day: int | None) -> str | None:
    return None if day is None else to_text(day * DAY)


_SPECIAL: Final[dict[str, Render]] = {"seen": _seen, "window_start": _day}
