"""The owner of a partition, and its address."""

from __future__ import annotations

from typing import NamedTuple


class Owner(NamedTuple):
    """The process that owns a partition, as it announced itself."""

    address: str
    incarnation: str
    pid: int


class LogIdentity(NamedTuple):
    """The identity of a log; another epoch means that positions were lost or reused."""

    log_id: str
    epoch: int
