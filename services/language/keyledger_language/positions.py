"""How positions are written: edges and ledger write them in the same way."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(maxsize=16)
def position_prefix(partition: int, epoch: int) -> str:
    """The prefix of every position of a partition's log in that epoch.

    The first epoch is left out, and so is one that is not known yet (below 1).
    """
    return f"{partition}-" if epoch <= 1 else f"{partition}.{epoch}-"
