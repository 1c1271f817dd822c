"""Who owns a partition, and where it answers."""

from __future__ import annotations

from typing import NamedTuple


class Owner(NamedTuple):
    """The process that holds a partition, as it announced itself."""

    address: str
    incarnation: str
    pid: int


class LogIdentity(NamedTuple):
    """Which log this is; another epoch means that positions were lost or reused."""

    log_id: str
    epoch: int
