"""An edge's lease of a second, for tests on a machine that stands still at times: it may end meanwhile."""

import asyncio
import time
from typing import Final

from keyledger_edge import Verifier

_FRESH_SECONDS: Final = 0.7
"""It is asked for anew each quarter of a second, and then runs for a second less one per cent."""
_PATIENCE_SECONDS: Final = 20.0


async def leased(verifier: Verifier) -> None:
    """Wait until its lease is fresh, so that what comes next has most of it."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not _is_fresh(verifier):
            await asyncio.sleep(0.01)


async def remembered(verifier: Verifier, secret: str) -> None:
    """Wait until memory answers for it, with a fresh lease.

    A key's creation is heard as a change, maybe late or twice, and takes away what was told before.
    """
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while verifier.verify_cached(secret) is None or not _is_fresh(verifier):
            await verifier.verify(secret)
            await asyncio.sleep(0.01)


def _is_fresh(verifier: Verifier) -> bool:
    return verifier.metrics()["lease_left_seconds"] >= _FRESH_SECONDS


async def last_accepted(verifier: Verifier, secret: str) -> float:
    """When memory was asked last and still accepted (monotonic).

    Not when it was found to accept no more: this process may have stood still in between.
    """
    last = asked = time.monotonic()
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while (verdict := verifier.verify_cached(secret)) is not None and verdict.valid:
            last = asked
            await asyncio.sleep(0.005)
            asked = time.monotonic()
    return last
