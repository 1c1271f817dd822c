"""How positions are written: edges and ledger tell the same."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=16)
def position_prefix(partition: int, epoch: int) -> str:
    """What every position of a partition's log begins with in that epoch.

    The first epoch is not named, and neither is one that is not known yet (below 1).
    """
    return f"{partition}-" if epoch <= 1 else f"{partition}.{epoch}-"
