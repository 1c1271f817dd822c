"""How long an edge may rely on what it knows, and how long the ledger waits because of that."""

from __future__ import annotations

import msgspec


class LeaseTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How long an edge may rely on what it knows."""

    lease_ms: int = 1_000
    ping_ms: int = 250
    drift: float = 0.01
    """Allowed for clocks that run at different rates: at least 1.5 times the real drift."""
    max_serve_stale_ms: int = 0
    """The longest `serve_stale` that an edge may choose; a restarted ledger waits for it."""

    @property
    def granted_ns(self) -> int:
        """How long a lease lasts for the edge, from sending: L(1 - e)."""
        return int(self.lease_ms * 1_000_000 * (1 - self.drift))

    def booked_ns(self, serve_stale_ms: int) -> int:
        """How long a lease lasts for the ledger, from receiving: L(1 + e), a stale bound included."""
        return int((self.lease_ms + serve_stale_ms) * 1_000_000 * (1 + self.drift)) + 1

    def stale_ns(self, asked_ms: int) -> int:
        """The part of a grant beyond the lease that the edge's owner chose to risk."""
        return int(self.stale_ms(asked_ms) * 1_000_000 * (1 - self.drift))

    def stale_ms(self, asked_ms: int) -> int:
        """The bound asked for, as far as it is allowed."""
        return max(0, min(asked_ms, self.max_serve_stale_ms))
