"""An event as the outside sees it: a CloudEvents 1.0 object."""

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

# The envelope says these; a fingerprint is no secret, but nobody outside needs it: there are
# the hint and the generation.
_NOT_IN_DATA: Final = frozenset({"at", "actor", "organization_id", "private", "fingerprint"})
_SUBJECTS: Final = ("key_id", "keyspace_id", "plan_id", "project_id", "subject_id", "organization_id")
_CHANGED_FIELDS: Final = frozenset({"before", "after", "changes"})
_encoder = msgspec.json.Encoder()


class CloudEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The envelope. Names are lower case without underscores, as CloudEvents asks."""

    specversion: str = "1.0"
    """The version of CloudEvents."""
    id: str
    """An `evt_` id made of the event's time and place: the same whenever it is asked for."""
    source: str
    """The ledger's log; with `id` unique everywhere."""
    type: str
    """`keyledger.` and the event's name, such as `keyledger.KeyRevoked`; new ones may come."""
    subject: str
    """What it is about: a key's id, or that of another thing."""
    time: str
    """When it happened; RFC 3339 in UTC."""
    datacontenttype: str = "application/json"
    """What `data` is."""
    dataschema: str
    """Names the shape of `data`, and its version."""
    position: str
    """Its place in the log; opaque."""
    sequence: int
    """Its number in its partition of the log."""
    organizationid: str | None
    """The customer that it happened to; null: the platform."""
    actor: str
    """Who did it: the id of a key, or `system`."""
    data: (
        Annotated[dict[str, Any], msgspec.Meta(extra_json_schema={"$ref": "#/components/schemas/EventData"})]
        | None
    )
    """None only where a message would be too large for the NATS server: read the feed."""


def cloud_event(
    event: Event, *, partition: int, epoch: int, number: int, source: str, personal: bool
) -> CloudEvent:
    """Describe the event at that place; its personal fields only where they may be seen."""
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
    """Where a log's events come from: `source` and `id` together are unique everywhere."""
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
    """Each field with how it is shown; None for as it is, which most are."""
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
    # As it is written: an Instant is an int once it is evaluated.
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
