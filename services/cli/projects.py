"""`keyledger projects`."""

from services.cli.orgs import projects as projects

__all__ = ["projects"]
