"""The JetStream stream of a partition: its creation and its limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from domain.publishing import StreamRefusedError, subjects_of

# The server keeps message ids in memory this long. The sequence that each message names already prevents
# duplicates, so this need not be JetStream's 2 minutes: at 20,000 events/s that is 2.4 million ids.
_DUPLICATES_SECONDS: Final = 2.0


class StreamLimits(NamedTuple):
    """The limits of the stream; the oldest messages are dropped first."""

    max_bytes: int = 1 << 30
    """About a million events."""
    max_age_seconds: float = 7 * 86_400.0
    """0: as long as there is room."""
    replicas: int = 1


def stream_name(partition: int) -> str:
    """`KEYLEDGER` for the first partition."""
    return "KEYLEDGER" if partition == 0 else f"KEYLEDGER_{partition}"


async def ensure_stream(jetstream: JetStreamContext, partition: int, limits: StreamLimits) -> StreamConfig:
    """Make the stream, or update its limits; the operator's other settings are left alone."""
    try:
        found = (await jetstream.stream_info(stream_name(partition))).config
    except NotFoundError:
        made = await jetstream.add_stream(_new(partition, limits))
        return made.config
    _refuse_unfit(found, partition)
    wanted = replace(
        found,
        max_bytes=limits.max_bytes,
        max_age=limits.max_age_seconds,
        num_replicas=limits.replicas,
        subjects=sorted({*(found.subjects or ()), *subjects_of(partition)}),
    )
    if _limits_of(wanted) == _limits_of(found):
        return found
    return (await jetstream.update_stream(wanted)).config


def _new(partition: int, limits: StreamLimits) -> StreamConfig:
    return StreamConfig(
        name=stream_name(partition),
        description="Keyledger's events, in the order of its log",
        subjects=list(subjects_of(partition)),
        retention=RetentionPolicy.LIMITS,
        discard=DiscardPolicy.OLD,
        storage=StorageType.FILE,
        max_bytes=limits.max_bytes,
        max_age=limits.max_age_seconds,
        num_replicas=limits.replicas,
        duplicate_window=min(_DUPLICATES_SECONDS, limits.max_age_seconds or _DUPLICATES_SECONDS),
        allow_direct=True,
    )


def _limits_of(config: StreamConfig) -> tuple[object, ...]:
    return config.max_bytes, config.max_age, config.num_replicas, sorted(config.subjects or ())


def _refuse_unfit(config: StreamConfig, partition: int) -> None:
    if config.retention != RetentionPolicy.LIMITS or config.discard != DiscardPolicy.OLD:
        raise StreamRefusedError(
            f"The JetStream stream {stream_name(partition)} does not retain messages by limits, dropping"
            " the oldest: delete it, and the relay creates it again."
        )
