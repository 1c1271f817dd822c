"""The public stream: one message per event, in the order of the log, each with its place in the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from domain.cloud_events import cloud_event, to_json
from keyledger_language.events import Event, public_name

MESSAGE_ID: Final = "Nats-Msg-Id"
LOG_ID: Final = "Keyledger-Log"
MARK: Final = "Keyledger-Mark"
"""The mark of the event's history, 16 hex digits: the same position in another history has another."""
_NOTHING: Final = "_"
_REPEATED: Final = "repeated"
_NUMBERS: Final = 3
_NO_MARK: Final = "0" * 16


class Place(NamedTuple):
    """The place in a log up to which a stream has been filled, from the headers of its last message."""

    log_id: str
    epoch: int
    partition: int
    number: int
    mark: int = 0
    """The mark of that event; 0: published before marks were introduced."""


class Message(NamedTuple):
    """One message, ready to be published."""

    subject: str
    headers: dict[str, str]
    body: bytes


class StreamEnd(NamedTuple):
    """The end of a stream."""

    sequence: int
    """The sequence of the last message that was ever stored."""
    headers: dict[str, str] | None
    """The headers of the last message that is still stored; None if there is none."""
    stored_at: float | None = None
    """When that message was stored (Unix seconds)."""


def prefix_of(partition: int) -> str:
    """The prefix of the subjects of a partition's stream."""
    return "keyledger" if partition == 0 else f"keyledger.p{partition}"


def subjects_of(partition: int) -> tuple[str, str]:
    """The subjects of a partition's stream: events, and the places that the relay repeats."""
    return f"{prefix_of(partition)}.events.>", f"{prefix_of(partition)}.relay"


def event_message(event: Event, place: Place, *, source: str, most_bytes: int) -> Message:
    """The message for an event: without personal fields, so no data keys are needed."""
    shown = cloud_event(
        event,
        partition=place.partition,
        epoch=place.epoch,
        number=place.number,
        source=source,
        personal=False,
    )
    body = to_json(shown)
    if len(body) > most_bytes:
        # It must not stop the others: subscribers that need its data read it from the feed.
        body = to_json(msgspec.structs.replace(shown, data=None))
    organization_id = event.organization_id or _NOTHING
    key_id = getattr(event, "key_id", _NOTHING)
    subject = f"{prefix_of(place.partition)}.events.{organization_id}.{key_id}.{public_name(event)}"
    return Message(subject, _headers(place), body)


def place_message(place: Place, sequence: int) -> Message:
    """Repeats a place after `sequence`, before the message that carries it is dropped for its age."""
    headers = _headers(place)
    headers[MESSAGE_ID] += f".{_REPEATED}{sequence}"
    return Message(subjects_of(place.partition)[1], headers, b"")


def place_in(headers: dict[str, str] | None) -> Place | None:
    """The place that a message carries; None if the message is not from a relay."""
    if headers is None or MESSAGE_ID not in headers or LOG_ID not in headers:
        return None
    numbers = headers[MESSAGE_ID].split(".")[:3]
    mark = _mark_in(headers)
    if len(numbers) < _NUMBERS or mark is None or not all(n.isascii() and n.isdigit() for n in numbers):
        return None
    epoch, partition, number = map(int, numbers)
    return Place(headers[LOG_ID], epoch, partition, number, mark)


def _headers(place: Place) -> dict[str, str]:
    return {
        MESSAGE_ID: f"{place.epoch}.{place.partition}.{place.number}",
        LOG_ID: place.log_id,
        MARK: place.mark.to_bytes(8, "big", signed=True).hex(),
    }


def _mark_in(headers: dict[str, str]) -> int | None:
    try:
        mark = bytes.fromhex(headers.get(MARK, _NO_MARK))
    except ValueError:
        return None
    return int.from_bytes(mark, "big", signed=True) if len(mark) == len(_NO_MARK) // 2 else None


# -- the port -------------------------------------------------------------------------------------


class StreamUnavailableError(Exception):
    """The stream cannot be reached, or no longer answers. Messages sent may or may not be stored."""


class StreamConflictError(Exception):
    """Another message was stored in this one's place: another program publishes, too."""


class StreamRefusedError(Exception):
    """The stream exists but must not be published to; the error's text says what to do."""


class PublicStream(Protocol):
    """A connection to the stream. It is used until it raises; then a new one is opened."""

    most_bytes: int
    """The largest size of one message."""
    most_age_seconds: float
    """How long messages are kept; 0: for ever (until the stream is full)."""
    acknowledged: int
    """The sequence up to which everything sent on this connection is stored."""

    async def end(self) -> StreamEnd:
        """The current end of the stream."""
        ...

    async def send(self, messages: Sequence[Message], *, behind: int) -> None:
        """Send messages, to be stored right after sequence `behind`, in this order, without a gap.

        Returns before they are stored, once few enough are in flight.
        """
        ...

    async def settle(self) -> None:
        """Wait until every message sent is stored."""
        ...

    def check(self) -> None:
        """Raise if the connection is lost, or has been silent for too long."""
        ...

    async def close(self) -> None:
        """Close the connection within a second, even if the server hangs."""
        ...
