"""Waiting for fences before an answer: that of a take-away, and a refusal that implies an earlier one."""

from __future__ import annotations

import asyncio
from typing import Final

from domain.errors import KeyExpiredError, KeyRevokedError, LedgerError, NotFoundError, VersionConflictError
from services.ledger.errors import UnavailableError
from services.ledger.fence_results import FenceResult
from services.ledger.jobs import Done
from services.ledger.ledger import Ledger

_MOST_FENCE_SECONDS: Final = 60.0
_REST_ON_A_TAKE_AWAY: Final = (NotFoundError, KeyRevokedError, KeyExpiredError, VersionConflictError)
"""Refusals from which the caller learns that another request took something away."""


async def fence_at(ledger: Ledger, position: int, *, wait: bool) -> FenceResult:
    """The fence up to a position: once it holds, or its present state if it takes too long."""
    fences = ledger.fences
    if wait:
        try:
            async with asyncio.timeout(_MOST_FENCE_SECONDS):
                return await fences.fence(position)
        except TimeoutError:
            pass
    return fences.fence_of(position)


async def fence_of(ledger: Ledger, done: Done, *, wait: bool) -> FenceResult:
    """The fence of what a command took away: once it holds and the projections have it, or its state now."""
    assert done.fence_position is not None, "asked only of what may take away"
    fence = await fence_at(ledger, done.fence_position, wait=wait)
    if wait or not done.narrowed:
        await ledger.wait_for_projections(done.position)
    return fence


async def outlast_fences(ledger: Ledger, refusal: LedgerError) -> None:
    """Wait before a take-away is refused because an earlier request took the same away already.

    "It is revoked", "it was not found": a caller that repeats a request, after the first answer was
    lost, takes that for the end of the key, so it is answered once no edge accepts the key any more.
    """
    if not isinstance(refusal, _REST_ON_A_TAKE_AWAY):
        return
    position = ledger.fences.newest_open()
    if position is not None and not (await fence_at(ledger, position, wait=True)).held:
        detail = "Edges may still accept what was taken away before; nothing was written, try again."
        raise UnavailableError("edges", detail)
