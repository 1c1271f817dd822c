"""What a ledger is given: its ports into the world, and how it is set up."""

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
    """What the ledger needs of the world."""

    log: Log
    rows: StateRows
    mapper: Mapper
    clock: Clock
    fence_clock: FenceClock
    learn_data_keys: Callable[[dict[str, bytes]], None]
    announce: Callable[[str], Awaitable[None]]
    """(tenure) Tell other processes that this one is the owner now, and where it answers."""
    publish_change: Callable[[bytes], None]
    """Tell edges of a change, over the bus; may lose it."""
    listen_to_edges: Callable[[], None] = _pass
    """Other root keys may have edges by now: see `Ledger.speakers`."""
    projected: Callable[[int, float], Awaitable[bool]]
    """(position, timeout): have the projections reached it?"""
    withdraw: Callable[[], Awaitable[None]] = _nothing
    """Tell other processes that this owner stops, and answers nothing any more."""
    succeeds_nobody: Callable[[], Awaitable[bool]] = _yes
    """Was the last owner this very process, or did it withdraw? Else it may still be answering."""
    end_silent_owner: Callable[[], Awaitable[None]] = _nothing
    """End the session of an owner that holds the partition and has not been heard of for long."""
    prune: Callable[[], Awaitable[None]] = _nothing
    """Let the log forget claims and groups that nobody asks for any more."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How this ledger is set up."""

    lease: LeaseTerms = LeaseTerms()
    edges: EdgeBounds = EdgeBounds()
    max_waiting: int = 20_000
    idempotency_seconds: int = 86_400
