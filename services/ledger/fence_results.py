"""What is told of fences, and of the edges that they wait for."""

from __future__ import annotations

import msgspec


class FenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """Has a change been fenced: can no edge accept what was taken away up to it?"""

    position: str
    """Up to where in the log this is said; opaque."""
    held: bool
    """True only where it is known: nothing that was taken away up to here is without its fence."""
    edges: int
    """Edges that held a lease when the change was committed."""
    acknowledged: int
    """Of them, those that said that they know of it."""
    expired: int
    """Of them, those whose lease ended without a word."""
    waited_ms: float
    """How long it took to hold, or has taken so far, in milliseconds."""


class FenceReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """Proof that a fence held, to be recorded as RevocationFenced."""

    positions: tuple[int, ...]
    """The narrowing changes of one commit."""
    committed_at: int
    fenced_at: int
    edges_acknowledged: int
    edges_expired: int


class EdgeView(msgspec.Struct, frozen=True, kw_only=True):
    """Who is connected, for people."""

    edge_id: str
    root_key_id: str
    incarnation: str
    version: str
    position: str
    lease_left_ms: int
    last_heard_ms: int
