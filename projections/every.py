"""All projections."""

from __future__ import annotations

from domain.projecting import Projection
from projections.audit import Audit
from projections.directory import Directory
from projections.lookup import Lookup
from projections.requests import Requests
from projections.usage import Usage


def every_projection() -> list[Projection]:
    """A new instance of each, which remembers nothing yet."""
    return [Directory(), Lookup(), Audit(), Usage(), Requests()]
