"""What is reported about fences, and about the edges that they wait for."""

from __future__ import annotations

import msgspec


class FenceResult(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a change is fenced: no edge can accept what was taken away up to it."""

    position: str
    """The position in the log up to which this applies; opaque."""
    held: bool
    """True only if it is known that everything taken away up to this position is fenced."""
    edges: int
    """Edges that held a lease when the change was committed."""
    acknowledged: int
    """Of them, those that acknowledged it."""
    expired: int
    """Of them, those whose lease ended without an acknowledgement."""
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
    """A connected edge, for display."""

    edge_id: str
    root_key_id: str
    incarnation: str
    version: str
    position: str
    lease_left_ms: int
    last_heard_ms: int
