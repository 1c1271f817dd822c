"""What a ledger is given: its ports to the outside, and its settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from domain.ports import Clock, FenceClock, Log, StateRows
from services.ledger.jobs import Mapper
from services.ledger.lease_table import EdgeBounds
from services.ledger.lease_terms import LeaseTerms


async def _nothing() -> None:
    """Most tests need none of this."""


def _pass() -> None:
    """The same."""


async def _yes() -> bool:
    return True


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger needs from outside."""

    log: Log
    rows: StateRows
    mapper: Mapper
    clock: Clock
    fence_clock: FenceClock
    learn_data_keys: Callable[[dict[str, bytes]], None]
    announce: Callable[[str], Awaitable[None]]
    """(tenure) Notify other processes that this one is the owner now, and where it answers."""
    publish_change: Callable[[bytes], None]
    """Send a change to edges, over NATS; it may be lost."""
    listen_to_edges: Callable[[], None] = _pass
    """Called when other root keys may have edges: see `Ledger.speakers`."""
    projected: Callable[[int, float], Awaitable[bool]]
    """(position, timeout) Whether the projections reach the position in time."""
    withdraw: Callable[[], Awaitable[None]] = _nothing
    """Notify other processes that this owner stops, and answers nothing any more."""
    succeeds_nobody: Callable[[], Awaitable[bool]] = _yes
    """Whether the last owner was this very process, or withdrew; if not, it may still be answering."""
    end_silent_owner: Callable[[], Awaitable[None]] = _nothing
    """End the session of an owner that holds the partition and has been silent for long."""
    prune: Callable[[], Awaitable[None]] = _nothing
    """Let the log delete claims and groups that are not looked up any more."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of this ledger."""

    lease: LeaseTerms = LeaseTerms()
    edges: EdgeBounds = EdgeBounds()
    max_waiting: int = 20_000
    idempotency_seconds: int = 86_400
